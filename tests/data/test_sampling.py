"""Training samples: crop, label and clicks stay together under every flip, turn and zoom, and sample n is sample n."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from pydantic import ValidationError

from voxsam.data.sampling import Augmentation, Labelled, Sampler
from voxsam.data.stream import SampleStream
from voxsam.errors import GeometryError, ImageError, InputError
from voxsam.geometry import Grid
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

SIDE = 24
PLAIN = Augmentation(shift=0, scale=0, noise=0, zoom=(1, 1), flip=0, rotate=0, off_centre=0, background=0)
PREPROCESSING = Preprocessing(spacing_mm=(3, 3, 3), clip=(-100, 100), mean=0, sd=100, interpolation="area")


def tumour() -> np.ndarray:
    """A lopsided blob of about 30 mm."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((50, 44, 36)), 4)
    i, j, k = np.indices(noise.shape)
    ball = 1 - ((i - 22) / 12) ** 2 - ((j - 20) / 10) ** 2 - ((k - 19) / 9) ** 2
    return ball + noise / noise.std() * 0.35 > 0


def case(axes: str = "LPS", spacing=(1.1, 1.6, 2.5), inside: np.ndarray | None = None) -> Labelled:
    """A scan whose intensity says what the label is: +100 inside, -100 outside."""
    inside = tumour() if inside is None else inside
    grid = Grid.from_spacing(inside.shape, spacing, (4, -7, 30)).reorient(axes)
    order, flips = Grid.from_spacing(inside.shape, spacing).permutation_to(axes)
    inside = np.flip(inside.transpose(order), [a for a in range(3) if flips[a]]).copy()
    scan = Volume(np.where(inside, 100, -100).astype(np.int16), grid, "CT")
    return Labelled.make(scan, Volume(inside.astype(np.uint8), grid, "SEG"))


def sampler(max_points: int = 4, side: int = SIDE, negatives: bool = True, **changes: object) -> Sampler:
    return Sampler(PREPROCESSING, side, max_points, PLAIN.model_copy(update=changes), negatives)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


VARIED = {"zoom": (0.7, 1.3), "flip": 0.5, "rotate": 0.5, "off_centre": 0.5, "background": 0.0}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "IPL", "PIR"])
def test_label_and_crop_stay_aligned_under_everything(axes: str) -> None:
    given = case(axes)
    for number in range(25):
        sample = sampler(**VARIED).draw(given, rng(number))
        crop, label = sample["crop"][0], sample["label"][0] > 0
        assert sample["crop"].shape == sample["label"].shape == (1, SIDE, SIDE, SIDE)
        assert sample["crop"].dtype == sample["label"].dtype == np.float32
        first = tuple(sample["points"][0].astype(int))
        differs = np.argwhere((crop > 0) != label)
        # Only the clicked voxel may be called tumour by its click rather than by its volume.
        assert len(differs) == 0 or [tuple(d) for d in differs.tolist()] == [first]


def test_clicks_lie_where_their_labels_say() -> None:
    seen = {-1: 0, 0: 0, 1: 0}
    for number in range(60):
        sample = sampler(6, **VARIED).draw(case(), rng(number))
        label, points = sample["label"][0] > 0, sample["points"]
        assert points.shape == (6, 3)
        assert (points.dtype, sample["labels"].dtype) == (np.float32, np.int64)
        assert sample["labels"][0] == 1
        for point, kind in zip(points, sample["labels"].tolist(), strict=True):
            seen[kind] += 1
            if kind >= 0:
                assert ((point >= 0) & (point < SIDE) & (point == np.rint(point))).all()
                assert label[tuple(point.astype(int))] == (kind == 1)
    assert min(seen.values()) > 20


def test_negative_clicks_lie_near_the_tumour() -> None:
    for number in range(20):
        sample = sampler(8).draw(case(), rng(number))
        away = scipy.ndimage.distance_transform_cdt(sample["label"][0] == 0, "taxicab")
        for point in sample["points"][sample["labels"] == 0]:
            assert 1 <= away[tuple(point.astype(int))] <= 4


def test_a_model_without_polarity_gets_no_negative_click() -> None:
    kinds = [sampler(6, negatives=False, **VARIED).draw(case(), rng(n))["labels"] for n in range(30)]
    assert set(np.unique(kinds)) == {-1, 1}


def test_one_click_at_most() -> None:
    for number in range(10):
        sample = sampler(1).draw(case(), rng(number))
        assert sample["points"].shape == (1, 3)
        assert sample["labels"].tolist() == [1]


@pytest.mark.parametrize("seed", range(4))
def test_flips_and_turns_by_hand(seed: int) -> None:
    """The same draw with and without: the same crop mirrored or with h and w swapped, and the click with it."""
    plain = sampler(1).draw(case(), rng(seed))
    flipped = sampler(1, flip=1.0).draw(case(), rng(seed))
    turned = sampler(1, rotate=1.0).draw(case(), rng(seed))
    for key in ("crop", "label"):
        np.testing.assert_array_equal(flipped[key], plain[key][:, ::-1, ::-1, ::-1])
        np.testing.assert_array_equal(turned[key], plain[key].swapaxes(2, 3))
    d, h, w = plain["points"][0]
    np.testing.assert_array_equal(flipped["points"][0], [SIDE - 1 - d, SIDE - 1 - h, SIDE - 1 - w])
    np.testing.assert_array_equal(turned["points"][0], [d, w, h])


def test_the_click_is_in_the_middle_unless_it_is_put_beside_it() -> None:
    for number in range(10):
        assert sampler(1).draw(case(), rng(number))["points"][0].tolist() == [SIDE // 2] * 3
    beside = [sampler(1, off_centre=1.0, off_centre_mm=20).draw(case(), rng(n))["points"][0] for n in range(40)]
    away = np.abs(np.array(beside) - SIDE // 2)
    assert 5 <= away.max() <= 8  # 20 mm are 6.7 voxels


def test_the_click_stays_in_a_small_crop() -> None:
    for number in range(60):
        sample = sampler(1, side=8, off_centre=1.0, off_centre_mm=500).draw(case(), rng(number))
        point = sample["points"][0].astype(int)
        assert sample["crop"][0][tuple(point)] > -0.9  # tumour in some part of the voxel
        assert sample["label"][0][tuple(point)] == 1


def test_zoom_changes_the_size_by_its_factor() -> None:
    given = case()
    millilitres = np.count_nonzero(given.label.array) * given.scan.grid.voxel_volume_ml
    for zoom in (0.8, 1.0, 1.6):
        sample = sampler(1, side=48, zoom=(zoom, zoom)).draw(given, rng(1))
        assert sample["label"].sum() * (3 * zoom) ** 3 / 1000 == pytest.approx(millilitres, rel=0.1)


def test_margins_are_cut_around_the_tumour() -> None:
    given = case()
    extent = (np.ptp(given.foreground, axis=0) + 1) * given.scan.grid.spacing_mm
    for margin in (0.0, 6.0):
        sample = sampler(1, side=48, margin_mm=(margin, margin)).draw(given, rng(0))
        seen = np.argwhere(sample["crop"][0] != 0)
        size = (np.ptp(seen, axis=0) + 1) * 3
        np.testing.assert_allclose(size, (extent + 2 * margin)[[2, 1, 0]], atol=6)


def test_intensities_vary_and_padding_stays_0() -> None:
    given = case(inside=np.ones((50, 44, 36), bool))
    plain = sampler(1, side=48).draw(given, rng(3))["crop"]
    varied = sampler(1, side=48, shift=15.0, scale=0.1, noise=8.0).draw(given, rng(3))["crop"]
    padding = plain == 0
    assert padding.any()
    assert (varied[padding] == 0).all()
    assert 0.01 < np.abs(varied - plain)[~padding].mean() < 0.8


def test_a_background_click_has_nothing_to_segment() -> None:
    given = case()
    for number in range(20):
        sample = sampler(4, background=1.0).draw(given, rng(number))
        assert not sample["label"].any()
        assert sample["labels"].tolist() == [1, -1, -1, -1]
        assert sample["crop"][0][tuple(sample["points"][0].astype(int))] < 0.99  # not the middle of the tumour


def test_a_tumour_that_fills_its_scan_is_never_background() -> None:
    given = case(inside=np.ones((20, 20, 20), bool))
    sample = sampler(1, background=1.0).draw(given, rng(0))
    assert sample["label"].any()


def test_a_lesion_thinner_than_a_voxel_of_the_crop_does_not_vanish() -> None:
    inside = np.zeros((40, 40, 20), bool)
    inside[20, 21, 11] = True
    sample = sampler(4).draw(case(inside=inside), rng(0))
    assert sample["label"].sum() == 1
    assert sample["label"][0][tuple(sample["points"][0].astype(int))] == 1


def test_drawing_leaves_the_case_alone_and_repeats_itself() -> None:
    given = case()
    before = given.scan.array.copy(), given.label.array.copy(), given.foreground.copy()
    changes = {**VARIED, "noise": 8.0, "shift": 15.0, "scale": 0.1, "background": 0.3}
    first, again, other = (sampler(**changes).draw(given, rng(n)) for n in (5, 5, 6))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["crop"], other["crop"])
    for old, new in zip(before, (given.scan.array, given.label.array, given.foreground), strict=True):
        np.testing.assert_array_equal(old, new)


# What is refused


def test_a_label_on_another_grid_is_refused() -> None:
    scan = Volume(np.zeros((4, 5, 6)), Grid.from_spacing((4, 5, 6), (1, 1, 1)))
    moved = Volume(np.ones((4, 5, 6)), Grid.from_spacing((4, 5, 6), (1, 1, 1), (0, 0, 3)))
    with pytest.raises(GeometryError, match=r"a label on Grid\(.*expected the scan's grid.*resample the label"):
        Labelled.make(scan, moved)


def test_a_label_without_tumour_is_refused() -> None:
    scan = Volume(np.zeros((4, 5, 6)), Grid.from_spacing((4, 5, 6), (1, 1, 1)))
    with pytest.raises(ImageError, match=r"a label without tumour; .*leave the case out \(held_out"):
        Labelled.make(scan, scan)


def test_labels_of_any_value_count_as_1() -> None:
    given = case()
    scaled = Labelled.make(given.scan, given.label.with_array(given.label.array.astype(np.int32) * 7))
    np.testing.assert_array_equal(scaled.label.array, given.label.array)


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ValidationError, match="mirror"):
        Augmentation(mirror=0.5)  # type: ignore[call-arg]


# The stream


class Named(Sampler):
    """Says which case it was given."""

    def __init__(self) -> None:
        pass

    def draw(self, case, rng):
        return {"case": case, "number": rng.integers(1 << 30)}


def stream(scans=("a", "b"), phantoms=("p", "q", "r"), share=(1.0, 0.0), seed: int = 3) -> SampleStream:
    return SampleStream(Named(), scans, phantoms, 400, share, seed)  # type: ignore[arg-type]


def test_sample_n_is_the_same_whatever_was_drawn_before() -> None:
    forwards = [stream()[n] for n in range(20)]
    once = stream()
    backwards = [once[n] for n in reversed(range(20))][::-1]
    assert forwards == backwards
    assert [stream(seed=4)[n] for n in range(20)] != forwards
    assert len({sample["number"] for sample in forwards}) == 20
    assert len(once) == 400


def test_the_share_of_phantoms_falls() -> None:
    generated = np.array([stream()[n]["case"] in "pqr" for n in range(400)])
    assert generated[:100].mean() > 0.8
    assert generated[300:].mean() < 0.2
    assert generated.mean() == pytest.approx(0.5, abs=0.07)
    assert {stream()[n]["case"] for n in range(400)} == set("abpqr")


def test_one_kind_alone_is_always_drawn() -> None:
    assert {stream(phantoms=())[n]["case"] for n in range(20)} <= {"a", "b"}
    assert {stream(scans=(), share=(0.0, 0.0))[n]["case"] for n in range(20)} <= {"p", "q", "r"}


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match="neither scans nor phantoms; expected something to train on; give --data"):
        stream((), ())

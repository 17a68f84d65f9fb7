"""Training samples: crop, label and clicks match under every flip, rotation and zoom; sample n is always the same."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from pydantic import ValidationError

from voxsam.errors import GeometryError, ImageError, InputError
from voxsam.geometry import Grid
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.sampling import Labelled, Sampler, SampleStream
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

SIDE = 24
PLAIN = Augmentation(
    shift=0, scale=0, noise=0, zoom=(1, 1), flip=0, turn=0, rotate=0, margin_mm=None, off_centre=0, background=0
)
PREPROCESSING = Preprocessing(spacing_mm=(3, 3, 3), clip=(-100, 100), mean=0, sd=100, interpolation="area")


def tumour() -> np.ndarray:
    """A lopsided blob of about 30 mm."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((50, 44, 36)), 4)
    i, j, k = np.indices(noise.shape)
    ball = 1 - ((i - 22) / 12) ** 2 - ((j - 20) / 10) ** 2 - ((k - 19) / 9) ** 2
    return ball + noise / noise.std() * 0.35 > 0


def case(axes: str = "LPS", spacing=(1.1, 1.6, 2.5), inside: np.ndarray | None = None) -> Labelled:
    """A scan whose intensity tells the label: +100 inside, -100 outside."""
    inside = tumour() if inside is None else inside
    grid = Grid.from_spacing(inside.shape, spacing, (4, -7, 30)).reorient(axes)
    order, flips = Grid.from_spacing(inside.shape, spacing).permutation_to(axes)
    inside = np.flip(inside.transpose(order), [a for a in range(3) if flips[a]]).copy()
    scan = Volume(np.where(inside, 100, -100).astype(np.int16), grid, "CT")
    return Labelled.make(scan, Volume(inside.astype(np.uint8), grid, "SEG"))


def sampler(prompts: str = "clicks", side: int = SIDE, **changes: object) -> Sampler:
    return Sampler(PREPROCESSING, side, PLAIN.model_copy(update=changes), prompts)  # type: ignore[arg-type]


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


VARIED = {"zoom": (0.7, 1.3), "flip": 0.5, "turn": 0.5, "rotate": 20.0, "margin_mm": (5.0, 60.0), "off_centre": 0.5}


def places(sample: dict) -> np.ndarray:
    """(n, 3) points that are not padding."""
    return sample["points"][sample["labels"] >= 0].astype(int)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "IPL", "PIR"])
def test_label_and_crop_stay_aligned_under_everything(axes: str) -> None:
    given = case(axes)
    for number in range(10):
        sample = sampler(**VARIED).draw(given, rng(number))
        crop, label = sample["crop"][0], sample["label"][0] > 0
        assert sample["crop"].shape == sample["label"].shape == (1, SIDE, SIDE, SIDE)
        assert sample["crop"].dtype == sample["label"].dtype == np.float32
        # The scan is bright where the label is; both are resampled, so voxels of the border may differ.
        sure = np.abs(crop) > 0.9
        assert ((crop > 0) == label)[sure].mean() > 0.995
        assert sure.sum() > 200


def test_a_quarter_turn_and_a_flip_by_hand() -> None:
    plain = sampler().draw(case(), rng(1))
    flipped = sampler(flip=1.0).draw(case(), rng(1))
    np.testing.assert_allclose(flipped["crop"], plain["crop"][:, ::-1, ::-1, ::-1], atol=1e-5)
    np.testing.assert_array_equal(flipped["label"], plain["label"][:, ::-1, ::-1, ::-1])
    turned = [sampler(turn=1.0).draw(case(), rng(n))["crop"][0] for n in range(6)]
    upright = [sampler().draw(case(), rng(n))["crop"][0] for n in range(6)]
    for got, want in zip(turned, upright, strict=True):
        quarters = [np.rot90(want, k, axes=(1, 2)) for k in (1, 2, 3)]
        assert min(np.abs(got - quarter).max() for quarter in quarters) < 1e-5


def test_the_crop_without_augmentation_is_the_scan_itself() -> None:
    """The scan's intensity is linear in world mm: every voxel of the crop tells where it is."""
    grid = Grid.from_spacing((50, 44, 36), (1.5, 1.5, 3), (0, 0, 0))
    i, j, k = np.indices(grid.shape)
    scan = Volume((i * 1.5 - 2 * j * 1.5 + 0.5 * k * 3).astype(np.float32), grid, "CT")
    inside = np.zeros(grid.shape, np.uint8)
    inside[20, 22, 18] = 1
    use = PREPROCESSING.model_copy(update={"axes": "RAS", "clip": (-1000.0, 1000.0), "interpolation": "linear"})
    sample = Sampler(use, 12, PLAIN).draw(Labelled.make(scan, Volume(inside, grid, "SEG")), rng(0))
    steps = np.diff(sample["crop"][0] * 100, axis=0), np.diff(sample["crop"][0] * 100, axis=1)
    np.testing.assert_allclose(steps[0], 3.0, atol=1e-3)
    np.testing.assert_allclose(steps[1], -6.0, atol=1e-3)
    assert sample["crop"][0, 6, 6, 6] * 100 == pytest.approx(20 * 1.5 - 22 * 3 + 18 * 1.5, abs=6)


def test_positive_clicks_lie_in_the_tumour_and_the_first_in_the_middle() -> None:
    counts = set()
    for number in range(40):
        sample = sampler(zoom=(0.7, 1.3), flip=0.5, rotate=20.0).draw(case(), rng(number))
        label = sample["label"][0] > 0
        assert (sample["points"].dtype, sample["labels"].dtype) == (np.float32, np.int64)
        assert all(label[tuple(point)] for point in places(sample))
        assert np.abs(sample["points"][0] - SIDE // 2).max() <= 3
        counts.add(len(places(sample)))
    assert 1 in counts and max(counts) > 5


def test_an_off_centre_crop_holds_its_click_somewhere() -> None:
    away = []
    for number in range(30):
        sample = sampler(off_centre=1.0, off_centre_mm=30.0).draw(case(), rng(number))
        assert sample["label"][0][tuple(places(sample)[0])] == 1
        away.append(np.abs(sample["points"][0] - SIDE // 2).max())
    assert max(away) > 5


def test_the_points_of_the_paper_and_of_the_released_code() -> None:
    sample = sampler("paper").draw(case(), rng(0))
    assert len(places(sample)) == 40
    assert all(sample["label"][0][tuple(point)] for point in places(sample))
    beside = sampler("paper", side=6, background=1.0).draw(case(inside=_corner()), rng(0))
    assert not beside["label"].any()
    assert beside["labels"].tolist() == [1] * 10 + [-1] * 30
    released = sampler("released").draw(case(), rng(0))
    inner, outer = released["points"][:10].astype(int), released["points"][10:].astype(int)
    assert all(released["label"][0][tuple(point)] for point in inner)
    assert len(outer) == 20 and not all(released["label"][0][tuple(point)] for point in outer)
    assert set(released["labels"].tolist()) == {1}
    assert sampler("released", side=6, background=1.0).draw(case(inside=_corner()), rng(0))["labels"].tolist() == (
        [-1] * 10 + [1] * 20
    )


def _corner() -> np.ndarray:
    """A tumour of a few voxels in the corner of a scan: nearly every background crop has none of it."""
    inside = np.zeros((50, 44, 36), bool)
    inside[:2, :2, :2] = True
    return inside


def test_zoom_changes_the_size_by_its_factor() -> None:
    given = case()
    millilitres = np.count_nonzero(given.label.array) * given.scan.grid.voxel_volume_ml
    for zoom in (0.8, 1.0, 1.6):
        sample = sampler(side=48, zoom=(zoom, zoom), zoom_probability=1.0).draw(given, rng(1))
        assert sample["label"].sum() * (3 * zoom) ** 3 / 1000 == pytest.approx(millilitres, rel=0.12)


def test_margins_are_cut_around_the_tumour() -> None:
    given = case()
    extent = (np.ptp(given.foreground, axis=0) + 1) * given.scan.grid.spacing_mm
    for margin in (0.0, 6.0):
        sample = sampler(side=48, margin_mm=(margin, margin)).draw(given, rng(0))
        seen = np.argwhere(sample["crop"][0] != 0)
        size = (np.ptp(seen, axis=0) + 1) * 3
        np.testing.assert_allclose(size, (extent + 2 * margin)[[2, 1, 0]], atol=7)


def test_intensities_vary_and_padding_stays_0() -> None:
    given = case(inside=np.ones((50, 44, 36), bool))
    plain = sampler(side=48).draw(given, rng(3))["crop"]
    varied = sampler(side=48, shift=25.0, shift_probability=1.0, scale=0.1, noise=8.0).draw(given, rng(3))["crop"]
    padding = plain == 0
    assert padding.any()
    assert (varied[padding] == 0).all()
    assert 0.005 < np.abs(varied - plain)[~padding].mean() < 0.8


def test_a_background_click_has_nothing_to_segment() -> None:
    given = case()
    for number in range(20):
        sample = sampler(background=1.0).draw(given, rng(number))
        assert not sample["label"].any()
        assert len(places(sample)) == 1
        assert np.abs(places(sample)[0] - SIDE // 2).max() <= 2


def test_a_tumour_that_fills_its_scan_is_never_background() -> None:
    given = case(inside=np.ones((20, 20, 20), bool))
    assert sampler(background=1.0).draw(given, rng(0))["label"].any()


def test_a_lesion_thinner_than_a_voxel_of_the_crop_does_not_vanish() -> None:
    inside = np.zeros((40, 40, 20), bool)
    inside[20, 21, 11] = True
    for number in range(10):
        sample = sampler(zoom=(0.8, 1.25), rotate=15.0).draw(case(inside=inside), rng(number))
        assert sample["label"].sum() >= 1
        assert sample["label"][0][tuple(places(sample)[0])] == 1


class ReadsOnlyBoxes:
    """An array that is not in memory: it has a shape, and returns boxes of itself."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, box: tuple) -> np.ndarray:
        assert all(isinstance(part, slice) for part in box)
        part = self.array[box]
        self.read += part.size
        return part


def test_only_the_crop_is_read_of_a_large_scan() -> None:
    given = case()
    whole = sampler(background=0.5).draw(given, rng(4))
    arrays = [ReadsOnlyBoxes(given.scan.array), ReadsOnlyBoxes(given.label.array)]
    scan, label = (Volume(a, given.scan.grid, m) for a, m in zip(arrays, ("CT", "SEG"), strict=True))  # type: ignore[arg-type]
    lazy = sampler(background=0.5).draw(Labelled(scan, label, given.foreground), rng(4))
    for key in whole:
        np.testing.assert_array_equal(lazy[key], whole[key])
    small = sampler(side=6).draw(Labelled(scan, label, given.foreground), rng(4))
    assert small["crop"].any()
    before = arrays[0].read
    sampler(side=6).draw(Labelled(scan, label, given.foreground), rng(5))
    assert arrays[0].read - before < given.scan.array.size / 4


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

    def draw(self, case, rng, others=()):
        return {"case": case, "drawn": rng.integers(1 << 30)}


def stream(scans=("a", "b"), phantoms=("p", "q", "r"), fraction=(1.0, 0.0), seed: int = 3) -> SampleStream:
    return SampleStream(Named(), scans, phantoms, 400, fraction, seed)  # type: ignore[arg-type]


def test_sample_n_is_the_same_whatever_was_drawn_before() -> None:
    forwards = [stream()[n] for n in range(20)]
    once = stream()
    backwards = [once[n] for n in reversed(range(20))][::-1]
    assert forwards == backwards
    assert [stream(seed=4)[n] for n in range(20)] != forwards
    assert [int(sample["number"]) for sample in forwards] == list(range(20))
    assert len({sample["drawn"] for sample in forwards}) == 20
    assert len(once) == 400


def test_the_share_of_phantoms_falls() -> None:
    generated = np.array([stream()[n]["case"] in "pqr" for n in range(400)])
    assert generated[:100].mean() > 0.8
    assert generated[300:].mean() < 0.2
    assert generated.mean() == pytest.approx(0.5, abs=0.07)
    assert {stream()[n]["case"] for n in range(400)} == set("abpqr")


def test_one_kind_alone_is_always_drawn() -> None:
    assert {stream(phantoms=())[n]["case"] for n in range(20)} <= {"a", "b"}
    assert {stream(scans=(), fraction=(0.0, 0.0))[n]["case"] for n in range(20)} <= {"p", "q", "r"}


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match="neither scans nor phantoms; expected something to train on; give --data"):
        stream((), ())

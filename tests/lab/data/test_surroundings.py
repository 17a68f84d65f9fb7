"""Tissue of other scans around a cropped one: its block stays, nothing else becomes tumour, samples repeat."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.geometry import Grid
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.cases import Labelled
from voxsam.lab.data.sampling import SEAM, Sampler, SampleStream, fill, find_place
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

SIDE = 24
STILL = Augmentation(
    shift=0, scale=0, noise=0, zoom=(1, 1), flip=0, turn=0, rotate=0, margin_mm=None, off_centre=0, background=0
)
USE = Preprocessing(spacing_mm=(4, 3, 2), clip=(-900, 900), mean=0, sd=100)


def case(shape, value: int, tumour, spacing=(2.0, 3.0, 4.0), modality: str = "CT") -> Labelled:
    """A scan of one intensity; `tumour`, a box, is 50 higher. The spacing of USE, axes L, P, S."""
    label = np.zeros(shape, np.uint8)
    label[tumour] = 1
    grid = Grid.from_spacing(shape, spacing).reorient("LPS")
    scan = Volume((value + 50 * label.astype(np.int16)), grid, modality)
    return Labelled.make(scan, Volume(label, grid, "SEG"))


CUT = case((14, 12, 10), 10, np.s_[6:9, 5:8, 4:7])
WIDE = case((60, 50, 40), 300, np.s_[1:3, 1:3, 1:3])


def draw(number: int = 0, others=(WIDE,), own: Labelled = CUT, **changes):
    augmentation = STILL.model_copy(update={"surroundings": 1.0, **changes})
    return Sampler(USE, SIDE, augmentation).draw(own, np.random.default_rng([3, number]), [own, *others])


def test_the_block_stays_and_the_rest_is_the_other_scan_without_its_tumour() -> None:
    alone = Sampler(USE, SIDE, STILL).draw(CUT, np.random.default_rng([3, 0]))
    sample = draw()
    block = alone["crop"] != 0
    assert block.sum() == 14 * 12 * 10
    np.testing.assert_array_equal(sample["crop"][block], alone["crop"][block])
    np.testing.assert_array_equal(sample["label"], alone["label"])
    assert sample["label"].sum() == 27
    others = [draw(number)["crop"][~block] for number in range(8)]  # nothing else is drawn differently
    assert max(np.isclose(other, 3.0).mean() for other in others) > 0.6  # 300 HU: the other scan's tissue
    assert not any(np.isclose(other, 3.5).any() for other in others)  # its tumour is never shown


def test_the_seam_fades_over_a_few_voxels() -> None:
    image, seen = np.full((2, 9, 4, 5), 7.0, np.float32), np.zeros((9, 4, 5), bool)
    block = np.s_[2:4, 0:4, 0:5]
    image[0][block], image[1][block], seen[block] = 1.0, 20.0, True
    fill(image, seen, block, np.full(image.shape, 5.0, np.float32), np.ones(seen.shape, bool))
    assert seen.all() and SEAM == 3
    np.testing.assert_allclose(image[0, :, 1, 2], [3, 2, 1, 1, 2, 3, 4, 5, 5])
    np.testing.assert_allclose(image[1, :, 1, 2], [12.5, 16.25, 20, 20, 16.25, 12.5, 8.75, 5, 5])


def test_only_what_is_known_and_not_yet_seen_is_filled() -> None:
    image, seen = np.zeros((1, 8, 3, 3), np.float32), np.zeros((8, 3, 3), bool)
    seen[:2] = True
    known = np.zeros(seen.shape, bool)
    known[1:5] = True
    fill(image, seen, np.s_[0:2, 0:3, 0:3], np.full(image.shape, 9.0, np.float32), known)
    assert image[0, 1].max() == 0 and image[0, 2:5].min() > 0 and not image[0, 5:].any()
    np.testing.assert_array_equal(seen[:, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0])


def test_a_place_shows_no_tumour_outside_the_block() -> None:
    other = case((40, 40, 40), 0, np.s_[18:22, 18:22, 18:22], spacing=(3.0, 3.0, 3.0))
    use = USE.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)})
    block = (slice(4, 14), slice(4, 14), slice(4, 14))
    model_grid = use.model_grid(other.scan.grid)
    at = other.scan.grid.index_in(model_grid, other.foreground)
    for number in range(20):
        window = find_place(other, use, (20, 20, 20), block, np.random.default_rng(number))
        assert window is not None
        inside = at - window.start
        shown = ((inside >= 0) & (inside <= 19)).all(1)
        assert (((inside >= 4) & (inside <= 13)).all(1) | ~shown).all()
    everywhere = case((40, 40, 40), 0, np.s_[::2], spacing=(3.0, 3.0, 3.0))
    assert find_place(everywhere, use, (20, 20, 20), block, np.random.default_rng(0)) is None


def test_other_modalities_and_the_scan_itself_are_no_surroundings() -> None:
    alone = draw(surroundings=0.0)
    for others in ((), (case((60, 50, 40), 300, np.s_[1:3, 1:3, 1:3], modality="MR"),)):
        np.testing.assert_array_equal(draw(others=others)["crop"], alone["crop"])


def test_about_as_many_samples_as_asked_for_are_surrounded() -> None:
    surrounded = [bool(np.isclose(draw(n, surroundings=0.35)["crop"], 3.0).any()) for n in range(200)]
    assert np.mean(surrounded) == pytest.approx(0.35, abs=0.08)


def test_sample_n_is_the_same_whatever_was_drawn_before() -> None:
    sampler = Sampler(USE, SIDE, Augmentation(surroundings=0.5))
    streams = [SampleStream(sampler, [CUT], [WIDE], 50, (0.3, 0.3), 7) for _ in range(2)]
    forwards = [streams[0][n] for n in range(6)]
    backwards = [streams[1][n] for n in reversed(range(6))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(first["crop"], second["crop"])
        np.testing.assert_array_equal(first["label"], second["label"])


def test_an_uncut_scan_is_seen_to_its_borders() -> None:
    given = case((60, 50, 40), 300, np.s_[30:33, 25:28, 20:23])
    cut = draw(own=given, surroundings=0.0, margin_mm=(6.0, 6.0))["crop"]
    whole = draw(own=given, surroundings=0.0, margin_mm=(6.0, 6.0), uncut=1.0)["crop"]
    assert np.count_nonzero(cut) < 0.1 * cut.size
    assert np.count_nonzero(whole) == whole.size

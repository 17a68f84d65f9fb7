"""Simulated clicks: regions counted by hand, nested and repeatable draws, corrections where the error is."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import PromptError
from voxsam.lab.evaluation.clicks import ClickMaker, correction, depth_mm, region_of

SPACING = np.array([1.0, 2.0, 4.0])
SHAPE = (24, 20, 16)


def box(*spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


CUBE = box((4, 13), (5, 14), (3, 12))  # 9 voxels a side: at most 5 mm deep, along i
SPECK = box((20, 21), (1, 2), (1, 2))


def test_depth_is_the_distance_to_the_nearest_voxel_outside():
    depth = depth_mm(CUBE, SPACING)
    assert (depth[8, 9, 7], depth[4, 9, 7], depth[8, 5, 7], depth[8, 9, 3], depth[0, 0, 0]) == (5, 1, 2, 4, 0)
    assert depth_mm(np.ones((3, 3, 3), bool), SPACING)[1, 1, 1] == 2  # beyond the scan is outside


@pytest.mark.parametrize(
    ("region", "voxels"),
    # Not in the margin: 1.67 mm deep or more, 2 voxels along i and 1 along j and k. Centre: 3.33 mm: 4, 2 and 1 voxels.
    [
        ("any", 730),
        ("margin", 729 - 7 * 9 * 9),
        ("surround", 7 * 9 * 9 - 3 * 7 * 9),
        ("centre", 3 * 7 * 9),
        ("deepest", 1),
    ],
)
def test_regions_of_a_cube(region, voxels):
    chosen = region_of(CUBE | SPECK, SPACING, region)
    assert chosen.sum() == voxels
    assert (CUBE | SPECK)[chosen].all()
    assert chosen[SPECK].any() == (region == "any")  # the others lie in the largest lesion


def test_the_three_regions_are_the_whole_lesion():
    parts = [region_of(CUBE, SPACING, region) for region in ("centre", "surround", "margin")]
    assert (sum(part.astype(int) for part in parts) == CUBE).all()


@pytest.mark.parametrize("region", ["any", "centre", "surround", "margin", "deepest"])
def test_a_lesion_of_one_voxel_has_every_region(region):
    assert (region_of(SPECK, SPACING, region) == SPECK).all()


def test_clicks_are_nested_and_repeat():
    maker = ClickMaker(CUBE, SPACING)
    ten = maker.draw(10, 0, "case", 0)
    assert maker.draw(3, 0, "case", 0) == ten[:3]
    assert ClickMaker(CUBE, SPACING).draw(10, 0, "case", 0) == ten
    assert len(set(ten)) == 10
    assert all(CUBE[at] and positive for at, positive in ten)
    others = [maker.draw(1, 1, "case", 0), maker.draw(1, 0, "cast", 0), maker.draw(1, 0, "case", 1)]
    assert all(other != ten[:1] for other in others)


def test_clicks_are_uniform_over_the_region():
    maker = ClickMaker(CUBE, SPACING)
    drawn = np.array([maker.draw(1, 0, "case", trial)[0][0] for trial in range(600)])
    # The mean of 600 draws from 9 voxels has a standard error of 2.58 / sqrt(600) = 0.105.
    np.testing.assert_allclose(drawn.mean(0), [8, 9, 7], atol=0.42)


def test_a_small_tumour_is_clicked_again():
    assert ClickMaker(SPECK, SPACING).draw(3, 0) == [((20, 1, 1), True)] * 3


def test_noisy_clicks_lie_just_outside_the_tumour():
    maker = ClickMaker(CUBE, SPACING, noise=1.0)
    away = np.array([at for at, _ in maker.draw(200, 0, "case")])
    assert not CUBE[tuple(away.T)].any()
    low, high = np.array([4, 5, 3]), np.array([12, 13, 11])
    distance = np.linalg.norm(np.maximum(np.maximum(low - away, away - high), 0) * SPACING, axis=1)
    assert distance.max() <= 10 and distance.max() > 8


def test_noise_moves_only_the_clicks_that_it_strikes():
    clean = ClickMaker(CUBE, SPACING).draw(100, 0, "case")
    noisy = ClickMaker(CUBE, SPACING, noise=0.3).draw(100, 0, "case")
    struck = [a != b for a, b in zip(clean, noisy, strict=True)]
    assert 15 <= sum(struck) <= 45  # 30 with a standard deviation of 4.6
    assert all(not CUBE[at] for (at, _), moved in zip(noisy, struck, strict=True) if moved)


def test_an_empty_tumour_cannot_be_clicked():
    with pytest.raises(PromptError, match="a label without tumour; expected voxels to click on"):
        ClickMaker(np.zeros(SHAPE, bool), SPACING)


def test_a_correction_goes_into_the_middle_of_the_largest_fault():
    missing, wrong = box((15, 20), (10, 17), (12, 15)), box((4, 13), (5, 14), (12, 13))
    truth = CUBE | missing
    assert correction(CUBE, truth, SPACING) == ((17, 13, 13), True)  # 105 voxels
    assert correction(CUBE | missing | wrong, truth, SPACING)[1] is False
    assert correction(CUBE | wrong, truth, SPACING)[1] is True  # 105 missing against 81 wrong
    assert correction(CUBE | wrong | box((0, 9), (0, 4), (0, 1)), truth, SPACING)[1] is True  # two faults of 81 and 36


def test_a_correction_of_equal_faults_is_positive():
    assert correction(box((0, 3), (0, 3), (0, 3)), box((10, 13), (0, 3), (0, 3)), SPACING) == ((11, 1, 1), True)


def test_a_correction_for_a_system_without_negative_clicks():
    mask = CUBE | box((15, 24), (0, 20), (0, 16))
    assert correction(mask, CUBE, SPACING)[1] is False
    assert correction(mask, CUBE, SPACING, negative=False) is None


def test_no_fault_is_left():
    assert correction(CUBE, CUBE, SPACING) is None


def test_a_second_click_in_the_same_fault_lies_elsewhere():
    empty = np.zeros(SHAPE, bool)
    first = correction(empty, CUBE, SPACING)
    assert first is not None
    second = correction(empty, CUBE, SPACING, [first])
    assert second is not None and second != first and CUBE[second[0]]
    assert correction(empty, SPECK, SPACING, [((20, 1, 1), True)]) is None

"""The scores of a pair of masks, worked out by hand on anisotropic voxels; all cases of empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voxsam.errors import GeometryError, InputError
from voxsam.lab.evaluation.scores import score

SPACING = np.array([1.0, 2.0, 4.0])
SHAPE = (16, 14, 15)


def box(*spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


TRUTH = box((2, 12), (1, 11), (3, 13))
EMPTY = np.zeros(SHAPE, bool)


def test_a_mask_equal_to_its_truth():
    scores = score(TRUTH, TRUTH, SPACING)
    assert (scores.dice, scores.nsd, scores.hd95_mm, scores.volume_error) == (1, 1, 0, 0)
    assert scores.truth_ml == scores.mask_ml == pytest.approx(1000 * 8 / 1000)
    assert (scores.lesions, scores.lesions_found, scores.false_lesions) == (1, 1, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_by_one_voxel_is_one_spacing(axis):
    # The two faces across the shift are 57, 29 and 14 % of the surface: more than the 5 % that HD95 leaves out.
    scores = score(np.roll(TRUTH, 1, axis), TRUTH, SPACING, tolerance_mm=SPACING[axis])
    assert scores.dice == pytest.approx(0.9)
    assert scores.hd95_mm == pytest.approx(SPACING[axis])
    assert scores.nsd == pytest.approx(1)
    assert score(np.roll(TRUTH, 1, axis), TRUTH, SPACING, tolerance_mm=0.9 * SPACING[axis]).nsd < 0.95


def test_hd95_leaves_out_the_farthest_five_per_cent():
    # A stray voxel with faces 4 and 8 mm from the box: its 28 mm2 are 1 % of the mask's surface.
    stray = TRUTH | box((6, 7), (6, 7), (14, 15))
    assert score(stray, TRUTH, SPACING).hd95_mm == 0
    near, half, none = (score(stray, TRUTH, SPACING, tolerance).nsd for tolerance in (8, 5, 3.9))
    assert 1 == near > half > none > 0.99


def test_nsd_counts_the_area_of_the_faces():
    # Shifted along k by 8 mm: of 2800 mm2 the two faces of 200 mm2 each, and two slices' worth of the four sides, lie
    # beyond 5 mm on either surface: (400 + 4 * 2 * (10 + 20)) / 2800. Edges and corners are beveled, hence 3 %.
    nsd = score(np.roll(TRUTH, 2, 2), TRUTH, SPACING, 5).nsd
    assert nsd == pytest.approx(1 - (400 / 2 + 4 * (10 + 20)) / 2800, abs=0.06)


def test_volumes_and_their_error():
    scores = score(box((0, 6), (0, 5), (0, 1)), box((0, 4), (0, 5), (0, 1)), SPACING)
    assert (scores.truth_ml, scores.mask_ml) == pytest.approx((0.16, 0.24))
    assert scores.volume_error == pytest.approx(0.5)
    assert scores.dice == pytest.approx(2 * 20 / 50)


def test_two_empty_masks_agree():
    scores = score(EMPTY, EMPTY, SPACING)
    assert (scores.dice, scores.nsd, scores.hd95_mm, scores.volume_error) == (1, 1, 0, 0)
    assert (scores.lesions, scores.lesions_found, scores.false_lesions) == (0, 0, 0)


def test_an_empty_mask_of_a_tumour():
    scores = score(EMPTY, TRUTH, SPACING)
    assert (scores.dice, scores.nsd, scores.hd95_mm, scores.volume_error) == (0, 0, math.inf, -1)
    assert (scores.lesions, scores.lesions_found, scores.false_lesions) == (1, 0, 0)


def test_a_mask_where_there_is_no_tumour():
    scores = score(TRUTH, EMPTY, SPACING)
    assert (scores.dice, scores.nsd, scores.hd95_mm) == (0, 0, math.inf)
    assert math.isnan(scores.volume_error)
    assert (scores.lesions, scores.lesions_found, scores.false_lesions) == (0, 0, 1)


def test_lesions_are_found_missed_and_false():
    first, second = box((0, 2), (0, 2), (0, 2)), box((6, 8), (0, 2), (0, 2))
    scores = score(first | box((12, 13), (8, 9), (8, 9)), first | second, SPACING)
    assert (scores.lesions, scores.lesions_found, scores.false_lesions) == (2, 1, 1)


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    diagonal = box((0, 1), (0, 1), (0, 1)) | box((1, 2), (1, 2), (1, 2))
    assert score(EMPTY, diagonal, SPACING).lesions == 1
    assert score(EMPTY, np.roll(box((0, 1), (0, 1), (0, 1)), 2, 0) | box((0, 1), (0, 1), (0, 1)), SPACING).lesions == 2


def test_a_lesion_lost_in_a_large_mask_is_not_found_nor_is_the_mask_false():
    lesion = box((2, 3), (2, 3), (2, 3))
    assert score(box((2, 12), (2, 3), (2, 3)), lesion, SPACING).lesions_found == 1  # IoU 1 / 10
    scores = score(box((2, 13), (2, 3), (2, 3)), lesion, SPACING)  # 1 / 11
    assert (scores.lesions_found, scores.false_lesions) == (0, 0)


def test_one_component_can_find_two_lesions():
    two = box((0, 3), (0, 3), (0, 3)) | box((5, 8), (0, 3), (0, 3))
    assert score(box((0, 8), (0, 3), (0, 3)), two, SPACING).lesions_found == 2


def test_any_number_that_is_not_zero_counts_and_nothing_is_changed():
    mask, truth = TRUTH * np.int16(-3), TRUTH * np.float32(0.5)
    copies = mask.copy(), truth.copy()
    assert score(mask, truth, SPACING).dice == 1
    assert (mask == copies[0]).all() and (truth == copies[1]).all()


def test_two_shapes_and_a_negative_tolerance_are_refused():
    with pytest.raises(GeometryError, match="expected two masks on one grid"):
        score(TRUTH, TRUTH[1:], SPACING)
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match="a tolerance of .* mm; expected millimetres from 0 on"):
            score(TRUTH, TRUTH, SPACING, tolerance)

"""Outlines and filling: the mask comes back exactly; areas and holes are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.io.dicom.rtstruct import fill, outline


def area(polygon):
    i, j = polygon.T
    return abs(i @ np.roll(j, -1) - j @ np.roll(i, -1)) / 2


def drawn(*rows: str) -> np.ndarray:
    """(i, j) mask from a picture whose lines are j and whose columns are i: '#' is inside."""
    return np.array([[c == "#" for c in row] for row in rows]).T


RING = drawn(".......", ".#####.", ".#...#.", ".#.#.#.", ".#...#.", ".#####.", "..#....")


def test_one_voxel_is_a_diamond():
    polygons = outline(drawn("...", ".#.", "...", "..."))
    assert len(polygons) == 1
    assert sorted(map(tuple, polygons[0].tolist())) == [(0.5, 1.0), (1.0, 0.5), (1.0, 1.5), (1.5, 1.0)]


def test_a_block_is_an_octagon_without_needless_points():
    mask = np.zeros((9, 7), bool)
    mask[2:7, 1:4] = True  # 5 x 3 voxels: the area of the block less four corners of 1/8
    (polygon,) = outline(mask)
    assert polygon.shape == (8, 2)
    assert area(polygon) == pytest.approx(15 - 4 / 8)
    assert polygon.min(0).tolist() == [1.5, 0.5] and polygon.max(0).tolist() == [6.5, 3.5]


def test_a_hole_is_joined_to_its_outline_and_an_island_stands_alone():
    polygons = outline(RING)
    assert len(polygons) == 2
    # 5 x 5 block minus four corners of 1/8, plus 1 for the bump; minus the 3 x 3 hole without its four corners
    assert sorted(area(p) for p in polygons) == pytest.approx([0.5, 25 - 0.5 + 1 - (9 - 0.5)])
    assert np.array_equal(fill(polygons, RING.shape), RING)


def test_two_holes_in_one_outline():
    mask = drawn("#########", "#.##..#.#", "####..###", "#########")
    polygons = outline(mask)
    assert len(polygons) == 1
    assert np.array_equal(fill(polygons, mask.shape), mask)


@pytest.mark.parametrize("seed", range(6))
def test_filling_the_outline_gives_the_mask(seed):
    random = np.random.default_rng(seed)
    mask = random.random((23, 17)) < (0.2, 0.4, 0.5, 0.6, 0.8, 0.95)[seed]
    before = mask.copy()
    polygons = outline(mask)
    assert np.array_equal(fill(polygons, mask.shape), mask) and np.array_equal(mask, before)
    assert not np.array_equal(fill([p[:, ::-1] for p in polygons], mask.shape), mask)  # i and j are not one another


def test_masks_that_reach_the_border_and_empty_ones():
    full, empty = np.ones((4, 6), bool), np.zeros((4, 6), bool)
    assert fill(outline(full), (4, 6)).all()
    assert outline(empty) == [] and not fill([], (4, 6)).any()


def test_a_centre_on_a_line_counts_on_one_side_only():
    """A rectangle from centre to centre includes its low sides and not the high ones: 4 x 2 voxels, its own area."""
    inside = fill([np.array([[2.0, 1], [6, 1], [6, 3], [2, 3]])], (9, 5))
    assert np.argwhere(inside).min(0).tolist() == [2, 1] and np.argwhere(inside).max(0).tolist() == [5, 2]
    assert inside.sum() == 8


def test_a_slanting_line_by_hand():
    """The triangle (0, 0), (4, 0), (0, 4), shifted by a quarter: the centres with i + j < 4.5 and both at least 1."""
    inside = fill([np.array([[0.25, 0.25], [4.25, 0.25], [0.25, 4.25]])], (6, 6))
    i, j = np.indices((6, 6))
    assert np.array_equal(inside, (i >= 1) & (j >= 1) & (i + j < 4.5))


def test_separate_inner_contours_are_holes_and_what_lies_outside_is_cut():
    outer = np.array([[-9.5, 0.5], [5.5, 0.5], [5.5, 6.5], [-9.5, 6.5]])
    inner = np.array([[1.5, 2.5], [3.5, 2.5], [3.5, 4.5], [1.5, 4.5]])
    inside = fill([outer, inner], (8, 8))
    expected = np.zeros((8, 8), bool)
    expected[:6, 1:7] = True
    expected[2:4, 3:5] = False
    assert np.array_equal(inside, expected)

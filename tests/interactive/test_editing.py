"""Edits of a mask, worked out by hand on anisotropic, oblique and sheared grids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive import editing

# A 3-4-5 rotation about z: i steps by 5 * (0.8, 0.6, 0), j by 10 * (-0.6, 0.8, 0), k by 2 * (0, 0, 1).
OBLIQUE = np.array([[4.0, -6, 0, 1], [3, 8, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
# Gantry tilt: each slice lies 1 mm further along j than the one before it.
SHEARED = np.array([[2.0, 0, 0, 0], [0, 2, 1, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
GRIDS = [
    Grid.from_spacing((11, 12, 13), (2.0, 5.0, 3.0)),
    Grid((11, 12, 13), OBLIQUE),
    Grid((11, 12, 13), SHEARED),
    Grid.from_spacing((11, 12, 13), (2.0, 5.0, 3.0)).reorient("PIL"),
]


def empty(grid: Grid) -> np.ndarray:
    return np.zeros(grid.shape, np.uint8)


def distances_mm(grid: Grid, index: tuple[float, float, float]) -> np.ndarray:
    """From each voxel's centre, one voxel after another."""
    world = grid.index_to_world(index)
    out = np.zeros(grid.shape)
    for voxel in itertools.product(*map(range, grid.shape)):
        out[voxel] = np.linalg.norm(grid.index_to_world(voxel) - world)
    return out


def found(mask: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.argwhere(mask).tolist()))


# Brush


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("index", [(5, 6, 6), (4.35, 5.8, 6.4), (0, 11, 0)])
def test_a_ball_is_a_ball_in_the_patient(grid: Grid, index: tuple[float, float, float]) -> None:
    edit = editing.brush(empty(grid), grid, index, 7.0)
    expected = distances_mm(grid, index) <= 7.0
    assert expected.sum() > 5
    np.testing.assert_array_equal(edit.apply(empty(grid)), expected)
    assert edit.changes and not edit.before.any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_disc_lies_in_its_slice(grid: Grid, axis: int) -> None:
    index = [5.2, 6.0, 5.9]
    edit = editing.brush(empty(grid), grid, index, 8.0, axis=axis)
    index[axis] = round(index[axis])
    expected = np.zeros(grid.shape, bool)
    layer = tuple(index[axis] if a == axis else slice(None) for a in range(3))
    expected[layer] = distances_mm(grid, tuple(index))[layer] <= 8.0
    np.testing.assert_array_equal(edit.apply(empty(grid)), expected)


def test_five_millimetres_on_two_by_five_by_three() -> None:
    grid = GRIDS[0]
    edit = editing.brush(empty(grid), grid, (5, 6, 6), 5.0)
    # In its slice, 2 voxels of 2 mm to either side and 1 of 5 mm; one slice (3 mm) away 4 mm are left, two away none.
    inside = {(i, 6, 6) for i in range(3, 8)} | {(5, 5, 6), (5, 7, 6)}
    assert found(edit.apply(empty(grid))) == inside | {(i, 6, k) for i in range(3, 8) for k in (5, 7)}
    disc = editing.brush(empty(grid), grid, (5, 6, 6), 5.0, axis=2)
    assert found(disc.apply(empty(grid))) == inside
    assert [part.stop - part.start for part in disc.box] == [5, 3, 1]


def test_a_stroke_is_as_wide_between_its_points_as_at_them() -> None:
    grid = Grid.from_spacing((20, 9, 5), (1.0, 2.0, 4.0))
    edit = editing.brush(empty(grid), grid, [(3, 4, 2), (15, 4, 2)], 2.0, axis=2)
    assert found(edit.apply(empty(grid))) == {(i, 4, 2) for i in range(1, 18)} | {
        (i, j, 2) for i in range(3, 16) for j in (3, 5)
    }


def test_a_brush_smaller_than_a_voxel_paints_the_voxel() -> None:
    grid = GRIDS[1]
    assert found(editing.brush(empty(grid), grid, [(3.4, 2.6, 1.0), (3.4, 2.6, 1.4)], 0.1).apply(empty(grid))) == {
        (3, 3, 1)
    }
    beside = editing.brush(empty(grid), grid, (-4, 0, 0), 0.1)
    assert not beside.changes and not beside.apply(empty(grid)).any()
    # Outside on one axis only, or for half of the stroke: the part on the grid counts.
    stroke = [(3, 1, 1), (3, -40, 1), (3, -60, 1)]
    assert not editing.brush(empty(grid), grid, stroke[1:], 0.1).changes
    assert editing.brush(empty(grid), grid, stroke, 0.1).changes


def test_an_eraser_takes_what_the_brush_gave_and_undo_gives_it_back() -> None:
    grid = GRIDS[0]
    painted = editing.brush(empty(grid), grid, (5, 6, 6), 9.0).apply(empty(grid))
    eraser = editing.brush(painted, grid, (5, 6, 6), 5.0, add=False)
    left = eraser.apply(painted)
    np.testing.assert_array_equal(left, painted & ~(distances_mm(grid, (5, 6, 6)) <= 5.0))
    np.testing.assert_array_equal(eraser.undo(left), painted)
    assert painted[5, 6, 6]  # what was given is not changed


def test_only_voxels_of_the_range_are_painted_and_erased() -> None:
    grid = GRIDS[0]
    image = np.zeros(grid.shape, np.int16)
    image[5], image[6] = 40, 100
    edit = editing.brush(empty(grid), grid, (5, 6, 6), 5.0, axis=2, image=image, intensities=(40, 99))
    assert found(edit.apply(empty(grid))) == {(5, 5, 6), (5, 6, 6), (5, 7, 6)}
    full = np.ones(grid.shape, bool)
    erased = editing.brush(full, grid, (5, 6, 6), 5.0, axis=2, image=image, add=False, intensities=(100, np.inf))
    assert found(~erased.apply(full)) == {(6, 6, 6)}


def test_bad_strokes_are_refused() -> None:
    grid = GRIDS[0]
    with pytest.raises(PromptError, match="radius of 0 mm; expected more than 0 mm"):
        editing.brush(empty(grid), grid, (1, 1, 1), 0.0)
    with pytest.raises(PromptError, match="slices 1 to 3 of axis 2; expected points in one slice"):
        editing.brush(empty(grid), grid, [(1, 1, 1), (1, 1, 3)], 2.0, axis=2)
    for points in ([], [(1, 2)], [(np.nan, 0, 0)]):
        with pytest.raises(PromptError, match="expected one or more finite voxel indices"):
            editing.brush(empty(grid), grid, points, 2.0)


# Lasso


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_lasso_takes_the_centres_inside(axis: int) -> None:
    grid = Grid.from_spacing((9, 9, 9), (1.0, 2.0, 3.0))
    # A triangle with corners (1.5, 1.5), (6.5, 1.5), (1.5, 6.5): u + v < 8.
    corners = np.insert(np.array([(1.5, 1.5), (6.5, 1.5), (1.5, 6.5)]), axis, 4.2, axis=1)
    mask = editing.lasso(empty(grid), grid, corners, axis).apply(empty(grid))
    expected = {(u, v) for u in range(2, 7) for v in range(2, 7) if u + v < 8}
    assert found(mask) == {tuple(np.insert(uv, axis, 4)) for uv in expected}
    backwards = editing.lasso(empty(grid), grid, corners[::-1], axis).apply(empty(grid))
    np.testing.assert_array_equal(backwards, mask)
    cleared = editing.lasso(np.ones(grid.shape), grid, corners, axis, add=False)
    np.testing.assert_array_equal(cleared.apply(np.ones(grid.shape)), ~mask)


def test_neighbouring_lassos_share_no_voxel_and_what_is_beside_the_scan_is_left_out() -> None:
    grid = Grid.from_spacing((8, 8, 1), (1.0, 1.0, 1.0))
    left = editing.lasso(empty(grid), grid, [(-3, -3, 0), (4, -3, 0), (4, 11, 0), (-3, 11, 0)], 2).apply(empty(grid))
    right = editing.lasso(empty(grid), grid, [(4, -3, 0), (11, -3, 0), (11, 11, 0), (4, 11, 0)], 2).apply(empty(grid))
    assert left.sum() == 32 and right.sum() == 32 and not (left & right).any()
    with pytest.raises(PromptError, match="a lasso of 2 points; expected three or more"):
        editing.lasso(empty(grid), grid, [(1, 1, 0), (2, 2, 0)], 2)


# Holes, smoothing, components


def test_holes_are_filled_in_3d_or_slice_by_slice() -> None:
    grid = GRIDS[0]
    mask = empty(grid)
    mask[2:9, 2:9, 2:9] = 1
    mask[5, 5, 5] = 0  # enclosed
    mask[4, 4, 2:9] = 0  # a tunnel along k: open in 3D, closed in each slice
    solid = editing.fill_holes(mask, grid).apply(mask)
    assert found(solid & (mask == 0)) == {(5, 5, 5)}
    sliced = editing.fill_holes(mask, grid, axis=2).apply(mask)
    assert sliced.sum() == 7**3
    across = editing.fill_holes(mask, grid, axis=0).apply(mask)
    assert found(across & (mask == 0)) == {(5, 5, 5)}
    assert not editing.fill_holes(empty(grid), grid).changes


def test_smoothing_keeps_the_volume_and_rounds_in_millimetres() -> None:
    grid = Grid.from_spacing((41, 21, 21), (1.0, 2.0, 2.0))
    mask = empty(grid)
    mask[10:30, 5:15, 5:15] = 1  # a cube of 20 mm
    edit = editing.smooth(mask, grid, 3.0)
    smooth = edit.apply(mask)
    assert smooth.sum() == mask.sum()
    assert not smooth[10, 5, 5] and not smooth[29, 14, 14] and smooth[20, 10, 10]  # corners go
    assert smooth[9:31, 10, 10].all()  # faces bulge
    reach = [np.ptp(np.flatnonzero(smooth.any(axis=tuple({0, 1, 2} - {axis})))) + 1 for axis in range(3)]
    assert reach[1] == reach[2] and abs(reach[0] - 2 * reach[1]) <= 2  # as round along i as along j and k, in mm
    np.testing.assert_array_equal(edit.undo(smooth), mask)
    dot = empty(grid)
    dot[3, 3, 3] = 1
    assert found(editing.smooth(dot, grid, 2.0).apply(dot)) == {(3, 3, 3)}
    assert not editing.smooth(empty(grid), grid, 2.0).changes
    with pytest.raises(PromptError, match="smoothing by -1 mm"):
        editing.smooth(mask, grid, -1)


def test_a_component_is_kept_or_removed() -> None:
    grid = GRIDS[0]
    mask = empty(grid)
    mask[1:4, 1:4, 1:4] = 1
    mask[4, 4, 4] = 1  # touches only at a corner
    mask[8, 8, 8] = 1
    kept = editing.keep_component(mask, grid, (2.4, 1.6, 3)).apply(mask)
    assert kept.sum() == 27 and kept[2, 2, 2]
    removed = editing.remove_component(mask, grid, (2, 2, 2)).apply(mask)
    assert found(removed) == {(4, 4, 4), (8, 8, 8)}
    for index in ((0, 0, 0), (-30, 2, 2)):
        with pytest.raises(PromptError, match="is not in the mask; expected a voxel of the object"):
            editing.keep_component(mask, grid, index)


# Slices between drawn ones


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_between_two_squares_lie_squares_between_their_sizes(axis: int) -> None:
    grid = Grid.from_spacing((15, 15, 15), (1.0, 1.0, 1.0))
    mask = np.zeros((15, 15, 15), np.uint8)
    planes = np.moveaxis(mask, axis, 0)
    planes[3, 3:12, 3:12] = 1  # 9 wide
    planes[7, 5:10, 5:10] = 1  # 5 wide
    edit = editing.interpolate_slices(mask, grid, axis)
    sums = np.moveaxis(edit.apply(mask), axis, 0).sum(axis=(1, 2))
    assert sums[3] == 81 and sums[7] == 25 and sums[:3].sum() == sums[8:].sum() == 0
    assert sums[5] == 49  # half-way, 7 wide
    assert 81 >= sums[4] >= 49 >= sums[6] >= 25
    np.testing.assert_array_equal(edit.undo(edit.apply(mask)), mask)


def test_an_oblique_vessel_stays_whole() -> None:
    grid = Grid.from_spacing((30, 11, 9), (1.0, 1.5, 4.0))
    mask = np.zeros(grid.shape, np.uint8)
    mask[2:6, 4:7, 0] = 1
    mask[18:22, 4:7, 8] = 1  # 16 voxels further, 8 slices on: no overlap
    filled = editing.interpolate_slices(mask, grid, 2).apply(mask)
    for k in range(9):
        assert found(filled[..., k]) == {(i, j) for i in range(2 + 2 * k, 6 + 2 * k) for j in (4, 5, 6)}


def test_drawn_slices_stay_and_pieces_are_not_shifted() -> None:
    grid = Grid.from_spacing((20, 8, 7), (1.0, 1.0, 5.0))
    mask = np.zeros(grid.shape, np.uint8)
    mask[2:6, 2:6, 0] = mask[12:16, 2:6, 0] = 1  # two vessels
    mask[3:5, 3:5, 2] = 1  # drawn on the way, one of them
    mask[2:6, 2:6, 4] = mask[12:16, 2:6, 4] = 1
    filled = editing.interpolate_slices(mask, grid, 2).apply(mask)
    np.testing.assert_array_equal(filled[..., ::2], mask[..., ::2])
    assert filled[3:5, 3:5, 1].all() and not filled[6:11, :, 1].any()
    assert not editing.interpolate_slices(mask, grid, 1).changes  # no gap along j

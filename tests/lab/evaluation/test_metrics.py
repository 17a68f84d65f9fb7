"""Metrics against values worked out by hand, on anisotropic, permuted and oblique grids."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.boxes import crop_to_objects, labels_of
from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.report.metrics import (
    dice,
    longest_axial_diameter,
    perpendicular_diameter,
    volume_ml,
)
from voxsam.volume import Volume

SPACING = (1.5, 2.0, 5.0)  # R/L, A/P, S/I


def mask_in(axes: str, box_ras: tuple[slice, slice, slice], label: int = 1) -> Volume:
    """A mask of 20 x 16 x 12 voxels (R, A, S) with one box, stored in the axis order `axes`."""
    array = np.zeros((20, 16, 12), np.uint8)
    array[box_ras] = label
    grid = Grid.from_spacing(array.shape, SPACING, (-10, 4, 30))
    return Volume(array, grid, "SEG").reorient(axes)


# Dice


def test_dice_by_hand():
    a, b = np.zeros((3, 4, 5)), np.zeros((3, 4, 5))
    a[0, 0, :4] = 1
    b[0, 0, 2:] = 7  # any label counts
    assert dice(a, b) == pytest.approx(2 * 2 / (4 + 3))
    assert dice(a, a) == 1.0
    assert dice(a, np.roll(a, 1, axis=1)) == 0.0


def test_dice_of_empty_masks():
    empty, full = np.zeros((2, 3, 4)), np.ones((2, 3, 4))
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == 0.0
    assert dice(full, empty) == 0.0


def test_dice_refuses_two_shapes():
    with pytest.raises(
        GeometryError, match=r"masks of shapes \(2, 3, 4\) and \(4, 3, 2\); expected two masks on one grid"
    ):
        dice(np.ones((2, 3, 4)), np.ones((4, 3, 2)))


# Volume and labels


def test_volume_in_millilitres():
    mask = mask_in("RAS", (slice(2, 6), slice(3, 8), slice(4, 7)), label=2)  # 4 x 5 x 3 voxels of 15 mm3
    assert volume_ml(mask) == pytest.approx(0.9)
    assert volume_ml(mask, 2) == pytest.approx(0.9)
    assert volume_ml(mask, 1) == 0.0


def test_labels_are_ascending_without_background():
    array = np.zeros((4, 4, 4), np.uint8)
    array[0], array[2, 2] = 5, 3
    assert labels_of(Volume(array, Grid.from_spacing(array.shape, SPACING))) == [3, 5]


def test_crop_to_objects_keeps_the_place():
    mask = mask_in("SPL", (slice(2, 6), slice(3, 8), slice(4, 7)))
    part = crop_to_objects(mask)
    assert part.array.all()
    assert part.array.shape == (3, 5, 4)
    world = mask.grid.index_to_world(np.argwhere(mask.array))
    np.testing.assert_allclose(part.grid.index_to_world(np.argwhere(part.array)), world)


def test_crop_to_objects_of_an_empty_mask_is_one_voxel():
    part = crop_to_objects(mask_in("RAS", (slice(0, 0),) * 3))
    assert part.array.shape == (1, 1, 1)
    assert not part.array.any()


# The longest axial diameter


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "AIR"])
def test_diameter_of_a_row_along_each_direction(axes):
    # 9 voxels of 1.5 mm; 7 of 2 mm; a column of 11 slices of 5 mm is only one voxel long in each axial slice: 2 mm.
    across = mask_in(axes, (slice(3, 12), slice(5, 6), slice(4, 5)))
    front_to_back = mask_in(axes, (slice(3, 4), slice(5, 12), slice(4, 5)))
    upright = mask_in(axes, (slice(3, 4), slice(5, 6), slice(0, 11)))
    lengths = [longest_axial_diameter(mask).length_mm for mask in (across, front_to_back, upright)]
    np.testing.assert_allclose(lengths, [13.5, 14.0, 2.0])


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL"])
def test_diameter_of_a_box(axes):
    # 12 x 8 voxels = 18 x 16 mm. Face centres: from (0, 15) to (18, 1) or from (0.75, 0) to (17.25, 16).
    mask = mask_in(axes, (slice(2, 14), slice(3, 11), slice(1, 10)))
    expected = max(np.hypot(18, 14), np.hypot(16.5, 16))
    assert longest_axial_diameter(mask).length_mm == pytest.approx(expected)


def test_diameter_of_an_ellipse_is_its_long_axis():
    # Half axes 40 mm (R/L) and 25 mm (A/P) in one slice, turned by 30 degrees, on 0.8 x 1.1 mm.
    grid = Grid.from_spacing((120, 90, 3), (0.8, 1.1, 4.0))
    x, y = grid.index_to_world(np.moveaxis(np.indices((120, 90, 1)), 0, -1))[..., 0, :2].transpose(2, 0, 1)
    x, y = x - 47.0, y - 48.0
    turn = np.deg2rad(30)
    u, v = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    array = np.zeros(grid.shape, np.uint8)
    array[:, :, 1] = (u / 40) ** 2 + (v / 25) ** 2 <= 1
    assert longest_axial_diameter(Volume(array, grid)).length_mm == pytest.approx(80, abs=0.8)


def test_diameter_takes_the_slice_where_the_object_is_widest():
    mask = mask_in("LPS", (slice(5, 7), slice(5, 6), slice(2, 9)))
    array = mask.array.copy()
    array[2:18, 8, 7] = 1  # 16 voxels of 1.5 mm in slice 7
    diameter = longest_axial_diameter(mask.with_array(array))
    assert diameter.ends[:, 2].tolist() == [7, 7]
    assert sorted(diameter.ends[:, 0].tolist()) == [1.5, 17.5]
    assert diameter.length_mm == pytest.approx(24)


def test_diameter_on_an_oblique_grid_is_in_millimetres():
    turn = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) * SPACING
    array = np.zeros((20, 16, 12), np.uint8)
    array[3, 2:12, 5] = 1  # 10 voxels of 2 mm
    assert longest_axial_diameter(Volume(array, Grid(array.shape, affine))).length_mm == pytest.approx(20)


def test_diameter_of_one_label_and_of_none():
    array = np.zeros((20, 16, 12), np.uint8)
    array[0:4, 0, 0], array[0:10, 5, 5] = 1, 2
    mask = Volume(array, Grid.from_spacing(array.shape, SPACING))
    assert longest_axial_diameter(mask, 1).length_mm == pytest.approx(6)
    assert longest_axial_diameter(mask, 2).length_mm == pytest.approx(15)
    assert longest_axial_diameter(mask, 3) is None
    assert longest_axial_diameter(mask.with_array(np.zeros_like(array))) is None


# Its perpendicular


def both(mask: Volume, label: int | None = None) -> tuple[float, float]:
    longest = longest_axial_diameter(mask, label)
    return longest.length_mm, perpendicular_diameter(mask, longest, label).length_mm


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "AIR"])
def test_perpendicular_of_a_cross_and_of_a_row(axes):
    row = mask_in(axes, (slice(3, 12), slice(5, 6), slice(4, 5)))
    np.testing.assert_allclose(both(row), (13.5, 2.0))  # one voxel of 2 mm across
    array = row.array.copy()
    array[mask_in(axes, (slice(6, 7), slice(3, 8), slice(4, 5))).array > 0] = 1
    array[mask_in(axes, (slice(3, 4), slice(2, 12), slice(7, 8))).array > 0] = 1  # in another slice; 20 mm: the longest
    np.testing.assert_allclose(both(row.with_array(array)), (20, 1.5))
    array[mask_in(axes, (slice(3, 4), slice(2, 12), slice(7, 8))).array > 0] = 0
    np.testing.assert_allclose(both(row.with_array(array)), (13.5, 10))  # 9 x 1.5 mm; 5 x 2 mm


@pytest.mark.parametrize("degrees", [0, 25])
def test_perpendicular_of_an_ellipse_is_its_short_axis(degrees):
    # Half axes 40 mm and 25 mm, turned by 30 degrees in the slice, on a grid that is turned too and anisotropic.
    turn = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] *= (0.8, 1.1, 4.0)
    grid = Grid((120, 90, 3), affine)
    indices = np.moveaxis(np.indices((120, 90)), 0, -1) - (59.5, 44.5)
    x, y = 0.8 * indices[..., 0], 1.1 * indices[..., 1]
    tilt = np.deg2rad(30)
    u, v = np.cos(tilt) * x + np.sin(tilt) * y, -np.sin(tilt) * x + np.cos(tilt) * y
    array = np.zeros(grid.shape, np.uint8)
    array[:, :, 1] = (u / 40) ** 2 + (v / 25) ** 2 <= 1
    mask = Volume(array, grid)
    longest = longest_axial_diameter(mask)
    short = perpendicular_diameter(mask, longest)
    assert longest.length_mm == pytest.approx(80, abs=0.8)
    assert short.length_mm == pytest.approx(50, abs=0.8)
    ways = [grid.index_to_world(line.ends[1]) - grid.index_to_world(line.ends[0]) for line in (longest, short)]
    assert np.linalg.norm(ways[1]) == pytest.approx(short.length_mm)
    assert abs(ways[0] @ ways[1]) < 1e-6  # perpendicular in the patient
    assert short.ends[:, 2].tolist() == [1, 1]


def test_perpendicular_is_that_of_one_label():
    array = np.zeros((20, 16, 12), np.uint8)
    array[2:12, 4, 3] = 1
    array[2:12, 5:9, 3] = 2
    mask = Volume(array, Grid.from_spacing(array.shape, SPACING))
    np.testing.assert_allclose(both(mask, 1), (15, 2))

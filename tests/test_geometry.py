"""Grid: indices and millimetres worked out by hand on oblique, anisotropic, flipped and permuted grids."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxsam.errors import GeometryError
from voxsam.geometry import Grid

# Columns are the steps of i, j, k: 2 mm to the left, 5 mm up, 3 mm to the front, i.e. axes "LSA".
PERMUTED = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -20], [0, 5, 0, 30], [0, 0, 0, 1]])
# A 3-4-5 rotation about z: i steps by 5 * (0.8, 0.6, 0), j by 10 * (-0.6, 0.8, 0), k by 2 * (0, 0, 1).
OBLIQUE = np.array([[4.0, -6, 0, 1], [3, 8, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
ALL_AXES = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)  # all 48 ways to lay three axes
]


def oblique() -> Grid:
    return Grid((4, 5, 6), OBLIQUE)


def permuted() -> Grid:
    return Grid((4, 5, 6), PERMUTED)


# Properties


def test_spacing_axes_and_volume_by_hand():
    assert oblique().spacing_mm == pytest.approx([5, 10, 2])
    assert oblique().axes == "RAS"
    assert oblique().voxel_volume_ml == pytest.approx(0.1)  # 5 * 10 * 2 mm^3
    assert permuted().spacing_mm == pytest.approx([2, 5, 3])
    assert permuted().axes == "LSA"
    assert permuted().voxel_volume_ml == pytest.approx(0.03)


def test_repr_says_size_spacing_and_axes():
    assert repr(permuted()) == "Grid(4 x 5 x 6 voxels, 2 x 5 x 3 mm, axes LSA)"


def test_from_spacing_lies_along_the_world():
    grid = Grid.from_spacing((3, 4, 5), (1, 2, 3), (10, 20, 30))
    assert grid.axes == "RAS" and grid.shape == (3, 4, 5)
    assert grid.index_to_world((0, 0, 0)) == pytest.approx([10, 20, 30])
    assert grid.index_to_world((1, 1, 1)) == pytest.approx([11, 22, 33])


def test_corners_are_the_outer_faces():
    corners = Grid.from_spacing((2, 3, 4), (1, 10, 100)).corners_world_mm()
    assert corners.shape == (8, 3)
    assert corners.min(axis=0) == pytest.approx([-0.5, -5, -50])
    assert corners.max(axis=0) == pytest.approx([1.5, 25, 350])


# Index <-> world


@pytest.mark.parametrize(
    ("index", "world_mm"),
    [
        ((0, 0, 0), (1, 2, 3)),
        ((1, 0, 0), (5, 5, 3)),
        ((0, 1, 0), (-5, 10, 3)),
        ((0, 0, 1), (1, 2, 5)),
        ((2, 3, 4), (1 + 8 - 18, 2 + 6 + 24, 3 + 8)),
        ((0.5, -0.5, 1.5), (1 + 2 + 3, 2 + 1.5 - 4, 3 + 3)),
    ],
)
def test_index_to_world_by_hand_on_an_oblique_grid(index, world_mm):
    assert oblique().index_to_world(index) == pytest.approx(world_mm)
    assert oblique().world_to_index(world_mm) == pytest.approx(index, abs=1e-12)


def test_index_to_world_by_hand_on_a_permuted_grid():
    assert permuted().index_to_world((1, 2, 3)) == pytest.approx([10 - 2, -20 + 9, 30 + 10])
    assert permuted().world_to_index((8, -11, 40)) == pytest.approx([1, 2, 3])


def test_many_indices_at_once_keep_their_leading_axes():
    index = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    world = oblique().index_to_world(index)
    assert world.shape == (2, 7, 3) and world.dtype == np.float64
    assert world[1, 4] == pytest.approx(oblique().index_to_world(index[1, 4]))
    assert oblique().world_to_index(world) == pytest.approx(index)


def test_index_in_another_grid():
    index = (1, 2, 3)  # (8, -11, 40) mm, see above
    other = Grid.from_spacing((50, 50, 50), (1, 2, 4), (0, -21, 0))
    assert permuted().index_in(other, index) == pytest.approx([8, 5, 10])
    assert other.index_in(permuted(), (8, 5, 10)) == pytest.approx(index)


@settings(max_examples=50, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-1000, 1000)] * 3),
    index=st.tuples(*[st.floats(-600, 600)] * 3),
)
def test_index_to_world_and_back_is_the_identity(angles, spacing, origin, index):
    affine = np.eye(4)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        affine[:3, :3] = affine[:3, :3] @ turn
    affine[:3, :3] *= spacing
    affine[:3, 3] = origin
    grid = Grid((3, 4, 5), affine)
    assert grid.spacing_mm == pytest.approx(spacing)
    assert grid.world_to_index(grid.index_to_world(index)) == pytest.approx(index, abs=1e-6)


def test_contains_the_voxels_with_their_outer_faces():
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3))
    inside = [(0, 0, 0), (3, 4, 5), (-0.5, -0.5, -0.5), (3.5, 4.5, 5.5)]
    outside = [(-0.51, 0, 0), (3.51, 0, 0), (0, 4.51, 0), (0, 0, 5.51), (0, 0, -0.51), (4, 4, 4), (np.nan, 0, 0)]
    assert grid.contains(inside).tolist() == [True] * 4
    assert grid.contains(outside).tolist() == [False] * 7
    assert bool(grid.contains((4.4, 3.4, 5.4))) is False  # axes swapped: 5 x 4 would hold it


def test_a_place_on_an_outer_face_is_of_the_outermost_voxel():
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3))
    places = [(-0.5, -0.5, -0.5), (3.5, 4.5, 5.5), (3.4, 0.5, 4.6), (-0.5004, 4.5004, 2)]
    expected = [[0, 0, 0], [3, 4, 5], [3, 1, 5], [0, 4, 2]]
    assert grid.voxel_of(places).tolist() == expected


# Crop and pad


def test_crop_keeps_each_voxel_in_its_place():
    crop = oblique().crop((1, 2, 3), (2, 3, 1))
    assert crop.shape == (2, 3, 1)
    assert crop.index_to_world((0, 0, 0)) == pytest.approx([1 + 4 - 12, 2 + 3 + 16, 3 + 6])
    assert crop.index_in(oblique(), (1, 1, 0)) == pytest.approx([2, 3, 3])
    assert crop.spacing_mm == pytest.approx(oblique().spacing_mm)


def test_crop_may_reach_outside():
    crop = permuted().crop((-2, 3, -1), (10, 9, 8))
    assert crop.shape == (10, 9, 8)
    assert crop.index_in(permuted(), (2, 0, 1)) == pytest.approx([0, 3, 0])


def test_pad_and_crop_are_inverse():
    grid = oblique()
    padded = grid.pad((1, 2, 3), (4, 5, 6))
    assert padded.shape == (9, 12, 15)
    assert padded.index_to_world((1, 2, 3)) == pytest.approx(grid.index_to_world((0, 0, 0)))
    assert padded.crop((1, 2, 3), grid.shape).close_to(grid, 1e-9)
    assert grid.crop((1, 1, 1), (2, 3, 4)).pad((1, 1, 1), (1, 1, 1)).close_to(grid, 1e-9)


def test_pad_needs_three_numbers_on_each_side():
    with pytest.raises(ValueError):
        oblique().pad((1, 2), (1, 2, 3))


# Respace


def test_respace_shares_the_outer_corner_and_floors_the_length():
    grid = Grid.from_spacing((10, 7, 5), (0.98, 1.5, 3.27), (5, 6, 7))
    new = grid.respace((1, 1, 1))
    assert new.shape == (9, 10, 16)  # floor of 9.8, 10.5, 16.35
    assert new.index_to_world((-0.5, -0.5, -0.5)) == pytest.approx(grid.index_to_world((-0.5, -0.5, -0.5)))
    assert new.index_to_world((0, 0, 0)) == pytest.approx([5 - 0.49 + 0.5, 6 - 0.75 + 0.5, 7 - 1.635 + 0.5])


def test_respace_of_an_oblique_grid_keeps_its_directions():
    new = oblique().respace((2.5, 4, 1))
    assert new.shape == (8, 12, 12)  # 4 * 5 / 2.5, floor(5 * 10 / 4), 6 * 2 / 1
    assert new.spacing_mm == pytest.approx([2.5, 4, 1])
    assert new.affine[:3, 0] == pytest.approx([2, 1.5, 0])
    assert new.index_to_world((-0.5,) * 3) == pytest.approx(oblique().index_to_world((-0.5,) * 3))


def test_respace_maps_indices_as_the_released_code_does():
    # docs/released.md, "Intensities and spacing": old index x = (x' + 0.5) / s - 0.5 with s = old spacing / new spacing
    grid = Grid.from_spacing((20, 20, 20), (0.8, 2, 3))
    index_new = np.array([3.0, 7, 11])
    expected = (index_new + 0.5) / np.array([0.8, 2, 3]) - 0.5
    assert grid.respace((1, 1, 1)).index_in(grid, index_new) == pytest.approx(expected)


@pytest.mark.parametrize("spacing", [0.9765625, np.float64(np.float32(0.97656202)), 0.1, 0.3, 3.0000001])
def test_respace_counts_a_length_that_is_whole_but_for_rounding_as_whole(spacing):
    grid = Grid.from_spacing((30, 30, 30), (spacing * (1 + 1e-7), spacing * (1 - 1e-7), spacing))
    assert grid.respace((spacing,) * 3).shape == (30, 30, 30)


def test_respace_to_the_same_spacing_changes_nothing():
    assert permuted().respace(permuted().spacing_mm).close_to(permuted(), 1e-9)


def test_respace_leaves_at_least_one_voxel():
    assert Grid.from_spacing((3, 3, 1), (1, 1, 1)).respace((2, 10, 10)).shape == (1, 1, 1)


# Reorient


@pytest.mark.parametrize("axes", ALL_AXES)
def test_reorient_names_its_axes_and_comes_back(axes):
    grid = permuted()
    new = grid.reorient(axes)
    assert new.axes == axes
    assert new.voxel_volume_ml == pytest.approx(grid.voxel_volume_ml)
    assert new.reorient(grid.axes).close_to(grid, 1e-9)


@pytest.mark.parametrize("axes", ["RAS", "SAR", "PIL", "ILA"])
@pytest.mark.parametrize("grid", [oblique(), permuted()], ids=["oblique", "permuted"])
def test_reorient_moves_no_voxel(grid, axes):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    permutation, flips = grid.permutation_to(axes)
    moved = np.flip(array.transpose(permutation), [a for a, flip in enumerate(flips) if flip])
    new = grid.reorient(axes)
    assert moved.shape == new.shape
    for index_new in np.ndindex(new.shape):
        index_old = np.rint(new.index_in(grid, index_new)).astype(int)
        assert array[tuple(index_old)] == moved[index_new]


def test_reorient_by_hand():
    # LSA -> RAS: the new axes are i flipped (from L), k (A), j (S)
    assert permuted().permutation_to("RAS") == ((0, 2, 1), (True, False, False))
    new = permuted().reorient("RAS")
    assert new.shape == (4, 6, 5)
    assert new.index_to_world((0, 0, 0)) == pytest.approx([10 - 2 * 3, -20, 30])
    assert new.spacing_mm == pytest.approx([2, 3, 5])


@pytest.mark.parametrize("axes", ["RA", "RASS", "RRA", "RLS", "ras", "XYZ", "", "RAX", "APS"])
def test_reorient_refuses_what_is_not_three_axes(axes):
    with pytest.raises(GeometryError, match=f"axes '{axes}'; expected one letter each of R/L, A/P, S/I; write"):
        permuted().reorient(axes)


# Equality, closeness, immutability


def test_equal_grids_are_equal_and_hash_alike():
    assert oblique() == oblique() and hash(oblique()) == hash(oblique())
    assert oblique() != permuted()
    assert oblique() != Grid((4, 6, 5), OBLIQUE)
    assert oblique() != "oblique"
    assert len({oblique(), oblique(), permuted()}) == 2


def test_minus_zero_is_zero():
    negative = OBLIQUE.copy()
    negative[2, 0] = -0.0
    assert Grid((4, 5, 6), negative) == oblique()
    assert hash(Grid((4, 5, 6), negative)) == hash(oblique())


def test_close_to_looks_at_the_corners():
    grid = Grid.from_spacing((101, 101, 101), (1, 1, 1))
    assert grid.close_to(Grid.from_spacing((101, 101, 101), (1, 1, 1), (0.009, 0, 0)))
    assert not grid.close_to(Grid.from_spacing((101, 101, 101), (1, 1, 1), (0.011, 0, 0)))
    assert not grid.close_to(Grid.from_spacing((101, 101, 101), (1, 1.0002, 1)))  # 0.02 mm at the far end
    assert grid.close_to(Grid.from_spacing((101, 101, 101), (1, 1.0002, 1)), tolerance_mm=0.05)
    assert not grid.close_to(Grid.from_spacing((101, 101, 100), (1, 1, 1)), tolerance_mm=10)


def test_a_grid_cannot_be_changed():
    grid = oblique()
    with pytest.raises(FrozenInstanceError):
        grid.shape = (1, 1, 1)  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9


def test_a_grid_does_not_follow_the_array_that_it_was_made_from():
    affine = OBLIQUE.copy()
    grid = Grid((4, 5, 6), affine)
    affine[0, 3] = 99
    assert grid == oblique()


def test_new_grids_leave_the_old_one_alone():
    grid = permuted()
    grid.crop((1, 1, 1), (2, 2, 2)), grid.pad((1, 1, 1), (1, 1, 1)), grid.respace((1, 1, 1)), grid.reorient("RAS")
    assert grid == permuted()


# Refusals


@pytest.mark.parametrize("shape", [(0, 5, 6), (4, -5, 6), (4, 5), (4, 5, 6, 1)])
def test_refuses_a_shape_without_three_axes_of_voxels(shape):
    with pytest.raises(GeometryError, match=r"a grid of shape .*; expected three axes with at least one voxel each"):
        Grid(shape, np.eye(4))


def test_refuses_spacing_of_zero():
    with pytest.raises(GeometryError, match="a spacing of 1 x 0 x 2 mm; expected positive spacing on each axis"):
        Grid((4, 5, 6), np.diag([1.0, 0, 2, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_an_affine_that_is_not_finite(value):
    affine = OBLIQUE.copy()
    affine[1, 3] = value
    with pytest.raises(GeometryError, match="missing or infinite entries; expected a finite 4 x 4 matrix"):
        Grid((4, 5, 6), affine)


def test_refuses_an_affine_of_another_shape():
    with pytest.raises(GeometryError, match="expected a finite 4 x 4 matrix"):
        Grid((4, 5, 6), np.eye(3))


def test_refuses_axes_that_coincide():
    affine = np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(
        GeometryError, match=r"a singular affine \(axes that coincide\); expected three independent axes"
    ):
        Grid((4, 5, 6), affine)


def test_there_and_back_is_the_index_itself_with_no_last_bits() -> None:
    """Halves are on the border between two voxels: a last bit would choose another voxel on another processor."""
    tilted = Grid((50, 40, 30), [[0.7, 0.1, 0, -313.7], [-0.1, 0.7, 0.3, 1000.1], [0, -0.2, 2.5, -77.3], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*([np.arange(-3, 50, 3.5)] * 3), indexing="ij"), -1)
    back = tilted.world_to_index(tilted.index_to_world(index))
    assert np.array_equal(back, index)
    assert not np.signbit(back[index == 0]).any()


def test_world_coordinates_are_products_added_one_by_one() -> None:
    """The same digits on every machine, since files hold them: computed here term by term in Python floats."""
    affine = [[0.7, 0.1, 0.3, -313.7], [-0.1, 0.7, 0.3, 1000.1], [0.2, -0.2, 2.5, -77.3], [0, 0, 0, 1]]
    i, j, k = 17.3, 0.1, -29.7
    expected = [i * a + j * b + k * c + t for a, b, c, t in affine[:3]]
    assert Grid((4, 5, 6), affine).index_to_world((i, j, k)).tolist() == expected


def test_a_grid_in_the_world_of_dicom_and_back():
    grid = Grid.from_lps((3, 4, 5), np.diag([0.5, 0.7, 2.5]), (-10, 20, 30))
    assert grid.axes == "LPS" and grid.index_to_world((1, 1, 1)) == pytest.approx([9.5, -20.7, 32.5])
    origin, spacing, direction = grid.to_lps()
    assert (origin, spacing) == (pytest.approx([-10, 20, 30]), pytest.approx([0.5, 0.7, 2.5]))
    assert direction == pytest.approx(np.eye(3))

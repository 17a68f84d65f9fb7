"""Interpolation between grids: values worked out by hand, and the same numbers as scipy, torch and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import torch

from voxsam import resample as module
from voxsam.geometry import Grid
from voxsam.resample import parallel_axes, resample
from voxsam.volume import Volume

ROUNDING = 2e-5  # float32 weights on values of about 1 to 10
ORDERS = ["RAS", "LPS", "SAR", "IPL", "ASL", "PIR"]


def rotation(degrees: float, axis: int) -> np.ndarray:
    """(3, 3) rotation about a world axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    a, b = [n for n in range(3) if n != axis]
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


def oblique(shape=(9, 8, 7), spacing=(0.8, 1.3, 2.1), origin=(-5.0, 11.0, 3.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(25, 0) @ rotation(-40, 2) @ np.diag(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


def noise(grid: Grid, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).standard_normal(grid.shape).astype(np.float32), grid)


def ramp(grid: Grid) -> np.ndarray:
    """A linear function of world coordinates at the grid's voxels; no two axes have the same slope."""
    return grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) @ [0.3, -0.7, 1.1] + 4


def by_scipy(volume: Volume, target: Grid, order: int = 1) -> np.ndarray:
    index = volume.grid.world_to_index(target.index_to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    return scipy.ndimage.map_coordinates(
        volume.array.astype(float), np.moveaxis(index, -1, 0), order=order, mode="nearest"
    )


class Watched(np.ndarray):
    """An array that records how many voxels are read from it."""

    taken: list[int]

    def __getitem__(self, key):  # type: ignore[override]
        part = np.asarray(super().__getitem__(key))
        self.taken.append(part.size)
        return part


# Linear


def test_linear_by_hand_with_the_released_mapping() -> None:
    """Voxel x of the new grid reads (x + 0.5) / s - 0.5: for 2 -> 1 mm (s = 2) -0.25 (clamped), 0.25, 0.75, ..."""
    source = Grid.from_spacing((1, 3, 1), (5, 2, 5))
    target = source.respace((5, 1, 5))
    got = resample(Volume(np.array([[[0.0], [4.0], [12.0]]]), source), target)
    assert target.shape == (1, 6, 1)
    np.testing.assert_allclose(got[0, :, 0], [0, 1, 3, 6, 10, 12], atol=ROUNDING)


def test_linear_by_hand_when_shrinking() -> None:
    """Spacing 1 -> 1.5 mm (s = 2/3): places 0.25, 1.75, 3.25 and 4.75; the grid has floor(7 * 2 / 3) = 4 voxels."""
    source = Grid.from_spacing((7, 1, 1), (1, 1, 1))
    target = source.respace((1.5, 1, 1))
    got = resample(Volume(np.array([0, 4, 8, 0, 4, 8, 16.0]).reshape(7, 1, 1), source), target)
    np.testing.assert_allclose(got[:, 0, 0], [1, 7, 1, 7], atol=ROUNDING)


@pytest.mark.parametrize("axes", ORDERS)
def test_linear_equals_map_coordinates_on_permuted_flipped_grids(axes: str) -> None:
    source = Grid.from_spacing((9, 7, 11), (0.7, 1.9, 1.1), (3.0, -20.0, 7.5))
    target = source.reorient(axes).respace((1.3, 0.6, 1.7)).crop((-2, 1, 0), (6, 9, 8))
    volume = noise(source)
    got = resample(volume, target)
    assert got.shape == target.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, by_scipy(volume, target), atol=ROUNDING)


@pytest.mark.parametrize("axes", ORDERS)
@pytest.mark.parametrize("ratio", [(2, 3, 1), (1 / 2, 2, 1 / 3), (3 / 4, 2 / 3, 3 / 2)])
def test_linear_equals_torch_interpolate_on_corner_aligned_grids(axes: str, ratio: tuple[float, ...]) -> None:
    source = Grid.from_spacing((12, 24, 36), (1.0, 2.5, 0.75), (-4.0, 2.0, 9.0))
    turned = source.reorient(axes)
    target = turned.respace(turned.spacing_mm / ratio)
    volume = noise(source)
    order, flips = source.permutation_to(axes)
    array = volume.array.transpose(order)
    array = np.flip(array, [axis for axis in range(3) if flips[axis]])
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(array.copy())[None, None], size=target.shape, mode="trilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(resample(volume, target), wanted, atol=ROUNDING)


@pytest.mark.parametrize("axes", ORDERS)
def test_a_linear_ramp_survives_the_way_to_a_finer_grid_and_back(axes: str) -> None:
    source = Grid.from_spacing((8, 9, 10), (1.5, 0.9, 2.0), (1.0, 2.0, -3.0))
    fine = source.reorient(axes).respace((0.5, 0.45, 0.5))
    once = resample(Volume(ramp(source), source), fine)
    back = resample(Volume(once, fine), source)
    inner = (slice(1, -1),) * 3  # at the outermost voxels the fine grid is clamped
    np.testing.assert_allclose(back[inner], ramp(source)[inner], atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "area", "nearest"])
def test_edges_are_clamped(method) -> None:
    source = Grid.from_spacing((3, 4, 5), (1, 2, 3))
    volume = noise(source)
    far = resample(volume, source.crop((-50, 0, 60), (4, 4, 5)), method)
    for i in range(4):
        np.testing.assert_allclose(far[i], np.repeat(volume.array[0, :, -1:], 5, 1), atol=ROUNDING)


def test_the_same_grid_gives_the_same_array_and_leaves_the_input_alone() -> None:
    volume = noise(oblique())
    before = volume.array.copy()
    got = resample(volume, volume.grid)
    np.testing.assert_array_equal(got, before)
    assert not np.shares_memory(got, volume.array)
    np.testing.assert_array_equal(volume.array, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float64, bool])
def test_every_voxel_type_is_read_as_float32(dtype) -> None:
    grid = Grid.from_spacing((4, 4, 4), (1, 1, 1))
    array = np.random.default_rng(1).integers(0, 2, grid.shape).astype(dtype)
    got = resample(Volume(array, grid), grid.crop((0, 0, 0), (2, 3, 4)))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, array[:2, :3].astype(np.float32))


# Area


def test_area_by_hand() -> None:
    """Spacing 1 -> 2 mm: a triangle of half width 2 at 2.5 weights voxels 1..4 by 1/8, 3/8, 3/8, 1/8."""
    source = Grid.from_spacing((6, 1, 1), (1, 1, 1))
    got = resample(Volume(np.array([8, 16, 0, 8, 64, 8.0]).reshape(6, 1, 1), source), source.respace((2, 1, 1)), "area")
    # The first and last reach one voxel beyond the edge, which is read again.
    wanted = [(8 + 3 * 8 + 3 * 16 + 0) / 8, (16 + 0 + 3 * 8 + 64) / 8, (8 + 3 * 64 + 3 * 8 + 8) / 8]
    np.testing.assert_allclose(got[:, 0, 0], wanted, atol=ROUNDING)


@pytest.mark.parametrize("axes", ORDERS)
def test_area_keeps_constants_and_ramps(axes: str) -> None:
    source = Grid.from_spacing((30, 24, 36), (1.0, 0.8, 1.5))
    target = source.reorient(axes).respace((3.0, 2.9, 3.7))
    ones = resample(Volume(np.full(source.shape, 7, np.int16), source), target, "area")
    np.testing.assert_allclose(ones, 7, atol=ROUNDING)
    got = resample(Volume(ramp(source), source), target, "area")
    inner = (slice(1, -1),) * 3
    # A triangle whose width is not a whole number of voxels is off by up to a twentieth of a voxel.
    lean = 0.05 * (0.3 * 1.0 + 0.7 * 0.8 + 1.1 * 1.5)
    np.testing.assert_allclose(got[inner], ramp(target)[inner], atol=lean)


def test_area_keeps_a_ramp_exactly_where_the_spacing_is_a_multiple() -> None:
    source = Grid.from_spacing((30, 24, 36), (1.0, 0.8, 1.5))
    target = source.reorient("SLA").respace((4.5, 3.0, 1.6))
    got = resample(Volume(ramp(source), source), target, "area")
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(got[inner], ramp(target)[inner], atol=1e-4)


def test_area_averages_noise_and_equals_linear_on_finer_grids() -> None:
    source = Grid.from_spacing((40, 40, 20), (1, 1, 3))
    volume = noise(source)
    coarse = source.respace((4, 4, 3))
    assert resample(volume, coarse, "area")[1:-1, 1:-1].std() < 0.25
    assert resample(volume, coarse, "linear")[1:-1, 1:-1].std() > 0.45
    fine = source.respace((0.7, 1, 1.1))
    np.testing.assert_array_equal(resample(volume, fine, "area"), resample(volume, fine, "linear"))


# Nearest


@pytest.mark.parametrize("axes", ORDERS)
def test_nearest_gives_labels_only_and_the_nearest_ones(axes: str) -> None:
    source = Grid.from_spacing((9, 7, 11), (0.7, 1.9, 1.1), (3.0, -20.0, 7.5))
    labels = Volume(np.random.default_rng(2).integers(0, 9, source.shape).astype(np.uint8), source, "SEG")
    target = source.reorient(axes).respace((0.41, 0.63, 1.7)).crop((-2, 1, 0), (9, 9, 6))
    got = resample(labels, target, "nearest")
    assert set(np.unique(got)) <= set(range(9))
    np.testing.assert_array_equal(got, by_scipy(labels, target, order=0))


# Oblique


def test_parallel_axes_names_the_partner_of_each_target_axis() -> None:
    source = oblique()
    order, _ = source.permutation_to("SAR")
    partner = parallel_axes(source.reorient("SAR").respace((1, 1, 1)), source)
    assert partner is not None
    assert tuple(partner) == order
    assert parallel_axes(Grid.from_spacing((4, 4, 4), (1, 1, 1)), source) is None


@pytest.mark.parametrize(("method", "order"), [("linear", 1), ("nearest", 0)])
def test_oblique_pairs_equal_map_coordinates(method, order: int) -> None:
    volume = noise(oblique())
    target = Grid.from_spacing((12, 10, 14), (1.1, 0.9, 0.7), (-8.0, 8.0, 1.0))
    assert parallel_axes(target, volume.grid) is None
    np.testing.assert_allclose(resample(volume, target, method), by_scipy(volume, target, order), atol=ROUNDING)


def test_oblique_pairs_equal_simpleitk() -> None:
    volume = noise(oblique((20, 20, 12)))
    centre = volume.grid.index_to_world((9.5, 9.5, 5.5))
    target = Grid.from_spacing((4, 5, 6), (0.6, 0.5, 0.4), centre - 1)
    got = resample(volume, target)
    np.testing.assert_allclose(got, _by_simpleitk(volume, target), atol=1e-4)


def _by_simpleitk(volume: Volume, target: Grid) -> np.ndarray:
    def describe(image: sitk.Image, grid: Grid) -> sitk.Image:
        lps = np.diag([-1, -1, 1, 1]) @ grid.affine
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetSpacing(grid.spacing_mm.tolist())
        image.SetDirection((lps[:3, :3] / grid.spacing_mm).flatten().tolist())
        return image

    image = describe(sitk.GetImageFromArray(volume.array.transpose(2, 1, 0)), volume.grid)
    reference = describe(sitk.Image(*target.shape, sitk.sitkFloat32), target)
    out = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, -99.0, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(out).transpose(2, 1, 0)


# What is read


def test_a_small_target_on_an_impossibly_large_scan() -> None:
    """10^15 voxels that share one in memory: only the covered part may be copied."""
    array = np.broadcast_to(np.int16(5), (100_000, 100_000, 100_000))
    source = Grid.from_spacing(array.shape, (0.5, 0.25, 1.0)).reorient("LPS")
    target = source.reorient("SAR").respace((1, 1, 1)).crop((40_000, 9_000, 20_000), (8, 9, 10))
    for method in ("linear", "area", "nearest"):
        np.testing.assert_array_equal(resample(Volume(array, source), target, method), 5)


@pytest.mark.parametrize("axes", ["RAS", "SAR"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_part_of_the_same_model_grid_is_copied(axes: str, dtype) -> None:
    """At whole-voxel offsets nothing is interpolated, and the caller may write into the result."""
    grid = Grid.from_spacing((9, 8, 7), (1, 2, 3))
    array = np.arange(9 * 8 * 7, dtype=dtype).reshape(grid.shape)
    got = resample(Volume(array, grid), grid.crop((2, 3, 1), (4, 3, 5)).reorient(axes))
    part = array[2:6, 3:6, 1:6]
    np.testing.assert_array_equal(got, part if axes == "RAS" else part.transpose(2, 1, 0))
    assert got.dtype == np.float32 and got.flags.c_contiguous
    got[...] = -1
    assert array.min() == 0


def test_only_the_covered_voxels_are_taken() -> None:
    source = Grid.from_spacing((50, 60, 70), (1, 1, 1))
    array = noise(source).array.view(Watched)
    array.taken = []
    resample(Volume(array, source), source.crop((10, 20, 30), (4, 5, 6)).respace((0.5, 0.5, 0.5)))
    assert array.taken == [6 * 7 * 8]  # one more voxel on each side


@pytest.mark.parametrize("method", ["linear", "area"])
@pytest.mark.parametrize("axes", ["SAR", "PIR"])
def test_blocks_of_places_meet_without_a_seam(axes, method, monkeypatch):
    """Every block size gives the same numbers; the target is coarser on one axis, finer on another, and larger."""
    volume = noise(oblique((23, 31, 17)))
    target = volume.grid.reorient(axes).respace((1.9, 0.7, 1.1)).pad((2, 0, 3), (1, 5, 0))
    found = {}
    for block in (1, 7, 1000):
        monkeypatch.setattr(module, "BLOCK", block)
        found[block] = resample(volume, target, method)
    assert np.abs(found[1] - found[1000]).max() < ROUNDING
    assert np.abs(found[7] - found[1000]).max() < ROUNDING
    if method == "linear":
        index = volume.grid.world_to_index(target.index_to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
        clipped = np.clip(index, 0, np.array(volume.grid.shape) - 1)
        expected = scipy.ndimage.map_coordinates(volume.array.astype(float), np.moveaxis(clipped, -1, 0), order=1)
        assert np.abs(found[7] - expected).max() < ROUNDING


def test_the_source_may_be_of_any_type_and_layout():
    grid = oblique((23, 31, 17))
    values = np.random.default_rng(0).integers(-1000, 1000, grid.shape).astype(np.int16)
    target = grid.reorient("SAR").respace((1.9, 0.7, 1.1))
    expected = resample(Volume(values.astype(np.float32), grid), target, "area")
    for array in (values, np.asfortranarray(values), values.astype(">i2"), values.repeat(2, 1)[:, ::2]):
        assert np.array_equal(resample(Volume(array, grid), target, "area"), expected)

"""Model grid, window, crop and paste: a place in mm is the same crop voxel, whatever the file's axis order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from voxsam.geometry import Grid
from voxsam.io import read_volume
from voxsam.preprocess import PAPER, RELEASED, Preprocessing, Window, paste, paste_box, read_crop
from voxsam.volume import Volume

GOLDEN_TOLERANCE = 1e-3  # the golden scan was read through float32 files
PLAIN = Preprocessing(clip=(-1e6, 1e6), mean=0, sd=1)
ALL_AXES = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)  # all 48 ways to lay three axes
]
TILTED = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def oblique(shape=(30, 24, 20), spacing=(1.0, 1.5, 2.5), origin=(-7.0, 4.0, 50.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = TILTED @ np.diag(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


def world_of(grid: Grid) -> np.ndarray:
    return grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def ramp(grid: Grid) -> np.ndarray:
    """A linear function of world mm; swapped or flipped axes give other values."""
    return world_of(grid) @ [0.3, -0.7, 1.1] + 4


@pytest.mark.parametrize("axes", ALL_AXES)
@pytest.mark.parametrize("start", [(2, 3, 1), (-5, 12, -3)], ids=["inside", "beyond the scan"])
def test_a_mirrored_window_is_the_same_box_seen_in_a_mirror(axes: str, start: tuple[int, int, int]) -> None:
    grid = oblique()
    volume = Volume(ramp(grid).astype(np.float32), grid, "CT")
    preprocessing = PLAIN.model_copy(update={"axes": axes, "spacing_mm": (1.5, 2.0, 2.5)})
    window = Window(preprocessing.model_grid(grid), start, (8, 6, 7))
    mirror = window.mirrored()
    assert mirror.model_grid.axes[:2] == axes[:2] and mirror.model_grid.axes[2] != axes[2]
    crop = read_crop(volume, window, preprocessing)
    np.testing.assert_allclose(read_crop(volume, mirror, preprocessing), crop[..., ::-1], atol=1e-4)
    assert crop.std() > 0 and np.abs(crop - crop[..., ::-1]).max() > 0.1
    assert (mirror.mirrored().start, mirror.mirrored().shape) == (window.start, window.shape)
    assert mirror.mirrored().model_grid.close_to(window.model_grid, 1e-9)


# The table of docs/released.md, "Intensities and spacing"


@pytest.mark.parametrize(
    ("name", "released", "paper", "mean", "sd"),
    [
        ("kits", (-54, 247), (-52, 247), 59.53867, 55.457336),
        ("lits", (-48, 163), (-17, 201), 60.057533, 40.198017),
        ("pancreas", (-39, 204), (-39, 204), 68.45214, 63.422806),
        ("colon", (-57, 175), (-57, 175), 65.175035, 32.651197),
    ],
)
def test_the_statistics_of_the_released_data_sets(name: str, released, paper, mean: float, sd: float) -> None:
    assert RELEASED[name].clip == released
    assert PAPER[name].clip == paper
    assert (RELEASED[name].mean, RELEASED[name].sd) == (mean, sd)
    if name == "lits":
        mean, sd = 99.40, 39.39
    assert (PAPER[name].mean, PAPER[name].sd) == (mean, sd)
    for profile in (RELEASED, PAPER):
        assert profile[name].spacing_mm == (1, 1, 1)
        assert profile[name].axes == ("IPL" if name == "kits" else "SAR")
        assert profile[name].interpolation == "linear"


def test_normalise_clips_then_centres_then_scales() -> None:
    preprocessing = Preprocessing(clip=(-50, 150), mean=50, sd=40)
    got = preprocessing.normalise(np.array([-1000, -50, 50, 90, 150, 3000], np.int16))
    np.testing.assert_allclose(got, [-2.5, -2.5, 0, 1, 2.5, 2.5])
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sd": 0}, "sd"),
        ({"sd": float("nan")}, "sd"),
        ({"mean": float("nan")}, "mean"),
        ({"clip": (10, 10)}, "clip"),
        ({"spacing_mm": (1, 0, 1)}, "spacing_mm"),
        ({"axes": "SAS"}, "axes"),
        ({"axes": "sar"}, "axes"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"window": 3}, "window"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Preprocessing(**{"clip": (-50, 150), "mean": 50, "sd": 40, **wrong})


# The model grid


def test_the_model_grid_of_a_kits_file_is_the_stored_order() -> None:
    """KiTS files are stored slice first, as I,P,L: the model's axes are the file's, and only the spacing changes."""
    stored = Grid.from_spacing((1, 1, 1), (1, 1, 1)).reorient("IPL").affine[:3, :3] @ np.diag((3.0, 0.5, 0.75))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = stored, (10, 20, 30)
    file = Grid((20, 41, 30), affine)
    assert file.axes == "IPL"
    model_grid = RELEASED["kits"].model_grid(file)
    assert model_grid.shape == (60, 20, 22)  # floor(20 * 3), floor(41 * 0.5), floor(30 * 0.75)
    assert model_grid.axes == "IPL"
    np.testing.assert_allclose(model_grid.spacing_mm, 1)
    np.testing.assert_allclose(model_grid.index_to_world((-0.5, -0.5, -0.5)), file.index_to_world((-0.5, -0.5, -0.5)))


def test_the_model_grid_of_an_msd_file_is_the_order_reversed() -> None:
    file = Grid.from_spacing((40, 30, 10), (0.75, 0.5, 2.5), (-9, 5, 7))
    model_grid = RELEASED["colon"].model_grid(file)
    assert model_grid.shape == (25, 15, 30)
    assert model_grid.axes == "SAR"
    # First voxel: centre half a millimetre inside the file's first corner.
    corner = np.array([-9, 5, 7]) - np.array([0.75, 0.5, 2.5]) / 2
    np.testing.assert_allclose(model_grid.index_to_world((0, 0, 0)), corner + 0.5)
    np.testing.assert_allclose(
        model_grid.index_to_world((1, 0, 0)), corner + np.array([0.5, 0.5, 1.5])
    )  # d runs along z


@pytest.mark.parametrize("axes", ALL_AXES)
def test_model_grids_of_all_axis_orders_have_the_models_axes(axes: str) -> None:
    file = oblique().reorient(axes)
    for name in ("kits", "colon"):
        model_grid = RELEASED[name].model_grid(file)
        assert model_grid.axes == RELEASED[name].axes
        np.testing.assert_allclose(model_grid.spacing_mm, 1)


@pytest.mark.parametrize("axes", ALL_AXES)
@pytest.mark.parametrize("model", ["kits", "colon"])
def test_the_same_place_is_the_same_crop_voxel_whatever_the_axis_order(axes: str, model: str) -> None:
    """The key test: one scan, stored in all 48 ways, gives the same crop."""
    preprocessing = RELEASED[model]
    first = oblique()
    # Without any symmetry, and not linear.
    place = world_of(first)
    values = 60 + 80 * np.sin(place @ [0.31, 0.05, 0.11]) + 40 * np.cos(place @ [-0.1, 0.23, 0.02])
    order, flips = first.permutation_to(axes)
    array = np.flip(values.transpose(order), [a for a in range(3) if flips[a]])
    volume = Volume(np.ascontiguousarray(array), first.reorient(axes))
    click_mm = first.index_to_world((4, 15, 11))

    wanted_model_grid = preprocessing.model_grid(first)
    wanted_window = Window.around(wanted_model_grid, wanted_model_grid.world_to_index(click_mm), (24, 24, 24))
    wanted = read_crop(Volume(values, first), wanted_window, preprocessing)

    model_grid = preprocessing.model_grid(volume.grid)
    window = Window.around(model_grid, model_grid.world_to_index(click_mm), (24, 24, 24))
    assert window.start == wanted_window.start
    np.testing.assert_allclose(window.grid.affine, wanted_window.grid.affine, atol=1e-9)
    np.testing.assert_allclose(read_crop(volume, window, preprocessing), wanted, atol=1e-5)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "IPL", "PIR"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.9, 2.4), (3.0, 0.5, 1.25)])
def test_a_crop_holds_the_scans_values_at_its_own_millimetres(axes: str, spacing) -> None:
    """One function of world mm, sampled on scans of every spacing and axis order: the crop has its values again."""
    upright = oblique((40, 40, 40), (1, 1, 1)).respace(spacing)
    file = upright.reorient(axes)
    volume = Volume(ramp(file), file)
    model_grid = PLAIN.model_grid(file)
    window = Window.around(model_grid, np.array(model_grid.shape) / 2 - 0.5, (12, 14, 16))
    np.testing.assert_allclose(read_crop(volume, window, PLAIN), ramp(window.grid), atol=1e-4)


# Windows


def test_a_window_has_its_voxel_of_half_the_shape_at_the_centre() -> None:
    model_grid = Grid.from_spacing((50, 50, 50), (1, 1, 1))
    assert Window.around(model_grid, (20.4, 20.5, 20.6), (8, 9, 10)).start == (16, 17, 16)
    assert Window.around(model_grid, (0, 49, 2.5), (8, 8, 8)).start == (-4, 45, -1)


@pytest.mark.parametrize(
    ("start", "inside"),
    [
        ((0, 0, 0), ((0, 6), (0, 6), (0, 6))),
        ((-2, 3, 5), ((2, 6), (0, 6), (0, 6))),
        ((7, -1, 9), ((0, 3), (1, 6), (0, 3))),
        ((-6, 0, 0), None),
        ((0, 11, 0), None),
        ((0, 0, -40), None),
        ((0, 0, 40), None),
    ],
)
def test_what_lies_outside_the_scan_is_zero_after_normalisation(start, inside) -> None:
    scan = Grid.from_spacing((10, 11, 12), (1, 1, 1))
    preprocessing = Preprocessing(axes="RAS", clip=(-100, 100), mean=-30, sd=10)
    volume = Volume(np.full(scan.shape, 20, np.int16), scan)
    crop = read_crop(volume, Window(preprocessing.model_grid(scan), start, (6, 6, 6)), preprocessing)
    wanted = np.zeros((6, 6, 6))
    if inside is not None:
        wanted[tuple(slice(*ends) for ends in inside)] = 5
    np.testing.assert_allclose(crop, wanted)
    assert crop.dtype == np.float32


def test_a_scan_smaller_than_the_crop_is_padded_on_both_sides() -> None:
    scan = Grid.from_spacing((4, 5, 3), (1, 1, 1))
    preprocessing = PLAIN.model_copy(update={"axes": "RAS"})
    crop = read_crop(Volume(np.ones(scan.shape), scan), Window(scan, (-3, -2, -4), (10, 10, 10)), preprocessing)
    assert crop.sum() == 60
    assert crop[3:7, 2:7, 4:7].all()


def test_a_crop_of_an_impossibly_large_scan_reads_its_own_part_only() -> None:
    array = np.broadcast_to(np.int16(40), (100_000, 90_000, 80_000))
    scan = Grid.from_spacing(array.shape, (0.7, 0.7, 1.3)).reorient("LPS")
    model_grid = RELEASED["lits"].model_grid(scan)
    crop = read_crop(Volume(array, scan), Window(model_grid, (50_000, 20_000, 9_000), (32, 32, 32)), RELEASED["lits"])
    np.testing.assert_allclose(crop, (40 - 60.057533) / 40.198017, atol=1e-6)


# Back to the scan


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "IPL", "PIR"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.9, 2.4), (3.0, 0.5, 1.25)])
def test_a_crop_comes_back_at_its_own_millimetres(axes: str, spacing) -> None:
    scan = oblique((40, 40, 40), (1, 1, 1)).respace(spacing).reorient(axes)
    model_grid = PLAIN.model_grid(scan)
    window = Window.around(model_grid, np.array(model_grid.shape) * 0.45, (12, 14, 16))
    box, values = paste(ramp(window.grid).astype(np.float32), window, scan)
    assert values.shape == tuple(b.stop - b.start for b in box)
    pasted = np.full(scan.shape, np.nan)
    pasted[box] = values
    at = window.grid.world_to_index(world_of(scan))
    last = np.array(window.shape) - 1
    inside = ((at >= 0) & (at <= last)).all(-1)
    assert inside.any()
    np.testing.assert_allclose(pasted[inside], ramp(scan)[inside], atol=1e-4)
    # Beyond the crop the probability falls to 0 within one crop voxel, and the box is only little larger than that.
    beyond = ((at <= -1) | (at >= last + 1)).any(-1)
    np.testing.assert_allclose(np.nan_to_num(pasted[beyond]), 0, atol=1e-6)
    step = np.abs(np.linalg.inv(window.grid.affine)[:3, :3] @ scan.affine[:3, :3]).sum(1)  # crop voxels per scan voxel
    reached = ((at > -1) & (at < last + 1)).all(-1)
    assert not np.isnan(pasted[reached]).any()
    far = ((at < -1 - 1.01 * step) | (at > last + 1 + 1.01 * step)).any(-1)
    assert np.isnan(pasted[far]).all()


@pytest.mark.parametrize("spacing", [(0.5, 0.4, 0.7), (1.0, 1.0, 1.0), (2.0, 3.1, 5.0)])
@pytest.mark.parametrize("axes", ["RAS", "SAR", "LPI"])
def test_at_the_border_of_the_scan_the_outermost_value_holds(spacing, axes: str) -> None:
    """If all of the scan is certainly tumour, so is the result, even where the model grid ends before the scan."""
    scan = Grid.from_spacing((23, 31, 27), spacing).reorient(axes)
    preprocessing = PLAIN.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)})
    model_grid = preprocessing.model_grid(scan)
    for window in (Window(model_grid, (0, 0, 0), model_grid.shape), Window(model_grid, (-3, -5, -1), (60, 60, 60))):
        box, values = paste(np.ones(window.shape, np.float32), window, scan)
        assert box == tuple(slice(0, n) for n in scan.shape)
        np.testing.assert_allclose(values, 1, atol=1e-6)


def test_a_crop_at_one_border_falls_to_zero_at_its_other_face() -> None:
    scan = Grid.from_spacing((10, 10, 10), (1, 1, 1))
    window = Window(scan, (0, 4, 6), (4, 3, 4))
    box, values = paste(np.ones(window.shape, np.float32), window, scan)
    out = np.zeros(scan.shape)
    out[box] = values
    wanted = np.zeros(scan.shape)
    wanted[0:4, 4:7, 6:10] = 1
    np.testing.assert_allclose(out, wanted)


def test_the_box_on_the_scan_is_small() -> None:
    scan = Grid.from_spacing((400, 400, 200), (0.5, 0.5, 2))
    model_grid = PLAIN.model_grid(scan)
    box = paste_box(Window(model_grid, (100, 50, 80), (20, 24, 28)), scan)
    assert [b.stop - b.start for b in box] == pytest.approx([2 * 30, 2 * 26, 11 + 1], abs=3)


def test_a_scan_of_one_slice_goes_there_and_back() -> None:
    scan = Grid.from_spacing((30, 20, 1), (1, 1, 0.4))
    model_grid = PLAIN.model_grid(scan)
    assert model_grid.shape == (1, 20, 30)
    window = Window.around(model_grid, (0, 10, 15), (16, 16, 16))
    volume = Volume(np.random.default_rng(0).standard_normal(scan.shape).astype(np.float32), scan)
    crop = read_crop(volume, window, PLAIN)
    box, values = paste(crop, window, scan)
    out = np.zeros(scan.shape)
    out[box] = values
    np.testing.assert_allclose(out[7:23, 2:18], volume.array[7:23, 2:18], atol=1e-6)
    assert not out[:7].any()


# The released code on a real scan


def test_the_golden_scans_crop(shared_data: Path, shared_reference: Path) -> None:
    golden = np.load(shared_reference / "golden_scan_seed0.npz")
    volume = read_volume(shared_data / "organs_ct" / "ct.nii.gz")
    preprocessing = RELEASED["colon"]
    model_grid = preprocessing.model_grid(volume.grid)
    assert model_grid.shape == tuple(golden["grid_1mm_shape_dhw"])
    window = Window.around(model_grid, volume.grid.index_in(model_grid, golden["click_ijk"]), (128, 128, 128))
    assert window.start == tuple(golden["crop_start_dhw"])
    crop = read_crop(volume, window, preprocessing)
    np.testing.assert_allclose(crop[::4, ::4, ::4], golden["crop_strided4"], atol=GOLDEN_TOLERANCE)

"""voxsam.segment and Volume.from_array: a mask in one call, from a path, a Volume or an array; refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import voxsam
from voxsam.errors import GeometryError, ImageError, InputError, PromptError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.automatic import segment_automatically
from voxsam.io import write_mask, write_volume
from voxsam.prompts import Box, MaskHint, Point
from voxsam.testing import stub_network, stub_scan
from voxsam.volume import Volume
from voxsam.weights import save_model

STUB = stub_scan()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment")
    write_volume(STUB.scan, folder / "scan.nii.gz")
    write_mask(STUB.truth, folder / "truth.nii.gz")
    save_model(stub_network(), folder / "stub.safetensors")
    return folder


def test_a_path_a_volume_and_a_loaded_model_give_the_mask_of_a_session(folder: Path) -> None:
    network, volume = stub_network(), voxsam.read_volume(folder / "scan.nii.gz")
    session = voxsam.Session(network, volume)
    wanted = session.click(STUB.click).array
    assert wanted.any()
    for scan in (folder / "scan.nii.gz", str(folder / "scan.nii.gz"), volume, [volume]):
        mask = voxsam.segment(scan, clicks=[STUB.click], model=network)
        np.testing.assert_array_equal(mask.array, wanted)
        assert mask.grid == volume.grid and mask.modality == "SEG" and mask.remarks == session.remarks
    named = voxsam.segment(volume, [STUB.click], model=folder / "stub.safetensors", device="cpu")
    np.testing.assert_array_equal(named.array, wanted)


def test_one_click_needs_no_list() -> None:
    network = stub_network()
    one, listed = (voxsam.segment(STUB.scan, given, model=network).array for given in (STUB.click, [STUB.click]))
    np.testing.assert_array_equal(one, listed)
    place = STUB.scan.grid.index_to_world(STUB.click)
    np.testing.assert_array_equal(voxsam.segment(STUB.scan, clicks_mm=place, model=network).array, one)


def test_every_kind_of_prompt_gives_what_it_gives_a_session(folder: Path) -> None:
    network, grid = stub_network(), STUB.scan.grid
    i, j, k = STUB.click
    other, away = (i + 2, j, k), tuple(grid.index_to_world((i - 3, j, k)))
    session = voxsam.Session(network, STUB.scan)
    wanted = session.prompt(
        Point.at_index(grid, STUB.click),
        Point.at_index(grid, (0, 0, 0), positive=False),
        Point(tuple(grid.index_to_world(other))),
        Point(away, positive=False),
        Box.at_index(grid, (1, 1, 1), (40, 33, 20)),
        MaskHint(STUB.truth),
    )
    mask = voxsam.segment(
        STUB.scan,
        clicks=[STUB.click],
        negative=[(0, 0, 0)],
        clicks_mm=[grid.index_to_world(other)],
        negative_mm=[away],
        boxes=[((1, 1, 1), (40, 33, 20))],
        hints=[folder / "truth.nii.gz"],
        model=network,
    )
    np.testing.assert_array_equal(mask.array, wanted.array)


def test_a_label_file_is_named_with_its_segment_and_in_what_is_wrong_with_it(folder: Path) -> None:
    network, hint = stub_network(), folder / "truth.nii.gz"
    plain, chosen = (voxsam.segment(STUB.scan, hints=[path], model=network).array for path in (hint, f"{hint}#1"))
    np.testing.assert_array_equal(plain, chosen)
    write_mask(STUB.truth.with_array(STUB.truth.array * 0), folder / "empty.nii.gz")
    with pytest.raises(PromptError, match=r"^empty\.nii\.gz: "):
        voxsam.segment(STUB.scan, hints=[folder / "empty.nii.gz"], model=network)


def test_an_array_with_its_spacing_is_a_scan() -> None:
    network, spacing = stub_network(), (3, 3.5, 6)
    array = STUB.scan.array
    mask = voxsam.segment(array, clicks=[STUB.click], spacing_mm=spacing, model=network)
    wanted = voxsam.segment(Volume.from_array(array, spacing_mm=spacing), clicks=[STUB.click], model=network)
    np.testing.assert_array_equal(mask.array, wanted.array)
    assert mask.array.shape == array.shape and mask.grid.spacing_mm.tolist() == list(spacing)
    with pytest.raises(InputError, match=r"an array without its spacing; expected spacing_mm=\(i, j, k\)"):
        voxsam.segment(array, clicks=[STUB.click], model=network)


def test_without_prompts_an_automatic_model_works() -> None:
    network = stub_network(automatic=True)
    found, wanted = voxsam.segment(STUB.scan, model=network), segment_automatically(network, STUB.scan).mask
    np.testing.assert_array_equal(found.array, wanted.array)
    with pytest.raises(UnsupportedError, match="prompts for the model stub; expected none"):
        voxsam.segment(STUB.scan, clicks=[STUB.click], model=network)


def test_what_is_wrong_is_said_before_the_scan_is_read(folder: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"no prompts \(--auto\) with the model stub; expected a model trained without clicks"
    ):
        voxsam.segment(folder / "no such scan.nii", model=folder / "stub.safetensors")
    with pytest.raises(PromptError, match="a click outside the scan"):
        voxsam.segment(STUB.scan, clicks=[(99, 0, 0)], model=stub_network())


# Volume.from_array


def test_an_array_lies_where_its_axes_say() -> None:
    """(z, y, x) as from SimpleITK: the first axis points to Superior, the others to Posterior and Left."""
    volume = Volume.from_array(
        np.zeros((4, 5, 6), np.int16), spacing_mm=(2.5, 0.7, 0.8), axes="SPL", origin_mm=(1, 2, 3)
    )
    assert (volume.grid.axes, volume.modality, volume.array.shape) == ("SPL", "CT", (4, 5, 6))
    np.testing.assert_allclose(volume.grid.index_to_world((1, 0, 0)), (1, 2, 5.5))
    np.testing.assert_allclose(volume.grid.index_to_world((0, 1, 0)), (1, 1.3, 3))
    np.testing.assert_allclose(volume.grid.index_to_world((0, 0, 1)), (0.2, 2, 3))
    assert volume.grid == Grid.from_spacing((6, 5, 4), (0.8, 0.7, 2.5), (1 - 5 * 0.8, 2 - 4 * 0.7, 3)).reorient("SPL")


@pytest.mark.parametrize(
    ("array", "options", "error", "words"),
    [
        (np.zeros((2, 2)), {}, ImageError, r"an array of shape \(2, 2\) and type float64; expected three axes"),
        (np.zeros((2, 2, 2), complex), {}, ImageError, "type complex128; expected three axes"),
        (np.full((2, 2, 2), np.nan), {}, ImageError, "an array with 8 voxels of NaN or infinity; expected numbers"),
        (np.zeros((2, 2, 2)), {"spacing_mm": (1, 0, 1)}, GeometryError, "a spacing of 1 x 0 x 1 mm"),
        (np.zeros((2, 2, 2)), {"spacing_mm": (1, 1)}, GeometryError, r"a spacing of \(1, 1\); expected three numbers"),
        (np.zeros((2, 2, 2)), {"axes": "XYZ"}, GeometryError, "axes 'XYZ'; expected one letter each"),
    ],
)
def test_an_array_that_is_no_scan_is_refused_in_words(array, options, error, words) -> None:
    with pytest.raises(error, match=words):
        Volume.from_array(array, **{"spacing_mm": (1, 1, 1), **options})


def test_a_grid_turned_about_an_axis_keeps_that_axis_and_its_first_voxel() -> None:
    grid = Grid.from_spacing((4, 5, 6), (1, 2, 3), (7, 8, 9))
    turned = grid.turned(2, 90)
    np.testing.assert_allclose(turned.index_to_world((0, 0, 0)), (7, 8, 9))
    np.testing.assert_allclose(turned.index_to_world((0, 0, 1)), (7, 8, 12))
    np.testing.assert_allclose(turned.index_to_world((1, 0, 0)), (7, 9, 9), atol=1e-12)  # x becomes y
    np.testing.assert_allclose(turned.index_to_world((0, 1, 0)), (5, 8, 9), atol=1e-12)

"""Writing masks: on the scan's own grid, with its kind of header, completely or not at all."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from io_phantoms import GRIDS

from voxsam.errors import FileError, ImageError
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.volume import Volume

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]
OBLIQUE = GRIDS["oblique, permuted, mirrored"]
GRID = Grid((6, 7, 9), OBLIQUE)
OTHER = np.array([[0.0, -2, 0, 7], [1, 0, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1]])


def mask_on(grid: Grid, **more) -> Volume:
    array = np.zeros(grid.shape, np.uint8)
    array[1:4, 2:5, 3:8] = 1
    array[4, 6, 8] = 2  # one voxel at no symmetric place
    return Volume(array, grid, **more)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mask_comes_back_as_it_was(tmp_path, grid, suffix):
    mask = mask_on(grid)
    write_mask(mask, tmp_path / f"m{suffix}")
    back = read_volume(tmp_path / f"m{suffix}", labels=True)
    assert np.array_equal(back.array, mask.array) and back.array.dtype == np.uint8
    assert back.grid.close_to(grid, 1e-3) and back.grid.axes == grid.axes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_programs_find_the_mask_where_it_lies(tmp_path, grid, suffix):
    write_mask(mask_on(grid), tmp_path / f"m{suffix}")
    image = sitk.ReadImage(str(tmp_path / f"m{suffix}"))
    world = grid.index_to_world((4, 6, 8))
    lps = (world * [-1, -1, 1]).tolist()
    assert image[image.TransformPhysicalPointToIndex(lps)] == 2
    assert image.GetSpacing() == pytest.approx(grid.spacing_mm, rel=1e-5)
    if ".nii" in suffix:
        loaded = nib.load(tmp_path / f"m{suffix}")
        assert loaded.affine == pytest.approx(grid.affine, abs=1e-4)
        assert loaded.get_qform() == pytest.approx(grid.affine, abs=1e-3)
        assert loaded.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("units", [2, 3, 10])
def test_a_nifti_mask_keeps_the_headers_geometry_of_its_scan(tmp_path, scan_array, version, codes, units):
    grid = GRID
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_data_dtype(np.int16)
    header.set_data_shape(scan_array.shape)
    header.set_qform(OTHER if codes == (4, 1) else grid.affine, codes[1])
    header.set_sform(grid.affine, codes[0])
    header["xyzt_units"], header["descrip"] = units, b"Jane Doe"
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    kind(scan_array, None, header).to_filename(tmp_path / "scan.nii")

    scan = read_volume(tmp_path / "scan.nii")
    write_mask(scan.with_array(mask_on(scan.grid).array), tmp_path / "m.nii.gz")
    before, after = nib.load(tmp_path / "scan.nii").header, nib.load(tmp_path / "m.nii.gz").header
    assert type(after) is type(before)
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units", "quatern_b", "quatern_c"):
        assert np.array_equal(after[field], before[field]), field
    for field in ("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert np.array_equal(after[field], before[field]), field
    assert np.array_equal(after["pixdim"][:4], before["pixdim"][:4])
    assert after.get_data_shape() == scan_array.shape and after.get_data_dtype() == np.uint8
    assert bytes(after["descrip"]).strip(b"\0") == b""  # it may name the patient
    assert read_volume(tmp_path / "m.nii.gz", labels=True).grid == scan.grid


def test_a_mask_has_no_scaling(tmp_path, grid):
    write_mask(mask_on(grid), tmp_path / "m.nii")
    slope, intercept = np.frombuffer((tmp_path / "m.nii").read_bytes()[112:120], "<f4")
    assert (slope, intercept) in ((1, 0), (0, 0))


def test_a_mask_on_another_grid_does_not_take_the_scans_header(tmp_path, grid, scan_array):
    nib.save(nib.Nifti2Image(scan_array, grid.affine), tmp_path / "scan.nii")
    scan = read_volume(tmp_path / "scan.nii")
    part = scan.grid.crop((1, 2, 3), (3, 4, 5))
    write_mask(Volume(np.ones((3, 4, 5), np.uint8), part, header=scan.header), tmp_path / "m.nii")
    back = read_volume(tmp_path / "m.nii", labels=True)
    assert back.grid.close_to(part, 1e-6)
    assert isinstance(nib.load(tmp_path / "m.nii"), nib.Nifti2Image)
    assert nib.load(tmp_path / "m.nii").header["sform_code"] == 2  # as nibabel gave the scan


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sheared_axes_survive(tmp_path, suffix):
    sheared = np.array([[1.0, 0.4, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    mask = mask_on(Grid((6, 7, 9), sheared))
    write_mask(mask, tmp_path / f"m{suffix}")
    back = read_volume(tmp_path / f"m{suffix}", labels=True)
    assert back.grid.close_to(mask.grid, 1e-4) and np.array_equal(back.array, mask.array)


def test_an_axis_too_long_for_nifti_1(tmp_path):
    grid = Grid.from_spacing((40_000, 2, 1), (1, 2, 3))
    write_mask(Volume(np.ones(grid.shape, np.uint8), grid), tmp_path / "m.nii.gz")
    assert isinstance(nib.load(tmp_path / "m.nii.gz"), nib.Nifti2Image)
    assert read_volume(tmp_path / "m.nii.gz", labels=True).grid == grid


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_dicom_scan_gets_its_mask_in_any_format(tmp_path, write_series, suffix):
    scan = read_volume(write_series(tmp_path / "ct"))
    write_mask(scan.with_array(mask_on(scan.grid).array), tmp_path / f"m{suffix}")
    back = read_volume(tmp_path / f"m{suffix}", labels=True)
    assert back.grid.close_to(scan.grid, 1e-3) and back.array[4, 6, 8] == 2


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_order_does_not_matter(tmp_path, suffix, order):
    mask = mask_on(Grid.from_spacing((6, 7, 9), (1, 2, 3)))
    write_mask(mask.with_array(np.asarray(mask.array, order=order)), tmp_path / f"m{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"m{suffix}", labels=True).array, mask.array)


def test_the_same_mask_gives_the_same_file(tmp_path):
    write_mask(mask_on(GRID), tmp_path / "a.nii.gz")
    write_mask(mask_on(GRID), tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i2", "u2", "i4"])
def test_write_volume_keeps_numbers(tmp_path, suffix, dtype):
    grid = GRID
    array = np.random.default_rng(0).uniform(0, 100, grid.shape).astype(dtype)
    write_volume(Volume(array, grid), tmp_path / f"p{suffix}")
    back = read_volume(tmp_path / f"p{suffix}")
    assert back.array.dtype == (np.float32 if dtype.startswith("f") else np.dtype(dtype))
    assert np.array_equal(back.array, array.astype(back.array.dtype)) and back.grid.close_to(grid, 1e-3)


# Refusals


@pytest.mark.parametrize("dtype", [bool, np.int16, np.float32])
def test_refuses_a_mask_that_is_not_uint8(tmp_path, dtype):
    mask = mask_on(GRID)
    words = rf"a mask of {np.dtype(dtype)} voxels; expected uint8 \(0 background, 1..n objects\); convert it"
    with pytest.raises(ImageError, match=words):
        write_mask(mask.with_array(mask.array.astype(dtype)), tmp_path / "m.nii")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [bool, np.int64, np.complex64])
def test_write_volume_refuses_what_no_format_holds(tmp_path, dtype):
    mask = mask_on(GRID)
    with pytest.raises(
        ImageError, match=rf"a volume of {np.dtype(dtype)} voxels; expected floats or one of uint8, int8"
    ):
        write_volume(mask.with_array(mask.array.astype(dtype)), tmp_path / "m.nii")


@pytest.mark.parametrize("name", ["m.png", "m", "m.gz", "m.nii.bz2"])
def test_refuses_an_unknown_suffix(tmp_path, name):
    words = rf"the output .*{name} has an unknown suffix; expected one of \.nii, \.nii\.gz, \.nrrd, \.mha, \.seg\.dcm, "
    with pytest.raises(FileError, match=words):
        write_mask(mask_on(GRID), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_refuses_a_missing_folder(tmp_path, suffix):
    with pytest.raises(FileError, match="the output folder .*nowhere does not exist; expected an existing folder"):
        write_mask(mask_on(GRID), tmp_path / "nowhere" / f"m{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_mask_and_nothing_half_written(tmp_path, suffix, monkeypatch):
    target = tmp_path / f"m{suffix}"
    write_mask(mask_on(GRID), target)
    old = target.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        FileError, match=r"could not be written \(No space left on device\); expected a folder that takes"
    ):
        write_mask(mask_on(GRID), target)
    assert target.read_bytes() == old and os.listdir(tmp_path) == [target.name]


def test_an_itk_failure_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Exception thrown:\nITK ERROR: cannot write")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(FileError, match=r"could not be written \(ITK ERROR: cannot write\)"):
        write_mask(mask_on(GRID), tmp_path / "m.nrrd")
    assert os.listdir(tmp_path) == []


def test_an_existing_mask_is_replaced(tmp_path):
    mask = mask_on(GRID)
    write_mask(mask, tmp_path / "m.nii.gz")
    write_mask(mask.with_array(1 - np.minimum(mask.array, 1)), tmp_path / "m.nii.gz")
    assert read_volume(tmp_path / "m.nii.gz", labels=True).array[0, 0, 0] == 1

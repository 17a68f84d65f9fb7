"""NIfTI in: which of sform, qform and pixdim decides, number types, scaling, both versions."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.io import read_volume

PIXDIM, SCALING, QUATERN = 76, 112, 256  # byte offsets in a NIfTI-1 header
OTHER = np.array([[0.0, -2, 0, 7], [1, 0, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1]])


def save(path: Path, array, sform=None, qform=None, version=1, **fields) -> Path:
    """A NIfTI file with each form set by itself: (affine, code) or None."""
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    if qform:
        header.set_qform(*qform)
    if sform:
        header.set_sform(*sform)
    for field, value in fields.items():
        header[field] = value
    image = (nib.Nifti1Image if version == 1 else nib.Nifti2Image)(array, None, header)
    image.to_filename(path)
    return path


def patched(path: Path, offset: int, numbers) -> Path:
    """Write float32 numbers into the header of a NIfTI-1 file; nibabel would repair them on the way."""
    stored = bytearray(path.read_bytes())
    stored[offset : offset + 4 * len(numbers)] = np.array(numbers, "<f4").tobytes()
    path.write_bytes(stored)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_array_and_grid_are_the_files_own(tmp_path, grid, scan_array, version, suffix):
    path = save(tmp_path / f"a{suffix}", scan_array, (grid.affine, 1), version=version)
    volume = read_volume(path)
    assert np.array_equal(volume.array, scan_array) and volume.array.dtype == np.int16
    assert volume.grid.close_to(grid, 1e-4)
    assert np.array_equal(volume.grid.affine, nib.load(path).affine)


def test_a_landmark_lies_where_the_header_says(tmp_path, grid, scan_array):
    volume = read_volume(save(tmp_path / "a.nii", scan_array, (grid.affine, 1)))
    index = tuple(np.argwhere(volume.array == 100 * 3 + 10 * 5 + 2 - 30)[0])
    assert index == (3, 5, 2)
    assert volume.grid.index_to_world(index) == pytest.approx(grid.affine[:3] @ [3, 5, 2, 1], abs=1e-4)


# The policy


def test_sform_wins_over_a_qform_that_disagrees(tmp_path, grid, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(grid.affine, 4), qform=(OTHER, 1))
    assert read_volume(path).grid.close_to(grid, 1e-3)


def test_qform_decides_without_an_sform(tmp_path, grid, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(OTHER, 0), qform=(grid.affine, 1))
    assert read_volume(path).grid.close_to(grid, 1e-3)


def test_without_codes_pixdim_decides_and_indices_grow_to_ras(tmp_path, grid, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(OTHER, 0), qform=(grid.affine, 0))
    expected = Grid.from_spacing(scan_array.shape, grid.spacing_mm)
    volume = read_volume(path)
    assert volume.grid.close_to(expected, 1e-4) and volume.grid.axes == "RAS"


def test_a_singular_sform_is_not_replaced_by_a_good_qform(tmp_path, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(np.diag([1.0, 0, 1, 1]), 1), qform=(OTHER, 1))
    with pytest.raises(GeometryError, match=r"a\.nii: a spacing of 1 x 0 x 1 mm; expected positive spacing"):
        read_volume(path)


def test_refuses_an_sform_with_axes_that_coincide(tmp_path, scan_array):
    singular = np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    path = save(tmp_path / "a.nii", scan_array, sform=(singular, 1), qform=(OTHER, 1))
    with pytest.raises(GeometryError, match=r"a\.nii: a singular affine"):
        read_volume(path)


@pytest.mark.parametrize("bad", [0.0, -2.0, np.nan])
def test_refuses_spacing_that_is_not_positive(tmp_path, scan_array, bad):
    path = patched(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)), PIXDIM, [1, 1, bad, 1])
    words = rf"a\.nii has a spacing \(pixdim\) of 1 x {bad:g} x 1; expected positive spacing; repair its header"
    with pytest.raises(GeometryError, match=words):
        read_volume(path)


def test_refuses_an_impossible_quaternion(tmp_path, scan_array):
    path = patched(save(tmp_path / "a.nii", scan_array, qform=(OTHER, 1)), QUATERN, [0.9, 0.9])
    with pytest.raises(GeometryError, match=r"a\.nii has an impossible qform"):
        read_volume(path)


def test_an_unset_qfac_counts_as_one(tmp_path, scan_array):
    path = patched(save(tmp_path / "a.nii", scan_array, qform=(OTHER, 1)), PIXDIM, [0, 1, 2, 4])
    assert read_volume(path).grid.close_to(Grid(scan_array.shape, OTHER), 1e-4)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("unknown", 1), ("micron", 1e-3), ("meter", 1000)])
def test_units_of_length_become_mm(tmp_path, grid, scan_array, unit, factor):
    code = {"unknown": 0, "meter": 1, "mm": 2, "micron": 3}[unit]
    scaled = grid.affine.copy()
    scaled[:3] /= factor
    path = save(tmp_path / "a.nii", scan_array, sform=(scaled, 1), version=2, xyzt_units=code | 8)  # 8: seconds
    assert read_volume(path).grid.close_to(grid, 1e-6)


# Numbers


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">u4", ">f4", ">f8"]
)
def test_types_and_byte_orders(tmp_path, dtype):
    kind = np.dtype(dtype)
    array = np.arange(40, 40 + 60).reshape(3, 4, 5, order="F").astype(kind)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(kind)
    image = nib.Nifti1Image(array, OTHER, header)
    image.to_filename(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.array, array)
    assert volume.array.dtype.isnative
    assert volume.array.dtype == (np.float32 if kind.kind == "f" else kind.newbyteorder("="))
    assert volume.grid.close_to(Grid((3, 4, 5), OTHER))


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, 0), (1, -1024), (0.001, 3.5)])
def test_scaling_gives_float32(tmp_path, scan_array, slope, intercept):
    path = patched(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)), SCALING, [slope, intercept])
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    assert volume.array == pytest.approx(scan_array * slope + intercept, rel=1e-6, abs=1e-4)


def test_a_slope_of_zero_means_no_scaling(tmp_path, scan_array):
    path = patched(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)), SCALING, [0, 5])
    volume = read_volume(path)
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, scan_array)


def test_trailing_axes_of_one_are_left_out(tmp_path, scan_array):
    path = save(tmp_path / "a.nii.gz", scan_array[..., None, None], sform=(OTHER, 1))
    volume = read_volume(path)
    assert volume.grid.shape == scan_array.shape and np.array_equal(volume.array, scan_array)


def test_extra_bytes_after_the_voxels_do_no_harm(tmp_path, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1))
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + b"\0" * 100))
    assert np.array_equal(read_volume(packed).array, scan_array)


def test_the_array_does_not_depend_on_the_file_any_more(tmp_path, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1))
    volume = read_volume(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert np.array_equal(volume.array, scan_array)
    volume.array[0, 0, 0] = 7  # and it may be written to


# Modality


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (np.array([-500, 3], np.int16), "CT"),
        (np.array([-499, 3], np.int16), ""),
        (np.array([-1000, 40], np.float32), "CT"),
        (np.array([-1000, 40.5], np.float32), ""),
        (np.array([0, 900], np.int16), ""),
    ],
)
def test_ct_is_whole_numbers_down_to_minus_500_or_less(tmp_path, values, modality):
    array = np.resize(values, (3, 4, 5))
    assert read_volume(save(tmp_path / "a.nii", array, sform=(OTHER, 1))).modality == modality


def test_an_upper_case_suffix_is_the_same(tmp_path, scan_array):
    path = save(tmp_path / "a.nii.gz", scan_array, sform=(OTHER, 1))
    path.rename(tmp_path / "SCAN.NII.GZ")
    assert np.array_equal(read_volume(str(tmp_path / "SCAN.NII.GZ")).array, scan_array)

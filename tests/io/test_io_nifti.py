"""Reading NIfTI: which of sform, qform and pixdim decides, number types, scaling, both versions."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxsam.errors import FileError, GeometryError, InputError
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
    """Write float32 numbers into the header of a NIfTI-1 file directly, because nibabel would repair them."""
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
@pytest.mark.parametrize("code", [0, 1])
def test_refuses_spacing_that_is_not_positive_where_it_decides(tmp_path, scan_array, bad, code):
    path = patched(save(tmp_path / "a.nii", scan_array, qform=(OTHER, code)), PIXDIM, [1, 1, bad, 1])
    words = rf"a\.nii has a spacing \(pixdim\) of 1 x {bad:g} x 1; expected positive spacing; repair its header"
    with pytest.raises(GeometryError, match=words):
        read_volume(path)


@pytest.mark.parametrize("bad", [0.0, -2.0, np.nan])
def test_an_odd_pixdim_beside_an_sform_is_remarked(tmp_path, scan_array, bad):
    path = patched(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)), PIXDIM, [1, 1, bad, 4])
    volume = read_volume(path)
    assert volume.grid.close_to(Grid(scan_array.shape, OTHER))
    words = f"a.nii contradicts itself: its sform says voxels of 1 x 2 x 4 mm, its pixdim 1 x {bad:g} x 4; read by"
    assert volume.remarks[0].startswith(words)


def test_an_sform_against_pixdim_is_remarked_with_the_volumes(tmp_path, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(np.eye(4), 1))
    volume = read_volume(patched(path, PIXDIM, [1, 0.87, 0.87, 3]))
    assert volume.grid.spacing_mm == pytest.approx([1, 1, 1])
    assert volume.remarks == (
        "a.nii contradicts itself: its sform says voxels of 1 x 1 x 1 mm, its pixdim 0.87 x 0.87 x 3; read by the "
        "sform; by pixdim, as ITK and FSL read it, volumes are 2.27 times as large",
    )


def test_two_forms_of_one_code_that_disagree_are_remarked_and_two_spaces_are_not(tmp_path, scan_array):
    moved = OTHER.copy()
    moved[0, 3] += 40
    same = read_volume(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1), qform=(moved, 1)))
    assert same.grid.close_to(Grid(scan_array.shape, OTHER))
    assert same.remarks == ("a.nii contradicts itself: sform and qform lie up to 40 mm apart; read by the sform",)
    assert read_volume(save(tmp_path / "b.nii", scan_array, sform=(OTHER, 4), qform=(moved, 1))).remarks == ()
    assert read_volume(save(tmp_path / "c.nii", scan_array, sform=(OTHER, 1), qform=(OTHER, 1))).remarks == ()


def test_a_file_that_does_not_say_how_the_patient_lies_is_remarked(tmp_path, scan_array):
    (remark,) = read_volume(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 0))).remarks
    assert remark.startswith(
        "a.nii does not say how the patient lies (neither sform nor qform); read with its axes to R"
    )


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
    pixdim = [1, *(grid.spacing_mm / factor), 0, 0, 0, 0]
    fields = {"xyzt_units": code | 8, "pixdim": pixdim}  # 8: seconds
    volume = read_volume(save(tmp_path / "a.nii", scan_array, sform=(scaled, 1), version=2, **fields))
    assert volume.grid.close_to(grid, 1e-6)
    words = {"meter": "metres", "micron": "micrometres"}.get(unit)
    assert volume.remarks == ((f"a.nii gives lengths in {words}; converted to mm",) if words else ())


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


# Pairs, names, and where the voxels begin


def pair(folder: Path, array, packed: bool = False) -> Path:
    nib.Nifti1Pair(array, OTHER).to_filename(folder / ("a.img.gz" if packed else "a.img"))
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_is_read_by_either_name(tmp_path, scan_array, packed):
    pair(tmp_path, scan_array, packed)
    for name in ("a.hdr.gz", "a.img.gz") if packed else ("a.hdr", "a.img"):
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.array, scan_array) and volume.grid.close_to(Grid(scan_array.shape, OTHER))


def test_an_analyze_pair_is_read_and_says_nothing_of_its_place(tmp_path, scan_array):
    image = nib.AnalyzeImage(scan_array, None)
    image.header.set_zooms((1, 2, 4))
    image.to_filename(tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.array, scan_array) and volume.grid.spacing_mm == pytest.approx([1, 2, 4])
        assert "does not say how the patient lies" in volume.remarks[0]


def test_a_half_of_a_pair_names_the_other(tmp_path, scan_array):
    pair(tmp_path, scan_array)
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileError, match=r"a\.hdr is the header of a \.hdr/\.img pair, and a\.img is not beside it"):
        read_volume(tmp_path / "a.hdr")
    (tmp_path / "b.img").write_bytes(scan_array.tobytes())
    with pytest.raises(FileError, match=r"b\.img does not hold a NIfTI image"):
        read_volume(tmp_path / "b.img")


def test_the_name_does_not_decide_whether_a_file_is_packed(tmp_path, scan_array):
    path = save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1))
    (tmp_path / "plain.nii.gz").write_bytes(path.read_bytes())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "noname").write_bytes(path.read_bytes())
    for name in ("plain.nii.gz", "packed.nii", "noname"):
        assert np.array_equal(read_volume(tmp_path / name).array, scan_array)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("said", "begin"), [(0, 348), (0, 352), (348, 348), (348, 352)])
def test_voxels_behind_the_header_whatever_it_says(tmp_path, scan_array, packed, said, begin):
    content = bytearray(save(tmp_path / "a.nii", scan_array, (OTHER, 1), (OTHER, 1)).read_bytes())
    content[108:112] = np.float32(said).tobytes()
    content = bytes(content[:begin] + content[352:])
    (tmp_path / "b.nii").write_bytes(gzip.compress(content) if packed else content)
    volume = read_volume(tmp_path / "b.nii")
    assert np.array_equal(volume.array, scan_array)
    assert volume.remarks == ("b.nii does not say where its voxels begin; read from behind its header",)


@pytest.mark.parametrize("said", [1, 347, 349, 351, -4, 3e9])
def test_refuses_voxels_within_the_header(tmp_path, scan_array, said):
    path = patched(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)), 108, [said])
    with pytest.raises(FileError, match=r"has a broken NIfTI header \(vox_offset\)"):
        read_volume(path)


def test_header_fields_that_nothing_depends_on_may_be_odd(tmp_path, scan_array):
    content = bytearray(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)).read_bytes())
    for at, count in ((4, 36), (56, 14), (72, 4), (120, 132)):  # unused, intent, bitpix, slices, cal_max, descrip, ...
        content[at : at + count] = b"\xff" * count
    content[123] = 2  # xyzt_units
    (tmp_path / "a.nii").write_bytes(content)
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, scan_array)


def test_a_slope_that_is_no_number_is_none(tmp_path, scan_array):
    path = save(tmp_path / "a.nii", scan_array, (OTHER, 1), (OTHER, 1))
    volume = read_volume(patched(path, SCALING, [np.nan, 0]))
    assert np.array_equal(volume.array, scan_array) and "slope (scl_slope) of nan" in volume.remarks[0]


@pytest.mark.parametrize("code", [0, 1, 255, 7777])
def test_voxels_of_no_known_type_are_refused_in_one_line(tmp_path, scan_array, code):
    content = bytearray(save(tmp_path / "a.nii", scan_array, sform=(OTHER, 1)).read_bytes())
    content[70:72] = np.int16(code).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match="has voxels of no known type|has a broken NIfTI header"):
        read_volume(tmp_path / "a.nii")


def test_bytes_after_the_gzip_stream_do_no_harm(tmp_path, scan_array):
    path = save(tmp_path / "a.nii.gz", scan_array, sform=(OTHER, 1))
    path.write_bytes(path.read_bytes() + b"appended by a download")
    assert np.array_equal(read_volume(path).array, scan_array)

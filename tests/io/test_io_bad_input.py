"""Files that are not a scan are refused in one line: what was given, what was expected, what to do."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxsam.errors import FileError, GeometryError, ImageError, InputError
from voxsam.io import read_volume

AFFINE = np.diag([1.0, 2, 3, 1])
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]


def save(path: Path, array: np.ndarray) -> Path:
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, AFFINE, dtype=array.dtype), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array.T), str(path))
    return path


def refused(path: Path, error: type[InputError], words: str) -> None:
    """Check that `path` is refused with these words, in one line with its name and all three parts."""
    with pytest.raises(error, match=words) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert path.name in caught.value.given and caught.value.expected and caught.value.remedy


# Not there, not an image


def test_a_missing_file(tmp_path):
    words = r"absent\.nii\.gz does not exist; expected a scan \(\.nii, .*, or a folder or \.zip of"
    refused(tmp_path / "absent.nii.gz", FileError, words)


@pytest.mark.parametrize("name", ["scan.jpg", "scan.gz", "scan", "nii"])
def test_an_unsupported_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"something")
    words = rf"{name} is of an unsupported kind; expected \.nii, .*, or a folder or \.zip of DICOM"
    refused(tmp_path / name, FileError, words)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    refused(tmp_path / f"a{suffix}", FileError, rf"a\{suffix} is empty \(0 bytes\); expected an image; copy or export")


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (".nii", "does not hold a NIfTI image; expected NIfTI-1 or NIfTI-2"),
        (".nii.gz", "does not hold a NIfTI image; expected NIfTI-1 or NIfTI-2"),
        (".nrrd", "does not hold an NRRD image; expected an NRRD file"),
        (".mha", "does not hold a MetaImage; expected an MHA file"),
        (".zip", r"is truncated or damaged \(it cannot be unzipped: File is not a zip file\)"),
    ],
)
@pytest.mark.parametrize("content", [b"hello, I am no image", b"\0" * 2000, bytes(range(256)) * 10])
def test_another_file_with_the_right_suffix(tmp_path, capfd, suffix, words, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(tmp_path / f"a{suffix}", FileError, words)
    assert capfd.readouterr() == ("", "")


def test_text_inside_a_gz(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"hello" * 500))
    refused(tmp_path / "a.nii.gz", FileError, "does not hold a NIfTI image")


def test_the_header_of_a_pair(tmp_path, scan_array):
    nib.save(nib.Nifti1Pair(scan_array, AFFINE), tmp_path / "a.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    (tmp_path / "a.img").unlink()
    words = r"a\.nii is the header of a \.hdr/\.img pair, and a\.img is not beside it; expected both files"
    refused(tmp_path / "a.nii", FileError, words)


# Cut off


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_nifti(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
    path = save(tmp_path / f"a{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, FileError, rf"a\{suffix} is truncated or damaged \(.*\); expected a complete file; copy or export it")


@pytest.mark.parametrize("lost", [1, 8])
def test_a_gz_that_lost_its_last_bytes(tmp_path, scan_array, lost):
    path = save(tmp_path / "a.nii.gz", scan_array)
    path.write_bytes(path.read_bytes()[:-lost])
    refused(path, FileError, "is truncated or damaged")


@pytest.mark.parametrize("kept", [5, 100, 300])
def test_a_nifti_cut_off_in_its_header(tmp_path, scan_array, kept):
    path = save(tmp_path / "a.nii", scan_array)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, FileError, "a.nii (does not hold a NIfTI image|is truncated or damaged)")


def test_a_gz_with_a_wrong_checksum(tmp_path, scan_array):
    path = save(tmp_path / "a.nii.gz", scan_array)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)
    refused(path, FileError, r"is truncated or damaged \(its voxels end too early or do not match their checksum\)")


# Declared sizes


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_tiny_file_that_declares_30000_cubed_voxels(tmp_path, suffix, version):
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"] = 544
    content = header.binaryblock + b"\0" * 1000
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    words = "declares 30000 x 30000 x 30000 voxels; expected at most 2,147,483,648 voxels; repair its header or crop"
    refused(tmp_path / f"a{suffix}", ImageError, words)


def test_a_tiny_gz_that_declares_more_than_it_can_unpack_to(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((1000, 1000, 1000))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 1000))
    refused(
        tmp_path / "a.nii.gz", FileError, r"is truncated or damaged \(its header declares 1000 x 1000 x 1000 voxels"
    )


@pytest.mark.parametrize("dim", [[3, 0, 5, 6], [3, 4, -5, 6], [0, 4, 5, 6]])
def test_a_nifti_without_voxels(tmp_path, scan_array, dim):
    path = save(tmp_path / "a.nii", scan_array)
    content = bytearray(path.read_bytes())
    content[40:48] = np.array(dim, "<i2").tobytes()
    path.write_bytes(content)
    refused(path, InputError, r"a\.nii (has shape .*; expected at least one voxel along each axis|has a broken NIfTI)")


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_spacing_that_no_scanner_makes(tmp_path, scan_array, scale):
    nib.save(nib.Nifti1Image(scan_array, np.diag([scale, 2, 3, 1])), tmp_path / "a.nii.gz")
    words = r"a spacing of .*1e[+-]0?[69] x 2 x 3 mm; expected 0.0001 to 200 mm; repair its header"
    refused(tmp_path / "a.nii.gz", GeometryError, words)


@pytest.mark.parametrize(("field", "offset"), [("vox_offset", 108), ("scl_inter", 116)])
def test_a_header_field_that_is_no_number(tmp_path, scan_array, field, offset):
    nib.save(nib.Nifti1Image(scan_array, AFFINE), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[offset : offset + 4] = np.float32(np.nan).tobytes()
    content[112:116] = np.float32(2).tobytes()  # scl_slope
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", FileError, "has a broken NIfTI header .*; expected a valid header; export it again")


# Shapes and kinds of voxels


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1)])
def test_a_2d_image(tmp_path, shape):
    array = np.arange(72, dtype=np.int16).reshape(shape)
    words = "is a 2D image (.*); expected a 3D scan; give the whole stack of slices"
    refused(save(tmp_path / "a.nii.gz", array), ImageError, words)


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5, 1, 6), (4, 5, 6, 1, 3)])
def test_a_4d_image(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    words = f"is a {len(shape)}D image (.*); expected a 3D scan; save one of its volumes by itself"
    refused(save(tmp_path / "a.nii.gz", array), ImageError, words)


def test_a_colour_image(tmp_path):
    array = np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    words = r"has several channels \(RGB or vector\); expected one number per voxel; save one channel by itself"
    refused(save(tmp_path / "a.nii", array), ImageError, words)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_complex_image(tmp_path, suffix, scan_array):
    words = "has complex voxels; expected real numbers; save its magnitude"
    if suffix == ".mha":
        words = "has several channels"  # MetaImage knows complex numbers as two channels only
    refused(save(tmp_path / f"a{suffix}", scan_array.astype(np.complex64)), ImageError, words)


@pytest.mark.parametrize(("bad", "becomes"), [(np.nan, "low"), (np.inf, "high"), (-np.inf, "low")])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nan_and_infinite_voxels_are_padding(tmp_path, suffix, scan_array, bad, becomes):
    array = scan_array.astype(np.float32)
    array[1, 2, 3] = array[3, 2, 1] = bad
    volume = read_volume(save(tmp_path / f"a{suffix}", array))
    expected = array.copy()
    expected[1, 2, 3] = expected[3, 2, 1] = scan_array.min() if becomes == "low" else scan_array.max()
    assert np.array_equal(volume.array, expected)
    (remark,) = (remark for remark in volume.remarks if "NaN" in remark)
    assert remark == f"a{suffix} has 2 NaN or infinite voxels; read as its lowest value, -30 (infinite: 538)"


def test_a_scan_of_nan_is_none(tmp_path, scan_array):
    array = scan_array.astype(np.float32)
    array[:4] = np.nan
    words = "has 252 NaN or infinite voxels of 378; expected finite numbers in most of the scan; replace them"
    refused(save(tmp_path / "a.nii", array), ImageError, words)


def test_float64_beyond_float32(tmp_path, scan_array):
    array = scan_array.astype(np.float64)
    array[0, 0, 0] = 1e300
    volume = read_volume(save(tmp_path / "a.nii", array))
    assert volume.array[0, 0, 0] == 538 and "has 1 NaN or infinite voxels" in volume.remarks[0]


@pytest.mark.parametrize("value", [0, -1000, 3])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_constant_image(tmp_path, suffix, value):
    path = save(tmp_path / f"a{suffix}", np.full((4, 5, 6), value, np.int16))
    refused(path, ImageError, rf"all voxels of a\{suffix} are {value}; expected an image with contrast; check that")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("highest", [1, 2, 15])
def test_a_label_map_given_as_a_scan(tmp_path, highest, dtype):
    array = np.zeros((4, 5, 6), dtype)
    array[1:3, 1:3, 1:3] = highest
    words = f"whole numbers 0 to {highest}: this looks like a label map; expected a scan .*; give the scan that"
    refused(save(tmp_path / "a.nii.gz", array), ImageError, words)


def test_a_label_map_of_many_organs(tmp_path):
    array = np.zeros((20, 18, 9), np.uint8)
    array[2:9, 3:15, :8], array[10:18, 3:15, :8] = 41, 117
    words = "whole numbers 0 to 117: this looks like a label map; expected a scan .*; give the scan that"
    refused(save(tmp_path / "a.nii.gz", array), ImageError, words)


def test_what_is_no_label_map(tmp_path):
    quiet = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)  # intensities scaled to 0..1
    dark = np.zeros((4, 5, 6), np.uint8)
    dark[2, 2, 2] = 16
    signed = np.resize(np.array([-1, 0, 1], np.int16), (4, 5, 6))
    for array in (quiet, dark, signed):
        assert np.array_equal(read_volume(save(tmp_path / "a.nii.gz", array)).array, array)


# Labels


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("values", [(0, 0), (0, 1), (0, 117), (3, 3)])
def test_labels_are_read_when_asked_for(tmp_path, suffix, values):
    array = np.resize(np.array(values, np.uint8), (4, 5, 6))
    volume = read_volume(save(tmp_path / f"a{suffix}", array), labels=True)
    assert volume.modality == "SEG" and volume.array.dtype == np.uint8 and np.array_equal(volume.array, array)


def test_labels_stored_as_floats_become_integers(tmp_path):
    array = np.resize(np.array([0, 1, 300], np.float64), (4, 5, 6))
    volume = read_volume(save(tmp_path / "a.nii.gz", array), labels=True)
    assert volume.array.dtype == np.uint16 and np.array_equal(volume.array, array)
    negative = read_volume(save(tmp_path / "b.nii.gz", array - 1), labels=True)
    assert negative.array.dtype.kind == "i" and np.array_equal(negative.array, array - 1)


@pytest.mark.parametrize("bad", [0.5, np.nan])
def test_labels_must_be_whole_numbers(tmp_path, bad):
    array = np.resize(np.array([0, 1, bad], np.float32), (4, 5, 6))
    path = save(tmp_path / "a.nii.gz", array)
    words = r"a\.nii\.gz has values that are not whole numbers; expected a mask or labels; threshold it first"
    with pytest.raises(ImageError, match=words):
        read_volume(path, labels=True)


def test_a_folder_without_images_holds_no_labels(tmp_path):
    with pytest.raises(FileError, match="holds no DICOM images"):
        read_volume(tmp_path, labels=True)


# Files that are not scans at all


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    refused(tmp_path / "a.nii", FileError, r"a\.nii is no file \(a pipe or device\); expected a file or folder")


def test_a_path_with_a_zero_byte():
    with pytest.raises(FileError, match="does not exist|could not be read .*null"):
        read_volume("a\0.nii")


def test_a_link_that_leads_round(tmp_path):
    (tmp_path / "a.nii").symlink_to("a.nii")
    with pytest.raises(FileError, match=r"a\.nii (does not exist|could not be read)"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux")
def test_a_name_that_is_no_utf_8_can_be_printed(tmp_path, scan_array):
    name = os.fsdecode(b"l\xe4sion\n.nii")
    nib.save(nib.Nifti1Image(scan_array, None), tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / name)
    (remark,) = read_volume(tmp_path / name).remarks
    assert remark.isprintable() and remark.startswith("l\ufffdsion")
    with pytest.raises(FileError) as caught:
        read_volume(tmp_path / f"{name}x")
    assert str(caught.value).isprintable() and caught.value.given.isprintable()

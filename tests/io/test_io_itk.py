"""NRRD and MHA in: the world of ITK turned into RAS, number types, and headers that must not be trusted."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.geometry import Grid
from voxsam.io import read_volume

SUFFIXES = [".nrrd", ".mha"]
LPS = np.diag([-1.0, -1, 1])


def save(path: Path, array: np.ndarray, grid: Grid | None = None, compressed: bool = False) -> Path:
    """Write (i, j, k) voxels with SimpleITK."""
    image = sitk.GetImageFromArray(array.T)
    if grid is not None:
        image.SetSpacing(grid.spacing_mm.tolist())
        image.SetDirection((LPS @ grid.affine[:3, :3] / grid.spacing_mm).ravel().tolist())
        image.SetOrigin((LPS @ grid.affine[:3, 3]).tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_array_and_grid_are_the_files_own(tmp_path, grid, scan_array, suffix, compressed):
    volume = read_volume(save(tmp_path / f"a{suffix}", scan_array, grid, compressed))
    assert np.array_equal(volume.array, scan_array) and volume.array.dtype == np.int16
    assert volume.grid.close_to(grid, 1e-6)
    assert volume.modality == ""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_scan_as_nifti_has_the_same_grid(tmp_path, grid, scan_array, suffix):
    nib.save(nib.Nifti1Image(scan_array, grid.affine), tmp_path / "a.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / f"a{suffix}"))
    a, b = read_volume(tmp_path / "a.nii"), read_volume(tmp_path / f"a{suffix}")
    assert a.grid.close_to(b.grid, 1e-3) and np.array_equal(a.array, b.array)


def test_an_nrrd_in_ras_space(tmp_path, scan_array):
    path = save(tmp_path / "a.nrrd", scan_array)
    edited(path, b"left-posterior-superior", b"right-anterior-superior")
    edited(path, b"(1,0,0) (0,1,0) (0,0,1)", b"(0,2,0) (0,0,3) (-4,0,0)")
    edited(path, b"space origin: (0,0,0)", b"space origin: (10,20,30)")
    expected = np.array([[0.0, 0, -4, 10], [2, 0, 0, 20], [0, 3, 0, 30], [0, 0, 0, 1]])
    assert read_volume(path).grid.close_to(Grid(scan_array.shape, expected), 1e-9)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_types(tmp_path, suffix, dtype):
    array = np.arange(40, 100).reshape(3, 4, 5).astype(dtype)
    volume = read_volume(save(tmp_path / f"a{suffix}", array))
    assert np.array_equal(volume.array, array)
    assert volume.array.dtype == (np.float32 if dtype == "f8" else np.dtype(dtype))


def test_big_endian(tmp_path, scan_array):
    nrrd, mha = save(tmp_path / "a.nrrd", scan_array), save(tmp_path / "a.mha", scan_array)
    for path, little, big in (
        (nrrd, b"endian: little", b"endian: big"),
        (mha, b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True"),
    ):
        voxels = path.read_bytes()[-scan_array.nbytes :]
        edited(path, voxels, np.frombuffer(voxels, "<i2").astype(">i2").tobytes())
        assert np.array_equal(read_volume(edited(path, little, big)).array, scan_array)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_trailing_axes_of_one_are_left_out(tmp_path, suffix, scan_array):
    image = sitk.JoinSeries(sitk.GetImageFromArray(scan_array.T))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.grid.shape == scan_array.shape and np.array_equal(volume.array, scan_array)


# Refusals


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_refuses_2d_4d_colour_and_complex(tmp_path, suffix, scan_array):
    image = sitk.GetImageFromArray(scan_array.T)
    cases = {
        r"is a 2D image \(6 x 7\); expected a 3D scan": image[:, :, 0],
        r"is a 4D image \(6 x 7 x 9 x 2\); expected a 3D scan": sitk.JoinSeries(image, image),
        r"has several channels \(RGB or vector\)": sitk.Compose(image, image, image),
    }
    for words, bad in cases.items():
        sitk.WriteImage(bad, str(tmp_path / f"a{suffix}"))
        with pytest.raises(ImageError, match=rf"a\{suffix} {words}"):
            read_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("lost", [20, 200])
def test_refuses_a_truncated_file_without_noise(tmp_path, capfd, suffix, compressed, lost):
    array = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
    path = save(tmp_path / f"a{suffix}", array, compressed=compressed)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(FileError, match=rf"a\{suffix} is truncated or damaged .*; expected a complete file; copy"):
        read_volume(path)
    assert capfd.readouterr() == ("", "")  # MetaIO would complain on the terminal


def test_refuses_huge_declared_dimensions_before_allocating(tmp_path, scan_array):
    nrrd = edited(save(tmp_path / "a.nrrd", scan_array), b"sizes: 6 7 9", b"sizes: 30000 30000 30000")
    mha = edited(save(tmp_path / "a.mha", scan_array), b"DimSize = 6 7 9", b"DimSize = 30000 30000 30000")
    for path in (nrrd, mha):
        with pytest.raises(ImageError, match="declares 30000 x 30000 x 30000 voxels; expected at most 2,147,483,648"):
            read_volume(path)


def test_refuses_more_voxels_than_the_file_can_hold(tmp_path, scan_array):
    path = edited(save(tmp_path / "a.mha", scan_array), b"DimSize = 6 7 9", b"DimSize = 600 700 900")
    with pytest.raises(
        FileError, match=r"a\.mha is truncated or damaged \(its header declares 600 x 700 x 900 voxels of 2"
    ):
        read_volume(path)


@pytest.mark.parametrize("bad", [b"0", b"-1"])
def test_refuses_spacing_that_is_not_positive(tmp_path, scan_array, bad):
    path = edited(save(tmp_path / "a.mha", scan_array), b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 " + bad + b" 1")
    words = rf"a\.mha has a spacing of 1 x {bad.decode()} x 1 mm; expected positive spacing on each axis; repair"
    with pytest.raises(GeometryError, match=words):
        read_volume(path)


def test_refuses_an_nrrd_axis_of_length_zero(tmp_path, scan_array):
    path = edited(save(tmp_path / "a.nrrd", scan_array), b"(0,1,0)", b"(0,0,0)")
    with pytest.raises(GeometryError, match=r"a\.nrrd has a spacing of 1 x 0 x 1 mm"):
        read_volume(path)


def test_refuses_axes_that_coincide(tmp_path, scan_array):
    nrrd = edited(save(tmp_path / "a.nrrd", scan_array), b"(0,1,0)", b"(1,0,0)")
    mha = edited(save(tmp_path / "a.mha", scan_array), b"= 1 0 0 0 1 0 0 0 1", b"= 1 0 0 1 0 0 0 0 1")
    for path in (nrrd, mha):
        with pytest.raises(GeometryError, match="has a singular affine"):
            read_volume(path)


@pytest.mark.parametrize("separator", [b" = ", b" : "])
def test_refuses_an_mha_that_points_to_another_file(tmp_path, scan_array, separator):
    path = save(tmp_path / "a.mha", scan_array)
    (tmp_path / "secret.raw").write_bytes(scan_array.tobytes())
    edited(path, b"ElementDataFile = LOCAL", b"ElementDataFile" + separator + b"secret.raw\nElementDataFile = LOCAL")
    with pytest.raises(FileError, match=r"a\.mha keeps its voxels in another file; expected header and voxels in one"):
        read_volume(path)


@pytest.mark.parametrize("key", [b"data file", b"datafile"])
def test_refuses_an_nrrd_that_points_to_another_file(tmp_path, scan_array, key):
    path = save(tmp_path / "a.nrrd", scan_array)
    edited(path, b"encoding: raw", key + b": secret.raw\nencoding: raw")
    with pytest.raises(FileError, match=r"a\.nrrd keeps its voxels in another file"):
        read_volume(path)

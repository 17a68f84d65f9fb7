"""Reading NRRD and MetaImage: the same geometry and voxels as ITK reads, and headers that must not be trusted."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxsam.errors import FileError, GeometryError, ImageError, InputError
from voxsam.geometry import Grid
from voxsam.io import read_volume
from voxsam.io.checks import at_most

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


# Voxels in other files


def detached(path: Path, array: np.ndarray, grid: Grid | None = None, compressed: bool = False) -> Path:
    """A header with its voxels beside it, as ITK writes them."""
    return save(path, array, grid, compressed)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_header_with_its_voxels_beside_it(tmp_path, grid, scan_array, suffix, compressed):
    volume = read_volume(detached(tmp_path / f"luna{suffix}", scan_array, grid, compressed))
    assert np.array_equal(volume.array, scan_array) and volume.grid.close_to(grid, 1e-6)
    assert volume.remarks == ()


def moved(path: Path, where: str) -> Path:
    """The header names `where` instead of its own data file."""
    text = path.read_text()
    old = next(line for line in text.splitlines() if line.lower().startswith(("elementdatafile", "data file")))
    path.write_text(text.replace(old, re.sub(r"([=:]) .*", rf"\1 {where}", old)))
    return path


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize("where", ["/etc/passwd", "../secret.raw", "sub/secret.raw", "..", "C:\\\\secret.raw"])
def test_refuses_voxels_in_another_folder(tmp_path, scan_array, suffix, where):
    (tmp_path / "secret.raw").write_bytes(scan_array.tobytes())
    (tmp_path / "in").mkdir()
    path = moved(detached(tmp_path / "in" / f"a{suffix}", scan_array), where)
    with pytest.raises(FileError, match="says that its voxels lie in .*; expected a file in the same folder; put it"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_refuses_voxels_that_are_not_there(tmp_path, scan_array, suffix):
    path = moved(detached(tmp_path / f"a{suffix}", scan_array), "gone.raw")
    words = rf"the voxels of a\{suffix} in 'gone\.raw', which is not there; expected that file beside its header"
    with pytest.raises(FileError, match=words):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_link_to_the_voxels_is_followed_but_not_for_files_of_others(tmp_path, scan_array, suffix):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "b.raw").write_bytes(scan_array.tobytes(order="F"))
    path = moved(detached(tmp_path / f"a{suffix}", scan_array), "link.raw")
    (tmp_path / "link.raw").symlink_to(tmp_path / "store" / "b.raw")
    assert np.array_equal(read_volume(path).array, scan_array)
    with at_most(10**6), pytest.raises(FileError, match="which is not there"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize("kind", ["list", "pattern"])
def test_voxels_in_one_file_for_each_slice(tmp_path, scan_array, suffix, kind):
    path = detached(tmp_path / f"a{suffix}", scan_array)
    for k in range(9):
        (tmp_path / f"s{k + 1:03d}.raw").write_bytes(scan_array[:, :, k].tobytes(order="F"))
    names = "".join(f"\ns{k + 1:03d}.raw" for k in range(9)) + "\n"
    moved(path, "s%03d.raw 1 9 1" if kind == "pattern" else "LIST")
    if kind == "list":
        text = path.read_text()
        path.write_text(text.replace("LIST\n", f"LIST{names}") if suffix == ".mhd" else text.rstrip("\n") + names)
    assert np.array_equal(read_volume(path).array, scan_array)


def test_voxels_in_words(tmp_path, scan_array):
    words = " ".join(map(str, scan_array.ravel(order="F"))).encode()
    nrrd, mha = save(tmp_path / "a.nrrd", scan_array), save(tmp_path / "a.mha", scan_array)
    for path, old, new in (
        (nrrd, b"encoding: raw", b"encoding: ascii"),
        (mha, b"BinaryData = True", b"BinaryData = False"),
    ):
        edited(path, scan_array.tobytes(order="F"), words)
        assert np.array_equal(read_volume(edited(path, old, new)).array, scan_array)


# Headers that are incomplete or unusual


def test_what_a_nrrd_header_leaves_open_is_remarked(tmp_path, scan_array):
    head = b"NRRD0004\n# a comment\ntype: short\ndimension: 3\nsizes: 6 7 9\nencoding: raw\nspacings: 1 2 3\n"
    (tmp_path / "a.nrrd").write_bytes(head + b"a key:=a value\n\n" + scan_array.tobytes(order="F"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, scan_array) and volume.grid.axes == "LPS"
    assert volume.grid.spacing_mm == pytest.approx([1, 2, 3])
    assert volume.remarks == (
        "a.nrrd does not say how the patient lies; read as L, P, S, as ITK does",
        "a.nrrd does not say its byte order; read as little-endian",
    )


@pytest.mark.parametrize("origin", [b"", b"space origin: (nan,20,30)\n", b"space origin: (NaN, nan, -nan)\n"])
def test_a_nrrd_header_without_an_origin_does_not_say_where_it_lies(tmp_path, scan_array, origin):
    place = b"space: LPS\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n" + origin
    (tmp_path / "a.nrrd").write_bytes(NRRD + place + b"\n" + scan_array.tobytes(order="F"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.grid.index_to_world((0, 0, 0)) == pytest.approx([0, 0, 0])
    where = "a.nrrd does not say where it lies (space origin); read with its first voxel at 0, 0, 0"
    assert where in volume.remarks


@pytest.mark.parametrize("origin", [b"(1,2)", b"(1,2,x)", b"none", b""])
def test_an_origin_that_is_none_is_refused(tmp_path, scan_array, origin):
    place = b"space: LPS\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: " + origin + b"\n"
    (tmp_path / "a.nrrd").write_bytes(NRRD + place + b"\n" + scan_array.tobytes(order="F"))
    with pytest.raises(
        FileError, match=r"the header field 'space origin' with .*; expected a vector \(x,y,z\); repair"
    ):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("mm", [b"1e39", b"-1e308", b"1000001"])
def test_a_place_that_no_scanner_gives_is_refused(tmp_path, scan_array, mm):
    """In the float32 of a mask's NIfTI header it would be infinite or rounded."""
    for name, head in (
        ("a.mha", META + b"Offset = 0 " + mm + b" 7\nElementDataFile = LOCAL\n"),
        ("a.nrrd", NRRD + b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0," + mm + b",7)\n\n"),
    ):
        (tmp_path / name).write_bytes(head + scan_array.tobytes(order="F"))
        with pytest.raises(
            GeometryError, match=rf"^{name} lies 1e\+\d+ mm from the origin; expected at most 1000000 mm"
        ):
            read_volume(tmp_path / name)


def test_axes_that_are_not_numbers_are_refused_as_such(tmp_path, scan_array):
    matrix = b"TransformMatrix = nan 0 0 0 1 0 0 0 1\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(META + matrix + scan_array.tobytes(order="F"))
    with pytest.raises(GeometryError, match="a.mha has an affine with numbers that are not finite; expected finite"):
        read_volume(tmp_path / "a.mha")


def test_units_other_than_mm_are_converted_and_remarked(tmp_path, scan_array):
    mha = edited(save(tmp_path / "a.mha", scan_array), b"ElementType", b"DistanceUnits = cm\nElementType")
    nrrd = edited(save(tmp_path / "a.nrrd", scan_array), b"encoding", b'space units: "um" "um" "um"\nencoding')
    for path, spacing, words in (
        (mha, 10, "gives lengths in cm; converted to mm (one cm is 10 mm)"),
        (nrrd, 1e-3, "gives lengths in um; converted to mm (one um is 0.001 mm)"),
    ):
        volume = read_volume(path)
        assert volume.grid.spacing_mm == pytest.approx([spacing] * 3)
        assert volume.remarks == (f"{path.name} {words}",)


@pytest.mark.parametrize("value", ["-1", "0", "1", "11", "12", "100000", "-2147483648", "4294967296", "1e53", "x"])
def test_an_absurd_count_of_axes_ends_nothing_but_the_reading(tmp_path, scan_array, value):
    mha, nrrd = save(tmp_path / "a.mha", scan_array), save(tmp_path / "a.nrrd", scan_array)
    edited(mha, b"NDims = 3", b"NDims = " + value.encode())
    edited(nrrd, b"dimension: 3", b"dimension: " + value.encode())
    for path in (mha, nrrd):
        with pytest.raises(FileError, match=rf"{path.name} has the header field .*; expected .*; repair its header"):
            read_volume(path)


ABSURD = ("", "-1", "0", "1e300", "nan", "inf", "x", "9" * 30, "1 " * 400, "((((", "%n%s", "LIST", "\0", "none")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_no_field_of_a_header_does_more_than_be_refused(tmp_path, scan_array, suffix):
    path = save(tmp_path / f"a{suffix}", scan_array)
    content = path.read_bytes()
    head = content[: -scan_array.nbytes].decode().splitlines()
    for n, line in enumerate(head):
        key, separator = re.match(r"([^=:]*)([=:]?)", line).groups()
        for value in ABSURD:
            bad = "\n".join([*head[:n], f"{key}{separator} {value}", *head[n + 1 :], ""]).encode()
            path.write_bytes(bad + b"\n" * (suffix == ".nrrd") + content[-scan_array.nbytes :])
            try:
                read_volume(path)
            except InputError as error:
                assert "\n" not in str(error)


META = b"NDims = 3\nDimSize = 6 7 9\nElementType = MET_SHORT\n"
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 7 9\nencoding: raw\nendian: little\n"
AS_ITK = [
    (".mha", b"ElementSize = 2 3 4\n"),
    (".mha", b"ElementSize = 2 3 4\nElementSpacing = 5 6 7\n"),
    (".mha", b"TransformMatrix = 0 1 0 0 0 1 1 0 0\nElementSpacing = 5 6 7\nOffset = 1 2 3\n"),
    (".mha", b"Rotation = 0 1 0 1 0 0 0 0 1\nPosition = -1 2 3\n"),
    (".mha", b"Orientation = 0 -1 0 1 0 0 0 0 1\nOrigin = -1 2 3\nHeaderSize = -1\n"),
    (".mha", b"AnatomicalOrientation = RAS\nCenterOfRotation = x y z\nElementByteOrderMSB = True\n"),
    (".nrrd", b"spacings: 2 3 4\naxis mins: 10 20 30\n"),
    (".nrrd", b"spacings: 2 3 4\naxis mins: 10 20 30\ncenterings: node node node\n"),
    (".nrrd", b"space: left-anterior-superior\nspace directions: (0,1,0) (0,0,2) (3,0,0)\nspace origin: (1,2,3)\n"),
    (".nrrd", b"space: RAS\nspace directions: (0,1,0) (0,0,2) (3,0,0)\nspace origin: (1,2,3)\n"),
    (".nrrd", b"space: scanner-xyz\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n"),
    (".nrrd", b"space dimension: 3\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n"),
    (".nrrd", b"thicknesses: nan nan 3\n"),
]


@pytest.mark.parametrize(("suffix", "fields"), AS_ITK)
def test_every_way_to_say_a_place_is_understood_as_by_itk(tmp_path, scan_array, suffix, fields):
    path = tmp_path / f"a{suffix}"
    head = META + fields + b"ElementDataFile = LOCAL\n" if suffix == ".mha" else NRRD + fields + b"\n"
    path.write_bytes(head + scan_array.tobytes(order="F"))
    image, volume = sitk.ReadImage(str(path)), read_volume(path)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    for index in ((0, 0, 0), (5, 0, 0), (0, 6, 0), (0, 0, 8)):
        expected = LPS @ image.TransformIndexToPhysicalPoint(index)
        assert volume.grid.index_to_world(index) == pytest.approx(expected, abs=1e-9)

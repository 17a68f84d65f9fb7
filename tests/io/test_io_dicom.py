"""Reading DICOM series: order, geometry and rescaling by hand on an oblique stack; refusal of what is not a scan."""

from __future__ import annotations

import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from io_phantoms import COLUMN, NORMAL, ORIGIN, PIXEL_SPACING, ROW, SLICE_STEP, packed_by_gdcm, smooth_array
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
    SegmentationStorage,
)

from voxsam.errors import FileError, GeometryError, ImageError, InputError, UnsupportedError
from voxsam.io import read_volume
from voxsam.io.dicom import files as dicom_files
from voxsam.io.dicom import files as dicom_zip

RAS = np.diag([-1.0, -1, 1])


def zipped(folder, target, prefix=""):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return target


# What comes in


def test_columns_rows_and_slices_lie_where_the_headers_say(tmp_path, write_series, scan_array):
    volume = read_volume(write_series(tmp_path / "ct"))
    assert volume.modality == "CT"
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, scan_array)
    i, j, k = 3, 5, 2
    between_rows, between_columns = PIXEL_SPACING
    expected_lps = ORIGIN + i * between_columns * ROW + j * between_rows * COLUMN + k * SLICE_STEP * NORMAL
    assert volume.grid.index_to_world((i, j, k)) == pytest.approx(RAS @ expected_lps, abs=1e-5)
    assert volume.grid.spacing_mm == pytest.approx([between_columns, between_rows, SLICE_STEP])


def test_agrees_with_simpleitks_own_series_reader(tmp_path, write_series):
    folder = write_series(tmp_path / "ct", RescaleSlope=0.5, RescaleIntercept=-3)
    volume = read_volume(folder)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    assert np.array_equal(sitk.GetArrayFromImage(image).T, volume.array)
    for index in [(0, 0, 0), (5, 0, 0), (0, 6, 0), (0, 0, 8), (1, 2, 3)]:
        physical = RAS @ image.TransformIndexToPhysicalPoint(index)
        assert volume.grid.index_to_world(index) == pytest.approx(physical, abs=1e-4)


def test_slices_written_against_the_normal_are_turned_round(tmp_path, write_series, scan_array):
    volume = read_volume(write_series(tmp_path / "ct", step=-SLICE_STEP * NORMAL))
    assert np.array_equal(volume.array, scan_array[:, :, ::-1])
    first_lps = ORIGIN - 8 * SLICE_STEP * NORMAL
    assert volume.grid.index_to_world((0, 0, 0)) == pytest.approx(RAS @ first_lps, abs=1e-5)
    assert np.linalg.det(volume.grid.affine[:3, :3]) > 0


def test_rescale_gives_float32(tmp_path, write_series, scan_array):
    volume = read_volume(write_series(tmp_path / "ct", RescaleSlope=0.37, RescaleIntercept=-3.5))
    assert volume.array.dtype == np.float32
    assert volume.array == pytest.approx(scan_array * 0.37 - 3.5, rel=1e-6, abs=1e-5)


def test_each_slice_has_its_own_rescale(tmp_path, write_series, scan_array):
    def rescale(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -10 * k

    volume = read_volume(write_series(tmp_path / "pt", rescale, Modality="PT"))
    k = np.arange(9)
    assert volume.array == pytest.approx(scan_array * (k + 1.0) - 10.0 * k)
    assert volume.modality == "PT"


def test_unsigned_pixels(tmp_path, write_series, scan_array):
    array = scan_array.astype(np.uint16) + np.uint16(40_000)  # above the range of int16
    volume = read_volume(write_series(tmp_path / "mr", array=array, Modality="MR"))
    assert volume.array.dtype == np.uint16 and np.array_equal(volume.array, array)
    assert volume.modality == "MR"


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_by_pydicom(tmp_path, write_series, syntax):
    folder = write_series(tmp_path / "ct", lambda dataset, k: dataset.compress(syntax), array=smooth_array())
    assert np.array_equal(read_volume(folder).array, smooth_array())


@pytest.mark.parametrize(("compressor", "syntax"), [("JPEG", JPEGLosslessSV1), ("JPEG2000", JPEG2000Lossless)])
def test_compressed_by_gdcm(tmp_path, write_series, compressor, syntax):
    def compress(dataset, k):
        packed = packed_by_gdcm(smooth_array()[:, :, k], compressor, tmp_path)
        assert packed.file_meta.TransferSyntaxUID == syntax
        dataset["PixelData"] = packed["PixelData"]
        dataset.file_meta.TransferSyntaxUID = syntax

    folder = write_series(tmp_path / "ct", compress, array=smooth_array(), RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(read_volume(folder).array, smooth_array() - 1024)


def test_junk_and_objects_that_are_no_slices_are_left_alone(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "old.bin").write_bytes(b"\x08\x00" + b"junk" * 50)
    for modality, kind in (("SEG", SegmentationStorage), ("RTSTRUCT", RTStructureSetStorage)):
        other = pydicom.dcmread(folder / "IM00.dcm")
        other.Modality, other.SOPClassUID, other.SeriesInstanceUID = modality, kind, "9.9"
        if modality == "RTSTRUCT":
            del other.PixelData, other.Rows, other.Columns
        other.save_as(folder / f"{modality}.dcm")
    screenshot = pydicom.dcmread(folder / "IM00.dcm")
    screenshot.SeriesInstanceUID, screenshot.Modality = "8.8", "OT"
    del screenshot.ImagePositionPatient, screenshot.ImageOrientationPatient
    screenshot.save_as(folder / "dose.dcm")
    assert np.array_equal(read_volume(folder).array, scan_array)


def test_slices_in_subfolders_are_found(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "study" / "series")
    (tmp_path / "study" / "more").mkdir()
    (folder / "IM00.dcm").rename(tmp_path / "study" / "more" / "IM00.dcm")
    assert np.array_equal(read_volume(tmp_path / "study").array, scan_array)


def test_files_without_the_dicm_mark_are_read(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[132:])
    assert np.array_equal(read_volume(folder).array, scan_array)


def test_positions_with_one_decimal_are_still_one_grid(tmp_path, write_series):
    def rounded(dataset, k):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, round(0.625 * k, 1)]

    assert read_volume(write_series(tmp_path / "ct", rounded)).grid.spacing_mm[2] == pytest.approx(5.0 / 8)


# Zip


def test_a_zip_is_read_like_its_folder(tmp_path, write_series):
    folder = write_series(tmp_path / "ct")
    (folder / "notes.txt").write_text("no image")
    a, b = read_volume(folder), read_volume(zipped(folder, tmp_path / "ct.ZIP", "patient/series/"))
    assert np.array_equal(a.array, b.array) and a.grid == b.grid and a.modality == b.modality


def test_a_zip_cannot_write_outside(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "in" / "ct")
    (tmp_path / "in" / "deep").mkdir()
    archive = zipped(folder, tmp_path / "in" / "deep" / "ct.zip", "../../../")
    before = sorted(tmp_path.rglob("*"))
    assert np.array_equal(read_volume(archive).array, scan_array)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("IM*.dcm"))


def test_a_zip_leaves_nothing_in_the_temporary_folder(tmp_path, write_series, monkeypatch):
    archive = zipped(write_series(tmp_path / "ct"), tmp_path / "ct.zip")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    read_volume(archive)
    assert list(temporary.iterdir()) == []


def test_refuses_a_zip_bomb_before_unpacking(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(5):
            archive.writestr(f"{n}.dcm", b"")
    content = bytearray((tmp_path / "bomb.zip").read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 24 : at + 28] = (2**30).to_bytes(4, "little")  # the uncompressed size of each member
    (tmp_path / "bomb.zip").write_bytes(content)
    words = "bomb.zip would unpack to 5.0 GiB; expected at most 4 GiB; zip one series alone, or give its folder"
    with pytest.raises(FileError, match=words):
        read_volume(tmp_path / "bomb.zip")


def test_refuses_a_zip_that_shrank_too_well(tmp_path, write_series):
    archive = zipped(write_series(tmp_path / "ct"), tmp_path / "ct.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as more:
        more.writestr("zeros.dcm", bytes(80 * 2**20))
    words = r"ct\.zip would unpack to \d{3,4} times its size; expected at most 50 times"
    with pytest.raises(FileError, match=words):
        read_volume(archive)


def test_refuses_a_zip_whose_directory_would_fill_the_memory(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for n in range(500):
            archive.writestr(f"{n}.dcm", b"")
    monkeypatch.setattr(dicom_zip, "MAX_DIRECTORY_BYTES", 20_000)
    with pytest.raises(
        FileError, match=r"many\.zip holds a directory of 2\d,\d{3} bytes; expected at most 20,000 files"
    ):
        read_volume(tmp_path / "many.zip")


def test_refuses_a_zip_of_lzma_and_reads_members_without_a_name(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(folder / "IM00.dcm", "IM00.dcm")
    with pytest.raises(FileError, match=r"lzma\.zip is packed with LZMA or bzip2; expected a common zip \(deflate\)"):
        read_volume(tmp_path / "lzma.zip")
    content = zipped(folder, tmp_path / "ct.zip").read_bytes()
    (tmp_path / "noname.zip").write_bytes(content.replace(b"IM00.dcm", b"\0M00.dcm"))
    assert np.array_equal(read_volume(tmp_path / "noname.zip").array, scan_array)


@pytest.mark.parametrize(
    ("tag", "value"),
    [("NumberOfFrames", -3), ("NumberOfFrames", [1, 2]), ("BitsAllocated", [16, 16]), ("Rows", [7, 7])],
)
def test_refuses_counts_that_are_none(tmp_path, write_series, tag, value):
    def spoil(dataset, k):
        if k == 4:
            setattr(dataset, tag, value)

    with pytest.raises(FileError, match=r"IM\d\d\.dcm is truncated or damaged \(its DICOM header"):
        read_volume(write_series(tmp_path / "ct", spoil))


def test_members_that_are_no_dicom_are_not_unpacked(tmp_path, write_series, monkeypatch, scan_array):
    folder = write_series(tmp_path / "ct")
    (folder / "movie.avi").write_bytes(b"RIFF" * 1000)
    archive, unpacked = zipped(folder, tmp_path / "ct.zip"), []
    copy = dicom_zip.shutil.copyfileobj
    monkeypatch.setattr(dicom_zip.shutil, "copyfileobj", lambda a, b: (unpacked.append(a.name), copy(a, b)))
    assert np.array_equal(read_volume(archive).array, scan_array)
    assert len(unpacked) == 9 and "movie.avi" not in unpacked


def test_refuses_too_many_files(tmp_path, write_series, monkeypatch):
    folder = write_series(tmp_path / "ct")
    archive = zipped(folder, tmp_path / "ct.zip")
    monkeypatch.setattr(dicom_files, "MAX_FILES", 8)
    monkeypatch.setattr(dicom_zip, "MAX_FILES", 8)
    with pytest.raises(FileError, match="ct holds over 8 files; expected one series"):
        read_volume(folder)
    with pytest.raises(FileError, match=r"ct\.zip holds 9 files; expected at most 8"):
        read_volume(archive)


def test_refuses_a_broken_an_encrypted_and_a_useless_zip(tmp_path, write_series):
    archive = zipped(write_series(tmp_path / "ct"), tmp_path / "ct.zip")
    content = archive.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"cut\.zip is truncated or damaged \(it cannot be unzipped: .*\); expected"):
        read_volume(tmp_path / "cut.zip")
    damaged = bytearray(content)
    damaged[200:260] = b"\xff" * 60
    (tmp_path / "bad.zip").write_bytes(damaged)
    with pytest.raises(FileError, match=r"bad\.zip is truncated or damaged"):
        read_volume(tmp_path / "bad.zip")
    locked = bytearray(content)
    at = locked.find(b"PK\x01\x02")
    locked[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(FileError, match=r"locked\.zip is encrypted; expected a zip without a password"):
        read_volume(tmp_path / "locked.zip")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as text:
        text.writestr("notes.txt", "no image")
    with pytest.raises(FileError, match=r"text\.zip holds no DICOM images"):
        read_volume(tmp_path / "text.zip")


# Stacks that are no scan


def test_refuses_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(
        FileError, match=r"holds no DICOM images; expected a DICOM series \(CT or MR\); give the folder"
    ):
        read_volume(tmp_path)


def test_refuses_mixed_series_and_lists_them(tmp_path, write_series):
    folder = write_series(tmp_path / "ct", SeriesDescription="arterial")
    extra = {"SeriesNumber": 7, "Modality": "MR", "SeriesDescription": "T1"}
    write_series(folder, lambda dataset, k: k < 4, series="1.2.9", prefix="MR", **extra)
    words = (
        r"ct holds 2 image series \(CT series 4 'arterial': 9 images, MR series 7 'T1': 4 images\); "
        r"expected one series; choose with --series N \(or series= in Python\), N the number or UID"
    )
    with pytest.raises(FileError, match=words):
        read_volume(folder)


def test_refuses_a_missing_slice(tmp_path, write_series):
    words = (
        r"ct has 1 missing slice\(s\), the largest gap between .* mm along the normal; expected a slice every 2.5 mm"
    )
    with pytest.raises(GeometryError, match=words):
        read_volume(write_series(tmp_path / "ct", lambda dataset, k: k != 4))


@pytest.mark.parametrize("left_out", [(1,), (7,), (2, 3), (2, 5)])
def test_counts_the_missing_slices(tmp_path, write_series, left_out):
    with pytest.raises(GeometryError, match=rf"ct has {len(left_out)} missing slice"):
        read_volume(write_series(tmp_path / "ct", lambda dataset, k: k not in left_out))


def test_refuses_duplicate_slices(tmp_path, write_series):
    def repeat(dataset, k):
        if k == 4:
            dataset.ImagePositionPatient = [float(f"{x:.6f}") for x in ORIGIN + 3 * SLICE_STEP * NORMAL]

    words = r"ct has duplicate slices: .* and .* lie at the same position, .* mm along the normal \(1 such pairs\)"
    with pytest.raises(GeometryError, match=words):
        read_volume(write_series(tmp_path / "ct", repeat))


def test_refuses_uneven_spacing(tmp_path, write_series):
    def move(dataset, k):
        if k == 5:
            dataset.ImagePositionPatient = [float(x) for x in ORIGIN + 5.3 * SLICE_STEP * NORMAL]

    words = r"ct has uneven slice spacing \(1.75 to 3.25 mm, the largest gap between .*; expected one slice spacing"
    with pytest.raises(GeometryError, match=words):
        read_volume(write_series(tmp_path / "ct", move))


@pytest.mark.parametrize("degrees", [3, 12, 18.5, -30])
def test_a_tilted_gantry_is_the_sheared_grid_that_it_is(tmp_path, write_series, scan_array, degrees):
    step = SLICE_STEP * NORMAL + np.tan(np.radians(degrees)) * SLICE_STEP * COLUMN
    volume = read_volume(write_series(tmp_path / "ct", step=step))
    assert np.array_equal(volume.array, scan_array)
    assert volume.grid.index_to_world((0, 0, 8)) == pytest.approx(RAS @ (ORIGIN + 8 * step), abs=1e-5)
    remark = volume.remarks[0]
    assert f"the slices of ct lean by {abs(degrees):.1f} degrees (gantry tilt)" in remark


def test_refuses_a_slice_that_is_shifted_in_its_plane(tmp_path, write_series):
    def move(dataset, k):
        if k == 5:
            dataset.ImagePositionPatient = [float(x) for x in ORIGIN + 5 * SLICE_STEP * NORMAL + 1.5 * ROW]

    with pytest.raises(
        GeometryError, match="the slices of ct are not stacked in a line: one is shifted by 1.2 mm in its plane"
    ):
        read_volume(write_series(tmp_path / "ct", move))


@pytest.mark.parametrize(("few", "words"), [((4,), "missing slice"), ((0, 4, 7), "holds 2 image series")])
def test_refuses_slices_of_another_orientation(tmp_path, write_series, few, words):
    def turn(dataset, k):
        if k in few:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    with pytest.raises(InputError, match=words):
        read_volume(write_series(tmp_path / "ct", turn))


def test_refuses_slices_that_are_not_quite_parallel(tmp_path, write_series):
    def turn(dataset, k):
        if k == 4:
            dataset.ImageOrientationPatient = [float(x) for x in (*(ROW + 0.01 * COLUMN), *(COLUMN - 0.01 * ROW))]

    with pytest.raises(GeometryError, match="the slices of ct have different orientations; expected parallel slices"):
        read_volume(write_series(tmp_path / "ct", turn))


def test_refuses_an_orientation_that_is_not_perpendicular(tmp_path, write_series):
    with pytest.raises(GeometryError, match="ImageOrientationPatient of ct is not two perpendicular unit vectors"):
        read_volume(write_series(tmp_path / "ct", ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]))


@pytest.mark.parametrize("spacing", [[0.7, 0], [-0.7, 0.5]])
def test_refuses_pixel_spacing_that_is_not_positive(tmp_path, write_series, spacing):
    with pytest.raises(
        GeometryError, match="that are not positive or differ between slices; expected the same positive"
    ):
        read_volume(write_series(tmp_path / "ct", PixelSpacing=spacing))


def test_refuses_pixel_spacing_that_differs(tmp_path, write_series):
    def zoom(dataset, k):
        dataset.PixelSpacing = [0.7, 0.5 if k else 0.6]

    with pytest.raises(GeometryError, match="pixel spacings of 0.5 to 0.7 mm that are not positive or differ"):
        read_volume(write_series(tmp_path / "ct", zoom))


def test_refuses_slices_of_another_size(tmp_path, write_series):
    def halve(dataset, k):
        if k == 2:
            dataset.Rows, dataset.PixelData = 3, dataset.PixelData[: 6 * 3 * 2]

    with pytest.raises(GeometryError, match="ct has slices of 6 x 3 and 6 x 7 pixels; expected one size"):
        read_volume(write_series(tmp_path / "ct", halve))


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_refuses_images_without_geometry(tmp_path, write_series, tag):
    with pytest.raises(GeometryError, match=rf"ct: the DICOM image IM\d\d.dcm has no valid {tag}"):
        read_volume(write_series(tmp_path / "ct", **{tag: None}))


def test_refuses_a_single_slice(tmp_path, write_series):
    with pytest.raises(ImageError, match=r"ct holds a single slice \(IM00.dcm\); expected a 3D scan"):
        read_volume(write_series(tmp_path / "ct", lambda dataset, k: k == 0))


def test_refuses_a_single_dicom_file(tmp_path, write_series):
    folder = write_series(tmp_path / "ct")
    with pytest.raises(FileError, match=r"IM00.dcm is a single DICOM file; expected the folder or .zip of its series"):
        read_volume(folder / "IM00.dcm")


def test_refuses_multi_frame_of_the_old_kind(tmp_path, write_series, scan_array):
    def frames(dataset, k):
        dataset.NumberOfFrames, dataset.PixelData = 9, scan_array.T.tobytes()
        return k == 0

    words = r"IM00\.dcm is a multi-frame DICOM file of 9 frames without their positions; expected an enhanced CT"
    with pytest.raises(UnsupportedError, match=words):
        read_volume(write_series(tmp_path / "ct", frames))


def test_refuses_colour_and_inverted_grey(tmp_path, write_series):
    def colour(dataset, k):
        dataset.SamplesPerPixel, dataset.PixelData = 3, dataset.PixelData * 3

    with pytest.raises(ImageError, match="has several channels"):
        read_volume(write_series(tmp_path / "rgb", colour))
    with pytest.raises(ImageError, match=r"IM\d\d.dcm is stored as MONOCHROME1; expected MONOCHROME2"):
        read_volume(write_series(tmp_path / "mono", PhotometricInterpretation="MONOCHROME1"))


@pytest.mark.parametrize("lost", [1, 40, 100])
def test_refuses_a_slice_that_is_cut_off_in_its_pixels(tmp_path, write_series, lost):
    folder = write_series(tmp_path / "ct")
    cut = folder / "IM07.dcm"
    cut.write_bytes(cut.read_bytes()[:-lost])  # 84 bytes of pixels
    with pytest.raises(FileError, match=r"IM07.dcm is truncated or damaged \(.*\); expected a complete file"):
        read_volume(folder)


@pytest.mark.parametrize("kept", [140, 200, 400, 500, 600])
def test_refuses_a_slice_that_is_cut_off_in_its_header(tmp_path, write_series, kept):
    folder = write_series(tmp_path / "ct")
    cut = folder / "IM07.dcm"
    cut.write_bytes(cut.read_bytes()[:kept])
    with pytest.raises(FileError, match=r"IM07\.dcm is truncated or damaged"):
        read_volume(folder)


def test_refuses_compressed_pixels_that_are_cut_off(tmp_path, write_series):
    folder = write_series(tmp_path / "ct", lambda dataset, k: dataset.compress(RLELossless))
    cut = folder / "IM07.dcm"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(FileError, match=r"IM07.dcm is truncated or damaged \(its compressed pixels end too early\)"):
        read_volume(folder)


def test_refuses_huge_declared_dimensions_before_allocating(tmp_path, write_series):
    with pytest.raises(
        FileError, match=r"is truncated or damaged \(7200000000 bytes of pixels are declared, 84 are there"
    ):
        read_volume(write_series(tmp_path / "ct", Rows=60000, Columns=60000))

    def packed(dataset, k):
        dataset.compress(RLELossless)
        dataset.Rows = dataset.Columns = 60000

    with pytest.raises(ImageError, match="rle declares 60000 x 60000 x 9 voxels; expected at most"):
        read_volume(write_series(tmp_path / "rle", packed))


@pytest.mark.parametrize(("compressor", "start", "size_at"), [("JPEG", b"\xff\xc3", 5), ("JPEG2000", b"\xff\x51", 6)])
def test_refuses_a_codestream_of_another_size_before_decoding_it(tmp_path, write_series, compressor, start, size_at):
    """A few hundred bytes that declare 30000 x 30000 pixels would take gigabytes to decode."""

    def swell(dataset, k):
        packed = packed_by_gdcm(smooth_array()[:, :, k], compressor, tmp_path)
        pixels = bytearray(packed.PixelData)
        at = pixels.find(start) + size_at
        size = b"\x75\x30" * 2 if compressor == "JPEG" else b"\x00\x00\x75\x30" * 2
        pixels[at : at + len(size)] = size
        dataset.PixelData = bytes(pixels)
        dataset.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID

    words = r"is truncated or damaged \(its compressed pixels are 30000 x 30000, its header says 20 x 24\)"
    with pytest.raises(FileError, match=words):
        read_volume(write_series(tmp_path / "ct", swell, array=smooth_array()))


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_refuses_a_codestream_of_more_bits_than_its_header_has_room_for(tmp_path, write_series, compressor):
    """Decoded into eight bits, its values would silently be cut off or taken modulo 256."""

    def narrow(dataset, k):
        packed = packed_by_gdcm(smooth_array()[:, :, k], compressor, tmp_path)
        dataset.PixelData, dataset.file_meta.TransferSyntaxUID = packed.PixelData, packed.file_meta.TransferSyntaxUID
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7

    words = r"truncated or damaged \(its compressed pixels have 16 bits, its header has room for 8\)"
    with pytest.raises(FileError, match=words):
        read_volume(write_series(tmp_path / "ct", narrow, array=smooth_array()))


def test_refuses_compressed_pixels_that_are_said_to_be_none(tmp_path, write_series, scan_array):
    """If they are as long as uncompressed ones, or longer, they would be read as noise."""

    def mislabelled(dataset, k):
        size = len(dataset.PixelData)
        dataset.PixelData = encapsulate([np.random.default_rng(k).bytes(size)])
        dataset["PixelData"].is_undefined_length = False

    words = r"damaged \(its pixels are compressed, and its transfer syntax says that they are not\)"
    with pytest.raises(FileError, match=words):
        read_volume(write_series(tmp_path / "ct", mislabelled))


def test_deflated_files_are_read_and_bombs_among_them_refused(tmp_path, write_series, scan_array, monkeypatch):
    def deflate(dataset, k):
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.add_new(0x00091010, "OB", bytes(3 * 2**20) if k == 4 else b"")
        dataset.add_new(0x00090010, "LO", "phantom")

    folder = write_series(tmp_path / "ct", deflate)
    assert np.array_equal(read_volume(folder).array, scan_array)
    monkeypatch.setattr(dicom_files, "MAX_INFLATED_BYTES", 2**21)
    with pytest.raises(
        FileError, match=r"IM\d\d.dcm unpacks to more than .* GiB; expected a DICOM file of common size"
    ):
        read_volume(folder)

"""DICOM folders as found on real disks: copies, links, localizers, several series, discs, private syntaxes."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pydicom
import pytest
from io_phantoms import COLUMN, NORMAL, ORIGIN, SLICE_STEP

from voxsam.errors import FileError, GeometryError, InputError
from voxsam.io import read_volume
from voxsam.io.checks import at_most


def said(volume):
    """The remarks, except the one on values: the phantom is not a CT."""
    return tuple(remark for remark in volume.remarks if "Hounsfield" not in remark)


# Copies


def test_a_file_that_was_copied_counts_once(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    (folder / "IM00 (1).dcm").write_bytes((folder / "IM00.dcm").read_bytes())
    volume = read_volume(folder)
    assert np.array_equal(volume.array, scan_array)
    assert said(volume) == ("ct has 1 copy of the same image; each counts once",)


def test_a_whole_folder_that_was_copied_counts_once(tmp_path, write_series, scan_array):
    shutil.copytree(write_series(tmp_path / "ct" / "a"), tmp_path / "ct" / "b")
    volume = read_volume(tmp_path / "ct")
    assert np.array_equal(volume.array, scan_array)
    assert said(volume) == ("ct has 9 copies of the same image; each counts once",)


def test_a_copy_that_was_written_by_another_program_is_the_same_image(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    again = pydicom.dcmread(folder / "IM00.dcm")
    again.InstitutionName = "elsewhere"
    again.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    again.save_as(folder / "again.dcm", enforce_file_format=True)
    assert np.array_equal(read_volume(folder).array, scan_array)


def test_refuses_two_images_of_one_uid_that_differ(tmp_path, write_series):
    folder = write_series(tmp_path / "ct")
    other = pydicom.dcmread(folder / "IM00.dcm")
    other.PixelData = other.PixelData[::-1]
    other.save_as(folder / "other.dcm")
    words = r"IM00\.dcm and other\.dcm have one SOPInstanceUID, but other pixels; expected one file for each instance"
    with pytest.raises(FileError, match=words):
        read_volume(folder)


# Links, pipes


def test_a_broken_link_is_passed_over(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    (folder / "notes.dcm").symlink_to("/nonexistent/annex/object")
    assert np.array_equal(read_volume(folder).array, scan_array)


def test_a_linked_folder_is_entered_once(tmp_path, write_series, scan_array):
    write_series(tmp_path / "real" / "slices")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "slices").symlink_to("../real/slices")
    (tmp_path / "linked" / "again").symlink_to("../real/slices")
    (tmp_path / "linked" / "round").symlink_to(tmp_path / "linked")
    volume = read_volume(tmp_path / "linked")
    assert np.array_equal(volume.array, scan_array) and said(volume) == ()


def test_links_to_single_slices_are_followed_but_not_for_others(tmp_path, write_series, scan_array):
    real = write_series(tmp_path / "annex")
    (tmp_path / "ct").mkdir()
    for file in real.iterdir():
        (tmp_path / "ct" / file.name).symlink_to(file)
    assert np.array_equal(read_volume(tmp_path / "ct").array, scan_array)
    with at_most(10**6), pytest.raises(FileError, match="ct holds no DICOM images"):
        read_volume(tmp_path / "ct")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_a_pipe_is_not_waited_for(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    os.mkfifo(folder / "pipe.dcm")
    assert np.array_equal(read_volume(folder).array, scan_array)


# Several stacks


def localizer(dataset, k):
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize("same", [False, True], ids=["its own series", "within the series"])
@pytest.mark.parametrize("slices", [1, 5])
def test_a_localizer_beside_the_scan_is_left_out_and_named(tmp_path, write_series, scan_array, same, slices):
    write_series(tmp_path / "study" / "axial", SeriesDescription="liver")
    array = np.arange(12 * 14 * slices, dtype=np.int16).reshape(12, 14, slices)
    write_series(tmp_path / "study" / "b", localizer, array=array, series="1.2.3.4" if same else "1.2.3.5")
    volume = read_volume(tmp_path / "study")
    assert np.array_equal(volume.array, scan_array)
    (remark,) = said(volume)
    images = f"{slices} image{'s' if slices > 1 else ''}"
    assert re.fullmatch(
        rf"study: read CT series 4\.\d 'liver': 9 images; left out: CT series 4\.\d '.*': {images}", remark
    )


def test_one_image_across_the_others_needs_no_name(tmp_path, write_series, scan_array):
    write_series(tmp_path / "study" / "axial")
    across = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "SeriesNumber": 1}
    write_series(tmp_path / "study" / "b", series="1.2.3.5", array=scan_array[:, :, :1], **across)
    volume = read_volume(tmp_path / "study")
    assert np.array_equal(volume.array, scan_array)
    assert said(volume) == ("study: read CT series 4 'phantom': 9 images; left out: CT series 1 'phantom': 1 image",)


def test_one_image_across_the_others_of_its_own_series_is_left_out(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    across = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    write_series(
        folder, lambda d, k: setattr(d, "SOPInstanceUID", "1.77"), array=scan_array[:, :, :1], prefix="X", **across
    )
    volume = read_volume(folder)
    assert np.array_equal(volume.array, scan_array)
    assert said(volume) == ("ct: read CT series 4.1 'phantom': 9 images; left out: CT series 4.2 'phantom': 1 image",)


def test_cosines_on_either_side_of_a_round_number_are_one_stack(tmp_path, write_series, scan_array):
    def drift(dataset, k):
        row, column = np.array([0.75, np.sqrt(1 - 0.75**2), 0]), np.array([0, 0, 1.0])
        turn = 1e-6 * (k % 2 - 0.5)
        dataset.ImageOrientationPatient = [*(row + turn), *column]
        dataset.ImagePositionPatient = [float(x) for x in 2.5 * k * np.cross(row, column)]

    assert np.array_equal(read_volume(write_series(tmp_path / "ct", drift)).array, scan_array)


@pytest.fixture
def two_series(tmp_path, write_series, scan_array):
    """A folder with series 4 (the scan) and series 7 (the scan, mirrored)."""
    write_series(tmp_path / "study" / "a", SeriesDescription="arterial")
    write_series(tmp_path / "study" / "b", series="1.2.3.7", array=scan_array[::-1], SeriesNumber=7)
    return tmp_path / "study"


@pytest.mark.parametrize(("series", "mirrored"), [(4, False), ("4", False), ("1.2.3.4", False), (7, True)])
def test_a_series_is_chosen_by_number_or_uid(two_series, scan_array, series, mirrored):
    volume = read_volume(two_series, series=series)
    assert np.array_equal(volume.array, scan_array[::-1] if mirrored else scan_array)
    assert "left out" in said(volume)[0]


def test_a_series_in_a_zip_is_chosen_too(tmp_path, two_series, scan_array):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for n, file in enumerate(sorted(two_series.rglob("*.dcm"))):
            archive.write(file, f"{n}")
    assert np.array_equal(read_volume(tmp_path / "study.zip", series=7).array, scan_array[::-1])


def test_a_series_that_is_not_there_is_answered_with_the_list(two_series):
    words = r"series '5' of study; expected one of its series: CT series 4 'arterial': 9 images, CT series 7 'phantom'"
    with pytest.raises(FileError, match=words):
        read_volume(two_series, series=5)


def test_a_disc_is_read_by_its_directory_file(tmp_path, write_series, scan_array):
    write_series(tmp_path / "disc" / "IMAGES")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.MediaStorageDirectoryStorage, "1.2"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory = pydicom.Dataset()
    directory.file_meta, directory.FileSetID = meta, "DISC"
    directory.save_as(tmp_path / "disc" / "DICOMDIR", enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path / "disc" / "DICOMDIR").array, scan_array)
    assert np.array_equal(read_volume(tmp_path / "disc").array, scan_array)


# Rounded positions and cosines


@pytest.mark.parametrize("step", [0.625, 0.5, 0.3, 3.27])
def test_positions_with_one_decimal_are_one_grid(tmp_path, write_series, step):
    array = np.random.default_rng(0).integers(-100, 100, (6, 7, 60)).astype(np.int16)

    def rounded(dataset, k):
        dataset.ImagePositionPatient = [round(float(x), 1) for x in ORIGIN + k * step * NORMAL]
        dataset.InstanceNumber, dataset.SOPInstanceUID = k, f"1.2.{k + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / "ct" / f"{k:03d}.dcm", enforce_file_format=True)
        return False

    (tmp_path / "ct").mkdir()
    volume = read_volume(write_series(tmp_path / "ct", rounded, array=array))
    assert np.array_equal(volume.array, array)
    assert volume.grid.spacing_mm[2] == pytest.approx(step, abs=0.2 / 59)


def test_a_missing_slice_is_still_missing_among_rounded_positions(tmp_path, write_series):
    def rounded(dataset, k):
        dataset.ImagePositionPatient = [round(float(x), 1) for x in ORIGIN + k * 0.4 * NORMAL]
        return k != 4

    with pytest.raises(GeometryError, match="missing slice|uneven slice spacing"):
        read_volume(write_series(tmp_path / "ct", rounded))


@pytest.mark.parametrize("decimals", [3, 4])
def test_cosines_with_three_decimals_are_made_perpendicular(tmp_path, write_series, decimals):
    turn = np.radians([17.3, -8.9])
    row = np.array([np.cos(turn[0]), np.sin(turn[0]), 0])
    across = np.array([-np.sin(turn[0]), np.cos(turn[0]), 0])
    column = np.cos(turn[1]) * across + np.sin(turn[1]) * np.array([0, 0, 1.0])
    cosines = np.round([*row, *column], decimals).tolist()
    volume = read_volume(
        write_series(tmp_path / "ct", step=2.5 * np.cross(row, column), ImageOrientationPatient=cosines)
    )
    unit = volume.grid.affine[:3, :3] / volume.grid.spacing_mm
    assert abs(unit[:, 0] @ unit[:, 1]) < 1e-9
    assert pytest.approx(np.stack([row, column]), abs=10.0**-decimals) == unit[:, :2].T * [-1, -1, 1]


# Private syntaxes, big-endian, unused bits


def test_ges_private_syntax_is_read(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.113619.5.2"
        dataset.save_as(file, enforce_file_format=True, implicit_vr=True, little_endian=True)
    assert np.array_equal(read_volume(folder).array, scan_array)


def test_another_private_syntax_is_read_as_it_is_written(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = "1.3.46.670589.33.1.4.1"
        dataset.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    assert np.array_equal(read_volume(folder).array, scan_array)


def test_big_endian_files_are_read(tmp_path, write_series, scan_array):
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        dataset = pydicom.dataset.FileDataset(file, dict(dataset.items()), file_meta=dataset.file_meta)
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    assert np.array_equal(read_volume(folder).array, scan_array)


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_above_those_that_are_used_do_not_count(tmp_path, write_series, signed):
    values = np.random.default_rng(0).integers(-2048 if signed else 0, 2048, (6, 7, 9)).astype(np.int16)
    stored = ((values & 0xFFF) | 0x5000).astype(np.uint16)  # an overlay in the unused bits
    used = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": signed}
    assert np.array_equal(read_volume(write_series(tmp_path / "ct", array=stored, **used)).array, values)


# Lengths that a file declares


LONG = struct.pack("<I", 0x30000000)
TRAPS = {
    "OB after the pixels": (b"\xe1\x7f\x10\x10OB\0\0" + LONG + b"x" * 20, False),
    "unknown VR after the pixels": (b"\xfe\xc6\xfd\x44\0\0" + LONG[2:] + LONG + b"x" * 20, False),
    "UN before the pixels": (b"\x29\0\x01\x10UN\0\0" + LONG, True),
    "in a sequence before the pixels": (
        *(b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff\x08\0\x50\0UN\0\0" + LONG + b"x", True),
    ),
}
PEAK = """
import sys
from pathlib import Path
from voxsam.io import read_volume
try:
    read_volume(sys.argv[1])
    print("read", end=" ")
except Exception as error:
    print(type(error).__name__, end=" ")
# VmHWM: ru_maxrss begins with that of the parent, a whole test run
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) >> 10 for line in lines if "VmHWM" in line))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KiB on Linux")
@pytest.mark.parametrize("trap", TRAPS)
def test_memory_is_not_taken_because_a_file_declares_it(tmp_path, write_series, trap):
    folder = write_series(tmp_path / "ct")
    file = folder / "IM07.dcm"
    data, (element, before) = file.read_bytes(), TRAPS[trap]
    at = data.index(b"\xe0\x7f\x10\x00") if before else len(data)
    file.write_bytes(data[:at] + element + data[at:])
    command = [sys.executable, "-c", PEAK, str(folder)]
    outcome, peak_mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert outcome == ("FileError" if before else "read")
    assert int(peak_mib) < 500


def test_a_length_beyond_the_end_is_damage_in_one_line(tmp_path, write_series):
    folder = write_series(tmp_path / "ct")
    file = folder / "IM07.dcm"
    data = file.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00")
    file.write_bytes(data[:at] + TRAPS["UN before the pixels"][0] + data[at:])
    with pytest.raises(InputError, match=r"IM07\.dcm is truncated or damaged"):
        read_volume(folder)


def test_a_step_along_the_columns_is_no_tilt_of_the_other_sign(tmp_path, write_series):
    step = SLICE_STEP * NORMAL - 0.4 * COLUMN
    grid = read_volume(write_series(tmp_path / "ct", step=step)).grid
    assert grid.affine[:3, 2] == pytest.approx(np.diag([-1, -1, 1]) @ step, abs=1e-6)

"""Multi-frame series: the same volume as with one file per slice, whatever the order of the frames."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from io_phantoms import smooth_array
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from voxsam.errors import FileError, GeometryError, ImageError, UnsupportedError
from voxsam.io import read_volume, write_mask


def test_frames_give_the_volume_of_their_slices(tmp_path, write_series, write_enhanced, scan_array):
    slices = read_volume(write_series(tmp_path / "ct"))
    for name in ("enhanced.dcm", "no-suffix"):
        frames = read_volume(write_enhanced(tmp_path / name))
        assert np.array_equal(frames.array, scan_array) and frames.array.dtype == np.int16
        assert frames.grid.close_to(slices.grid, 1e-6) and frames.modality == "CT"


def test_a_multi_frame_file_in_a_folder(tmp_path, write_enhanced, scan_array):
    (tmp_path / "ct").mkdir()
    write_enhanced(tmp_path / "ct" / "enhanced.dcm")
    assert np.array_equal(read_volume(tmp_path / "ct").array, scan_array)


def test_two_files_of_one_series_are_one_stack(tmp_path, write_enhanced, scan_array):
    for folder, order in (("a", (0, 2, 1, 3)), ("b", (8, 7, 4, 5, 6))):
        (tmp_path / "ct" / folder).mkdir(parents=True)
        write_enhanced(tmp_path / "ct" / folder / "same-name.dcm", order)
    volume = read_volume(tmp_path / "ct")
    assert np.array_equal(volume.array, scan_array)
    with pytest.raises(UnsupportedError, match="a mask of a series of several multi-frame files"):
        write_mask(volume.with_array(np.ones((6, 7, 9), np.uint8)), tmp_path / "mask.rtstruct.dcm")


def test_each_frame_has_its_own_rescale(tmp_path, write_enhanced, scan_array, scaling_of):
    def scale(item, k):
        item.PixelValueTransformationSequence = scaling_of(k + 1, -10 * k)

    volume = read_volume(write_enhanced(tmp_path / "pt.dcm", edit=scale))
    k = np.arange(9)
    assert volume.array.dtype == np.float32
    assert volume.array == pytest.approx(scan_array * (k + 1.0) - 10.0 * k)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_by_pydicom(tmp_path, write_enhanced, syntax):
    path = write_enhanced(tmp_path / "ct.dcm", array=smooth_array())
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    assert np.array_equal(read_volume(path).array, smooth_array())


def test_jpeg_2000_frames(tmp_path, write_enhanced):
    def pack(pixels):
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
        return stream.getvalue()

    array = (smooth_array() + 1000).astype(np.uint16)
    volume = read_volume(write_enhanced(tmp_path / "ct.dcm", pack=pack, syntax=JPEG2000Lossless, array=array))
    assert volume.array.dtype == np.uint16 and np.array_equal(volume.array, array)


def test_refuses_a_frame_whose_codestream_declares_another_size(tmp_path, write_enhanced):
    path = write_enhanced(tmp_path / "ct.dcm", array=smooth_array())
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEGLSLossless)
    at = dataset.PixelData.rfind(b"\xff\xf7")  # the frame header of the last frame: length, depth, rows, columns
    assert dataset.PixelData[at + 5 : at + 9] == bytes([0, 24, 0, 20])
    dataset.PixelData = dataset.PixelData[: at + 5] + b"\x75\x30\x75\x30" + dataset.PixelData[at + 9 :]
    dataset.save_as(path)
    words = r"ct\.dcm is truncated or damaged \(its compressed pixels are 30000 x 30000, its header says 20 x 24\)"
    with pytest.raises(FileError, match=words):
        read_volume(path)


def test_a_missing_frame_is_a_missing_slice(tmp_path, write_enhanced):
    with pytest.raises(GeometryError, match=r"ct\.dcm has 1 missing slice\(s\)"):
        read_volume(write_enhanced(tmp_path / "ct.dcm", (0, 1, 2, 3, 5, 6, 7, 8)))


def test_frames_at_one_place_are_named(tmp_path, write_enhanced):
    words = r"duplicate slices: frame [12] of ct\.dcm and frame [12] of ct\.dcm lie at the same position"
    with pytest.raises(GeometryError, match=words):
        read_volume(write_enhanced(tmp_path / "ct.dcm", (3, 3, 4, 5)))


def test_refuses_frames_without_positions(tmp_path, write_enhanced):
    def forget(item, k):
        if k == 4:
            del item.PlanePositionSequence

    words = "ct.dcm is a multi-frame DICOM file of 9 frames without their positions; expected an enhanced CT or MR"
    with pytest.raises(UnsupportedError, match=words):
        read_volume(write_enhanced(tmp_path / "ct.dcm", edit=forget))


def test_refuses_frames_that_are_not_there(tmp_path, write_enhanced):
    with pytest.raises(FileError, match="ct.dcm is truncated or damaged"):
        read_volume(write_enhanced(tmp_path / "ct.dcm", NumberOfFrames=12))


def test_refuses_more_frames_than_memory_before_reading_them(tmp_path, write_enhanced):
    path = write_enhanced(tmp_path / "ct.dcm", pack=lambda p: p.tobytes(), syntax=RLELossless, NumberOfFrames=2**30)
    with pytest.raises(ImageError, match=r"ct.dcm declares 6 x 7 x 1073741824 voxels; expected at most"):
        read_volume(path)


def test_a_mask_refers_to_the_frames(tmp_path, write_enhanced, scan_array):
    pytest.importorskip("highdicom")
    volume = read_volume(write_enhanced(tmp_path / "ct.dcm"))
    mask = volume.with_array((scan_array % 7 == 0).astype(np.uint8), "SEG")
    mask.array[:, :, 5:] = 0
    mask.array[1, 2, 8] = 1
    for name in ("mask.seg.dcm", "mask.rtstruct.dcm"):
        write_mask(mask, tmp_path / name)
        back = read_volume(tmp_path / name, labels=True, grid=volume.grid)
        assert np.array_equal(back.array, mask.array)
    written = pydicom.dcmread(tmp_path / "mask.seg.dcm")
    for item in written.PerFrameFunctionalGroupsSequence:
        frame = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        k = (4, 0, 8, 1, 7, 2, 6, 3, 5)[frame - 1]
        height = volume.grid.world_to_index(np.array(item.PlanePositionSequence[0].ImagePositionPatient) * [-1, -1, 1])
        assert height == pytest.approx([0, 0, k], abs=1e-4)
    contours = pydicom.dcmread(tmp_path / "mask.rtstruct.dcm").ROIContourSequence[0].ContourSequence
    assert {c.ContourImageSequence[0].ReferencedFrameNumber for c in contours} == {2, 4, 6, 8, 1, 3}

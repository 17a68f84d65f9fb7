"""Real DICOM masks: those of other programs are read as intended; ours come back on the series, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from voxsam.errors import ImageError
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_mask

SERIES = ("dicom/sts_003_ct_rtstruct", "dicom/prostate_adc_and_seg", "dicom/ct_3slice_and_seg")


def test_an_rtstruct_equals_the_label_that_was_made_from_it(shared_data):
    scan = read_volume(shared_data / "dicom/sts_003_ct_rtstruct")
    drawn = read_volume(shared_data / "dicom/sts_003_ct_rtstruct/mask/RS.dcm", labels=True, grid=scan.grid)
    label = read_volume(shared_data / "sarcoma_ct/labelsTr/STS_003.nii.gz", labels=True)
    assert drawn.header["segments"] == {1: "GTV_Mass_CT"} and drawn.array.sum() == 25693
    i, j, k = np.rint(label.grid.index_in(scan.grid, (0, 0, 0))).astype(int)
    ni, nj, nk = label.grid.shape
    part = drawn.array[i : i + ni, j : j + nj, k : k + nk]
    assert np.array_equal(part, label.array) and part.sum() == drawn.array.sum()


def test_a_dcmqi_segmentation_equals_its_nrrd(shared_data):
    folder = shared_data / "dicom/ct_3slice_and_seg"
    scan = read_volume(folder)
    liver = read_volume(folder / "liver.dcm", labels=True, grid=scan.grid)
    expected = read_volume(folder / "liver_seg.nrrd", labels=True)
    assert liver.header["segments"] == {1: "Liver"} and liver.grid == scan.grid
    assert_same_place(liver, expected)


def assert_same_place(volume, expected):
    """Check that every labelled voxel of one is on a voxel of the other with that label, whatever the axis orders."""
    at = np.argwhere(expected.array != 0)
    there = np.rint(expected.grid.index_in(volume.grid, at)).astype(int)
    assert np.abs(expected.grid.index_in(volume.grid, at) - there).max() < 0.01
    assert len(at) == np.count_nonzero(volume.array) > 100
    assert (volume.array[tuple(there.T)] != 0).all()


def test_overlapping_segments_equal_their_nrrds(shared_data):
    folder = shared_data / "dicom/ct_3slice_and_seg"
    scan = read_volume(folder)
    with pytest.raises(ImageError, match=r"segments 1 and 2 of partial_overlaps\.dcm overlap"):
        read_volume(folder / "partial_overlaps.dcm", labels=True, grid=scan.grid)
    layers = [read_volume(folder / f"partial_overlaps-{n}.nrrd", labels=True) for n in (1, 2, 3)]
    for number, voxels in enumerate((9602, 11888, 10743, 6693, 4713), 1):
        segment = read_volume(folder / "partial_overlaps.dcm", labels=True, grid=scan.grid, segment=number)
        assert segment.array.sum() == voxels
        holders = [layer for layer in layers if np.count_nonzero(layer.array == number) == voxels]
        assert len(holders) == 1
        assert_same_place(segment, holders[0].with_array(holders[0].array == number))


def test_the_lesion_of_an_oblique_series(shared_data):
    folder = shared_data / "dicom/prostate_adc_and_seg"
    scan = read_volume(folder)
    lesion = read_volume(folder / "seg/1-1.dcm", labels=True, grid=scan.grid, segment=3)
    prostate = read_volume(folder / "seg/1-1.dcm", labels=True, grid=scan.grid, segment=4)
    assert lesion.header["segments"][3] == "Lesion" and lesion.grid == scan.grid
    assert lesion.array.sum() == 118
    assert (prostate.array[lesion.array == 1] == 1).mean() > 0.9  # it lies in the prostate: no axis is mixed up
    # the centre, computed in another way: from the frames' own positions in millimetres
    header = pydicom.dcmread(folder / "seg/1-1.dcm")
    places = []
    for pixels, group in zip(header.pixel_array, header.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 3:
            shared = header.SharedFunctionalGroupsSequence[0]
            turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
            rows, columns = shared.PixelMeasuresSequence[0].PixelSpacing
            origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            for row, column in np.argwhere(pixels):
                places.append(origin + column * columns * turn[:3] + row * rows * turn[3:])
    middle_lps = np.mean(places, axis=0)
    found = scan.grid.index_to_world(np.argwhere(lesion.array)).mean(0)
    assert found == pytest.approx(middle_lps * [-1, -1, 1], abs=0.01)


@pytest.mark.parametrize("series", SERIES)
def test_masks_come_back_on_the_series(shared_data, tmp_path, series):
    """Two objects with noise at their borders, on the CT, the oblique MR and the CT in falling order."""
    scan = read_volume(shared_data / series)
    random, (ni, nj, nk) = np.random.default_rng(5), scan.grid.shape
    array = np.zeros(scan.grid.shape, np.uint8)
    array[ni // 3 : ni // 2, nj // 4 : nj // 3, : max(1, nk // 2)] = 1
    array[5:9, 8:20, 1:] = 2
    array[(array == 1) & (random.random(array.shape) < 0.1)] = 0
    mask = scan.with_array(array, "SEG")
    names = ["m.rtstruct.dcm"]
    try:
        import highdicom as hd
    except ImportError:
        hd = None
    else:
        names.append("m.seg.dcm")
    for name in names:
        write_mask(mask, tmp_path / name)
        back = read_volume(tmp_path / name, labels=True, grid=scan.grid)
        assert np.array_equal(back.array, array)
        with pytest.raises(AssertionError):  # and an exchange of two axes would be seen
            assert np.array_equal(back.array.transpose(1, 0, 2), array)
    if hd is not None:
        segmentation = hd.seg.segread(tmp_path / "m.seg.dcm")
        instances = [frame.sop_instance for frame in scan.header["dicom"].frames]
        read = segmentation.get_pixels_by_source_instance(
            instances, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
        assert np.array_equal(read, array.T)
        volume = segmentation.get_volume(combine_segments=True)
        own = Grid(volume.array.shape, np.diag([-1.0, -1, 1, 1]) @ volume.affine)
        at = np.argwhere(volume.array != 0)
        there = np.rint(own.index_in(scan.grid, at)).astype(int)
        assert np.array_equal(array[tuple(there.T)], volume.array[tuple(at.T)]) and len(at) == np.count_nonzero(array)

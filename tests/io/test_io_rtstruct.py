"""RTSTRUCT: exact round trips, with holes and islands; other programs' contours by hand; the file; refusals."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from voxsam.errors import GeometryError, ImageError
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_mask
from voxsam.io.dicom.rtstruct import DECIMALS

RAS = np.diag([-1.0, -1, 1])


@pytest.fixture
def scan(tmp_path, write_study):
    return read_volume(write_study(tmp_path / "ct"))


def ring_and_speck(scan):
    """Label 1 a ring with an island and a block that reaches the border, label 3 one voxel; 2 is left out."""
    array = np.zeros(scan.grid.shape, np.uint8)
    array[0:5, 1:7, 4] = 1
    array[1:4, 2:6, 4] = 0
    array[2, 3:5, 4] = 1
    array[3:, :4, 7:] = 1
    array[1, 5, 0] = 3
    return scan.with_array(array, "SEG")


def changed(path, edit):
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


def test_masks_come_back_exactly(tmp_path, scan):
    mask = ring_and_speck(scan)
    before = mask.array.copy()
    write_mask(mask, tmp_path / "m.rtstruct.dcm")
    back = read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=scan.grid)
    assert back.grid is scan.grid and back.modality == "SEG"
    assert np.array_equal(back.array, before) and np.array_equal(mask.array, before)
    assert back.header["segments"] == {1: "Tumour 1", 2: "Tumour 2", 3: "Tumour 3"}
    third = read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=scan.grid, segment=3)
    assert np.array_equal(third.array, before == 3)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_noise_comes_back_exactly(tmp_path, scan, fraction):
    array = (np.random.default_rng(3).random(scan.grid.shape) < fraction).astype(np.uint8)
    write_mask(scan.with_array(array), tmp_path / "m.rtstruct.dcm")
    assert np.array_equal(read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=scan.grid).array, array)


def test_contours_lie_round_their_voxel_on_its_own_image(tmp_path, scan):
    mask = scan.with_array(np.zeros((6, 7, 9), np.uint8))
    mask.array[4, 2, 6] = 1
    write_mask(mask, tmp_path / "m.rtstruct.dcm", names=["speck"])
    dataset = pydicom.dcmread(tmp_path / "m.rtstruct.dcm")
    (contour,) = dataset.ROIContourSequence[0].ContourSequence
    points = np.array(contour.ContourData, float).reshape(-1, 3) @ RAS
    assert contour.NumberOfContourPoints == 4
    assert points.mean(0) == pytest.approx(scan.grid.index_to_world((4, 2, 6)), abs=10**-DECIMALS)
    at = scan.grid.world_to_index(points)
    assert sorted(np.round(at, 3).tolist()) == [[3.5, 2, 6], [4, 1.5, 6], [4, 2.5, 6], [4.5, 2, 6]]
    image = contour.ContourImageSequence[0]
    assert image.ReferencedSOPInstanceUID == scan.header["dicom"].frames[6].sop_instance
    for value in contour.ContourData:
        assert len(str(value)) <= 16 and str(value) != "-0"


def test_an_empty_mask_is_a_roi_without_contours(tmp_path, scan):
    write_mask(scan.with_array(np.zeros((6, 7, 9), np.uint8)), tmp_path / "m.rtstruct.dcm")
    dataset = pydicom.dcmread(tmp_path / "m.rtstruct.dcm")
    assert len(dataset.StructureSetROISequence) == 1 and "ContourSequence" not in dataset.ROIContourSequence[0]
    for segment, which in ((None, "m.rtstruct.dcm"), (1, "ROI 1 'Tumour' of m.rtstruct.dcm")):
        back = read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=scan.grid, segment=segment)
        assert not back.array.any() and back.remarks == (f"{which} has no contours: the mask is empty",)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["Cord"], "ROI 2 'Cord'"),
        (["Cord", "", "Lung"], "ROIs 2 'Cord', 3 '', 4 'Lung'"),
        (list("abcdefg"), "ROIs 2 'a', 3 'b', 4 'c', 5 'd', 6 'e' and 2 more"),
    ],
)
def test_empty_rois_beside_a_full_one_are_named_in_a_remark(drawn, scan, others, said):
    def edit(dataset):
        for number, name in enumerate(others, 2):
            item, contours = pydicom.Dataset(), pydicom.Dataset()
            item.ROINumber = contours.ReferencedROINumber = number
            item.ROIName = name
            dataset.StructureSetROISequence.append(item)
            if number != 3:  # listed among the contours with none, or not at all
                dataset.ROIContourSequence.append(contours)

    path = changed(drawn(square(scan, 0.5, 4.5, 1.5, 5.5, 3)), edit)
    back = read_volume(path, labels=True, grid=scan.grid)
    assert np.count_nonzero(back.array == 1) == back.array.sum() == 16
    assert back.remarks == (f"m.rtstruct.dcm: no contours of {said}",)
    assert read_volume(path, labels=True, grid=scan.grid, segment=1).remarks == back.remarks
    empty = f"ROI 2 {others[0]!r} of m.rtstruct.dcm has no contours: the mask is empty"
    assert read_volume(path, labels=True, grid=scan.grid, segment=2).remarks == (empty,)


def test_contours_of_a_roi_that_is_not_listed_are_left_out_with_a_remark(drawn, scan):
    contours = [square(scan, 0.5, 4.5, 1.5, 5.5, 3)]
    for keyword, value in (("ROIContourSequence", 7), ("StructureSetROISequence", None)):

        def edit(dataset, keyword=keyword, value=value):
            if value is None:
                dataset.StructureSetROISequence = []
            else:
                dataset[keyword][0].ReferencedROINumber = value

        back = read_volume(changed(drawn(*contours), edit), labels=True, grid=scan.grid)
        assert not back.array.any()
        assert back.remarks == (
            "m.rtstruct.dcm: left out the contours of 1 ROI that it does not list",
            "m.rtstruct.dcm has no contours: the mask is empty",
        )


def test_it_refers_to_every_instance_and_repeats_the_patient(tmp_path, scan):
    write_mask(ring_and_speck(scan), tmp_path / "m.rtstruct.dcm", names=["A", "B", "Ç"], model="voxsam-tiny")
    dataset = pydicom.dcmread(tmp_path / "m.rtstruct.dcm")
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert frame.FrameOfReferenceUID == "1.2.3.8" and series.SeriesInstanceUID == "1.2.3.4"
    assert frame.RTReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2.3.9"
    assert [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence] == [
        frame.sop_instance for frame in scan.header["dicom"].frames
    ]
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["A", "B", "Ç"]
    assert [roi.ROINumber for roi in dataset.StructureSetROISequence] == [1, 2, 3]
    assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"SEMIAUTOMATIC"}
    assert (dataset.PatientName, dataset.PatientID, dataset.ApprovalStatus) == ("Phantom^Anna", "P-7", "UNAPPROVED")
    assert dataset.PatientBirthDate is None or dataset.PatientBirthDate == ""
    assert dataset.SoftwareVersions[1] == "voxsam-tiny" and dataset.Modality == "RTSTRUCT"


def test_contours_of_others_by_hand(tmp_path, scan):
    """Two nested rectangles as separate contours are a ring; the ROI number is 0; points do not count."""
    write_mask(scan.with_array(np.zeros((6, 7, 9), np.uint8)), tmp_path / "m.rtstruct.dcm")

    def rectangle(i0, i1, j0, j1, kind):
        corners = [(i0, j0, 3), (i1, j0, 3), (i1, j1, 3), (i0, j1, 3)]
        item = pydicom.Dataset()
        item.ContourGeometricType = kind
        item.ContourData = [f"{x:.3f}" for x in (scan.grid.index_to_world(corners) @ RAS).ravel()]
        return item

    def draw(dataset):
        dataset.StructureSetROISequence[0].ROINumber = dataset.ROIContourSequence[0].ReferencedROINumber = 0
        kinds = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "OPEN_PLANAR")
        rectangles = ((0.6, 5.4, 0.6, 6.4), (1.6, 3.4, 2.6, 4.4), (0, 1, 0, 1))
        contours = [rectangle(*ends, kind) for ends, kind in zip(rectangles, kinds, strict=True)]
        dataset.ROIContourSequence[0].ContourSequence = contours

    changed(tmp_path / "m.rtstruct.dcm", draw)
    expected = np.zeros((6, 7, 9), np.uint8)
    expected[1:6, 1:7, 3] = 1
    expected[2:4, 3:5, 3] = 0
    assert np.array_equal(read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=scan.grid).array, expected)


def test_only_the_part_on_a_cropped_scan_is_drawn(tmp_path, scan):
    mask = ring_and_speck(scan)
    write_mask(mask, tmp_path / "m.rtstruct.dcm")
    back = read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=scan.grid.crop((1, 2, 3), (4, 4, 5)))
    assert np.array_equal(back.array, mask.array[1:5, 2:6, 3:8])


@pytest.mark.parametrize("axes", ["RSA", "SAR", "ILP"])
def test_a_scan_with_other_axes(tmp_path, scan, axes):
    mask = ring_and_speck(scan)
    write_mask(mask, tmp_path / "m.rtstruct.dcm")
    grid = scan.grid.reorient(axes)
    back = read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=grid)
    there = np.rint(grid.index_in(scan.grid, np.moveaxis(np.indices(grid.shape), 0, -1))).astype(int)
    assert np.array_equal(back.array, mask.array[tuple(np.moveaxis(there, -1, 0))])


# Refusals


def test_refuses_to_read_without_a_scan(tmp_path, scan):
    write_mask(ring_and_speck(scan), tmp_path / "m.rtstruct.dcm")
    words = r"m\.rtstruct\.dcm is an RTSTRUCT, contours without voxels; expected the scan that they lie on; give"
    with pytest.raises(GeometryError, match=words):
        read_volume(tmp_path / "m.rtstruct.dcm", labels=True)


def test_refuses_contours_beside_the_slices(tmp_path, scan):
    write_mask(ring_and_speck(scan), tmp_path / "m.rtstruct.dcm")
    tilted = np.array(scan.grid.affine)
    tilted[:3, 1] += 0.4 * tilted[:3, 2]
    for grid in (scan.grid.respace((0.5, 0.7, 1.9)), Grid(scan.grid.shape, tilted)):
        with pytest.raises(GeometryError, match="has contours between the slices of the scan, or not parallel to them"):
            read_volume(tmp_path / "m.rtstruct.dcm", labels=True, grid=grid)


def test_refuses_overlapping_rois_and_unknown_ones(tmp_path, scan):
    write_mask(ring_and_speck(scan), tmp_path / "m.rtstruct.dcm")

    def double(dataset):
        dataset.ROIContourSequence[1].ContourSequence = dataset.ROIContourSequence[0].ContourSequence

    path = changed(tmp_path / "m.rtstruct.dcm", double)
    words = r"ROIs 1 and 2 of m\.rtstruct\.dcm overlap; .* choose one: segment=N, or m\.rtstruct\.dcm#N as a prompt"
    with pytest.raises(ImageError, match=words):
        read_volume(path, labels=True, grid=scan.grid)
    assert read_volume(path, labels=True, grid=scan.grid, segment=2).array.any()
    with pytest.raises(ImageError, match=r"ROI 4 of .*; expected one of 1 Tumour 1, 2 Tumour 2, 3 Tumour 3"):
        read_volume(path, labels=True, grid=scan.grid, segment=4)


# Contours that are odd


def square(scan, i0, i1, j0, j1, k, kind="CLOSED_PLANAR", count=4):
    """A contour of `count` corners of a rectangle in slice k, in voxels."""
    corners = [(i0, j0, k), (i1, j0, k), (i1, j1, k), (i0, j1, k)][:count]
    item = pydicom.Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, count
    item.ContourData = [f"{x:.4f}" for x in (scan.grid.index_to_world(np.reshape(corners, (-1, 3))) @ RAS).ravel()]
    return item


@pytest.fixture
def drawn(tmp_path, scan):
    """A function that writes an RTSTRUCT of one ROI with these contours."""
    write_mask(scan.with_array(np.zeros((6, 7, 9), np.uint8)), tmp_path / "m.rtstruct.dcm", names=["GTV"])

    def write(*contours, path=tmp_path / "m.rtstruct.dcm"):
        return changed(path, lambda d: setattr(d.ROIContourSequence[0], "ContourSequence", list(contours)))

    return write


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_stray_contour_without_area_adds_nothing_but_a_remark(drawn, scan, count):
    areas = [square(scan, 0.5, 4.5, 1.5, 5.5, k) for k in (3, 4, 5)]
    back = read_volume(drawn(*areas, square(scan, 2, 3, 2, 2, 7, count=count)), labels=True, grid=scan.grid)
    assert back.array.sum((0, 1)).tolist() == [0, 0, 0, 16, 16, 16, 0, 0, 0]
    assert back.remarks == ("ROI 1 'GTV' of m.rtstruct.dcm: left out 1 contour of less than three points",)


@pytest.mark.parametrize("data", [["1", "2"], ["1", "2", "3", "4"], ["1", "2", "nan"] * 4, ["1", "2", "1e308"] * 3])
def test_a_contour_whose_data_are_not_points_is_left_out_with_a_remark(drawn, scan, data):
    broken = square(scan, 1, 2, 1, 2, 3)
    broken["ContourData"] = pydicom.DataElement("ContourData", "LO", data)
    back = read_volume(drawn(square(scan, 0.5, 4.5, 1.5, 5.5, 3), broken), labels=True, grid=scan.grid)
    assert back.array.sum() == 16
    assert back.remarks == ("ROI 1 'GTV' of m.rtstruct.dcm: left out 1 contour whose data are not points",)


@pytest.mark.parametrize("turned", [0, 1, 2])
def test_a_contour_that_is_there_twice_counts_once(drawn, scan, turned):
    contours = [square(scan, 0.5, 4.5, 1.5, 5.5, k) for k in (3, 4, 5)]
    again = square(scan, 0.5, 4.5, 1.5, 5.5, 4)
    points = np.reshape(again.ContourData, (4, 3))
    again.ContourData = np.roll(points[::-1] if turned == 2 else points, turned, axis=0).ravel().tolist()
    back = read_volume(drawn(*contours, again), labels=True, grid=scan.grid)
    assert back.array.sum((0, 1)).tolist() == [0, 0, 0, 16, 16, 16, 0, 0, 0]


def test_contours_that_cross_are_joined_with_a_remark(drawn, scan):
    back = read_volume(
        drawn(square(scan, 0.5, 3.5, 0.5, 3.5, 4), square(scan, 2.5, 5.5, 2.5, 5.5, 4)), labels=True, grid=scan.grid
    )
    assert back.array[1:4, 1:4, 4].all() and back.array[3:6, 3:6, 4].all() and back.array.sum() == 9 + 9 - 1
    assert back.remarks == ("ROI 1 'GTV' of m.rtstruct.dcm: contours cross one another in 1 slices; joined there",)


@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "OPEN_NONPLANAR", "POINT"])
def test_a_roi_without_a_closed_contour_is_no_empty_mask(drawn, scan, kind):
    path = drawn(square(scan, 0.5, 3.5, 0.5, 3.5, 4, kind))
    words = rf"ROI 1 'GTV' of m\.rtstruct\.dcm has no closed contour \(1 contour of the kind {kind}\); expected"
    for segment in (None, 1):
        with pytest.raises(ImageError, match=words):
            read_volume(path, labels=True, grid=scan.grid, segment=segment)


def test_contours_beside_the_scan_are_remarked(drawn, scan):
    path = drawn(square(scan, 0.5, 3.5, 0.5, 3.5, 4), square(scan, 0.5, 3.5, 0.5, 3.5, 40))
    back = read_volume(path, labels=True, grid=scan.grid)
    assert back.array.sum() == 9
    assert back.remarks == ("ROI 1 'GTV' of m.rtstruct.dcm: 1 of its contours lie beside the scan",)


@pytest.mark.parametrize("name", ["plan.dcm", "plan"])
def test_a_file_without_preamble_is_read(tmp_path, scan, drawn, name):
    dataset = pydicom.dcmread(drawn(square(scan, 0.5, 4.5, 1.5, 5.5, 3)))
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_little_endian = stream.is_implicit_VR = True
    pydicom.filewriter.write_dataset(stream, pydicom.Dataset(dict(dataset.items())))
    (tmp_path / name).write_bytes(stream.getvalue())
    assert read_volume(tmp_path / name, labels=True, grid=scan.grid).array.sum() == 16


# What contradicts the scan


def test_another_frame_of_reference_is_remarked(drawn, scan):
    path = drawn(square(scan, 0.5, 4.5, 1.5, 5.5, 3))
    assert read_volume(path, labels=True, scan=scan).remarks == ()
    other = changed(path, lambda d: setattr(d.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.2.99"))
    back = read_volume(other, labels=True, scan=scan)
    assert back.array.sum() == 16
    assert back.remarks == (
        "m.rtstruct.dcm refers to another frame of reference (1.2.99) than the scan (1.2.3.8): its place is not sure "
        "to be right",
    )

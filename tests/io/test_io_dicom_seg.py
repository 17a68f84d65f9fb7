"""DICOM-SEG: exact round trips, also through highdicom; the contents of the file; files of other programs; refusals."""

from __future__ import annotations

import sys

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from voxsam.errors import FileError, GeometryError, ImageError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.io import check_mask_output, read_volume, write_mask
from voxsam.volume import Volume

hd = pytest.importorskip("highdicom")

WORLD_FLIP = np.diag([-1.0, -1, 1])


@pytest.fixture
def scan(tmp_path, write_study):
    return read_volume(write_study(tmp_path / "ct"))


def labels_on(scan, count=2):
    """Labels that any swap of axes would change, with empty slices at both ends and in between."""
    array = np.zeros(scan.grid.shape, np.uint8)
    array[1:4, 2:6, 2] = 1
    array[0, 0, 6] = array[5, 1:3, 7] = count
    return scan.with_array(array, "SEG")


def written(mask, path, **more):
    before = mask.array.copy()
    write_mask(mask, path, **more)
    assert np.array_equal(mask.array, before)
    return pydicom.dcmread(path)


# Round trips


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_labels_come_back_on_the_scan(tmp_path, scan, labelmap, count):
    mask = labels_on(scan, count)
    segments = written(mask, tmp_path / "m.seg.dcm", labelmap=labelmap).SegmentSequence
    assert [s.SegmentNumber for s in segments if s.SegmentNumber] == list(range(1, count + 1))
    back = read_volume(tmp_path / "m.seg.dcm", labels=True, grid=scan.grid)
    assert back.grid is scan.grid and back.modality == "SEG" and back.array.dtype == np.uint8
    assert np.array_equal(back.array, mask.array)
    last = read_volume(tmp_path / "m.seg.dcm", labels=True, grid=scan.grid, segment=count)
    assert np.array_equal(last.array, mask.array == count)


def test_without_the_scan_it_comes_back_on_the_box_of_its_frames(tmp_path, scan):
    mask = labels_on(scan)
    write_mask(mask, tmp_path / "m.dcm")
    back = read_volume(tmp_path / "m.dcm", labels=True)
    assert back.grid.close_to(scan.grid.crop((0, 0, 2), (6, 7, 6)), 1e-4)
    assert np.array_equal(back.array, mask.array[:, :, 2:8])


def test_one_frame_keeps_the_spacing_of_the_series(tmp_path, scan):
    mask = scan.with_array(np.zeros((6, 7, 9), np.uint8))
    mask.array[2, 3, 5] = 1
    write_mask(mask, tmp_path / "m.dcm")
    back = read_volume(tmp_path / "m.dcm", labels=True)
    assert back.grid.close_to(scan.grid.crop((0, 0, 5), (6, 7, 1)), 1e-4) and np.argwhere(back.array).tolist() == [
        [2, 3, 0]
    ]


def test_highdicom_reads_it_onto_the_series(tmp_path, scan):
    mask = labels_on(scan)
    write_mask(mask, tmp_path / "m.seg.dcm")
    segmentation = hd.seg.segread(tmp_path / "m.seg.dcm")
    volume = segmentation.get_volume(combine_segments=True, rescale_fractional=False)
    for k, j, i in np.argwhere(volume.array).tolist():
        place = WORLD_FLIP @ volume.map_indices_to_reference(np.array([[k, j, i]]))[0]
        at = scan.grid.world_to_index(place)
        assert at == pytest.approx(np.rint(at), abs=1e-3)
        assert mask.array[tuple(np.rint(at).astype(int))] == volume.array[k, j, i]
    assert np.count_nonzero(volume.array) == np.count_nonzero(mask.array)
    instances = [frame.sop_instance for frame in scan.header["dicom"].frames]
    pixels = segmentation.get_pixels_by_source_instance(instances, combine_segments=True, ignore_spatial_locations=True)
    assert np.array_equal(pixels, mask.array.T)


def test_an_empty_mask_is_a_segment_without_voxels(tmp_path, scan):
    mask = scan.with_array(np.zeros((6, 7, 9), np.uint8))
    assert len(written(mask, tmp_path / "m.dcm").SegmentSequence) == 1
    assert not read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid).array.any()


@pytest.mark.parametrize("axes", ["RAS", "SLA", "IPR"])
def test_a_mask_with_other_axes_is_laid_on_the_series(tmp_path, scan, axes):
    mask = labels_on(scan)
    turned = mask.grid.reorient(axes)
    at = np.rint(turned.index_in(mask.grid, np.moveaxis(np.indices(turned.shape), 0, -1))).astype(int)
    converted = Volume(mask.array[tuple(np.moveaxis(at, -1, 0))], turned, "SEG")  # as of a NIfTI: no DICOM header
    assert converted.array.shape != mask.array.shape or not np.array_equal(converted.array, mask.array)
    for source in (scan, tmp_path / "ct", str(tmp_path / "ct")):
        write_mask(converted, tmp_path / "m.dcm", source=source)
        back = read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid)
        assert np.array_equal(back.array, mask.array)


# Contents of the file


def test_segments_are_coded_and_name_their_algorithm(tmp_path, scan):
    import voxsam

    dataset = written(labels_on(scan), tmp_path / "m.dcm", model="voxsam-tiny", names=["Sarkom", "Ödem"])
    assert dataset.SegmentationType == "BINARY" and dataset.SegmentsOverlap == "NO" and dataset.Modality == "SEG"
    assert [s.SegmentLabel for s in dataset.SegmentSequence] == ["Sarkom", "Ödem"]
    for segment in dataset.SegmentSequence:
        category, kind = segment.SegmentedPropertyCategoryCodeSequence[0], segment.SegmentedPropertyTypeCodeSequence[0]
        assert (category.CodeValue, category.CodingSchemeDesignator) == ("49755003", "SCT")
        assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("108369006", "SCT", "Neoplasm")
        assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC" and segment.SegmentAlgorithmName == "VoxSAM"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmVersion == voxsam.__version__
        assert algorithm.AlgorithmParameters == "model=voxsam-tiny"
    assert len(segment.RecommendedDisplayCIELabValue) == 3


def test_every_instance_is_referred_to(tmp_path, scan):
    dataset = written(labels_on(scan), tmp_path / "m.dcm")
    files = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    series = dataset.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == "1.2.3.4"
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {file.SOPInstanceUID for file in files} and len(referred) == 9
    place = {file.SOPInstanceUID: [float(x) for x in file.ImagePositionPatient] for file in files}
    for item in dataset.PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert [float(x) for x in item.PlanePositionSequence[0].ImagePositionPatient] == place[source]


def test_the_patient_is_repeated_and_nothing_invented(tmp_path, scan):
    dataset = written(labels_on(scan), tmp_path / "m.dcm")
    assert (dataset.PatientName, dataset.PatientID, dataset.PatientSex) == ("Phantom^Anna", "P-7", "F")
    assert (dataset.StudyInstanceUID, dataset.StudyDate, dataset.FrameOfReferenceUID) == (
        "1.2.3.9",
        "20240229",
        "1.2.3.8",
    )
    for keyword in ("PatientBirthDate", "AccessionNumber", "StudyID", "ReferringPhysicianName", "StudyTime"):
        assert keyword in dataset and not dataset[keyword].value
    assert dataset.SeriesInstanceUID != "1.2.3.4" and dataset.SOPInstanceUID not in {
        frame.sop_instance for frame in scan.header["dicom"].frames
    }


def test_values_that_are_not_quite_dicom_are_repeated_as_they_are(tmp_path, write_study):
    odd = {
        "PatientSex": "X",
        "PatientBirthDate": "1980",
        "StudyTime": "noon",
        "PatientName": "Müller^Åsa",
        "StudyID": None,
    }
    with pytest.warns(UserWarning):
        folder = write_study(tmp_path / "odd", PatientIdentityRemoved="YES", DeidentificationMethod="by hand", **odd)
    scan = read_volume(folder)
    write_mask(labels_on(scan), tmp_path / "m.dcm")
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    assert str(dataset.PatientName) == "Müller^Åsa" and dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.PatientSex == "X" and dataset.PatientIdentityRemoved == "YES"
    assert dataset.get_item("PatientBirthDate").value.strip() == b"1980"


def test_a_volume_holds_no_private_elements_and_shows_no_patient(tmp_path, write_study):
    def mark(dataset, k):
        dataset.private_block(0x0099, "phantom", create=True).add_new(1, "LO", "secret")

    scan = read_volume(write_study(tmp_path / "ct", mark))
    assert not any(tag.is_private for tag in scan.header["dicom"].common)
    assert "Anna" not in repr(scan)


# Files of other programs


def test_overlapping_segments_must_be_chosen_from(tmp_path, scan):
    array = np.zeros((9, 7, 6, 2), np.uint8)  # k, j, i, segment
    array[2:5, 1:4, 1:5, 0] = array[4:6, 2:6, 2:4, 1] = 1
    write_overlapping(scan, array, tmp_path / "m.dcm")
    words = r"segments 1 and 2 of m\.dcm overlap; expected segments that one label map can hold; choose one: segment=N"
    with pytest.raises(ImageError, match=words):
        read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid)
    for number in (1, 2):
        back = read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid, segment=number)
        assert np.array_equal(back.array, array[..., number - 1].T)
    with pytest.raises(ImageError, match=r"segment 3 of m\.dcm; expected one of 1 first, 2 second"):
        read_volume(tmp_path / "m.dcm", labels=True, segment=3)


def write_overlapping(scan, array, path, kind="BINARY", **more):
    from pydicom.sr.codedict import codes

    folder = path.parent / "ct"
    images = sorted((pydicom.dcmread(f) for f in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    for image in images:
        image.SliceThickness, image.PatientBirthDate, image.AccessionNumber = 2.5, None, None
        image.StudyID = image.StudyTime = None
    description = [
        hd.seg.SegmentDescription(n, name, codes.SCT.Tissue, codes.SCT.Artery, "MANUAL")
        for n, name in enumerate(("first", "second"), 1)
    ]
    hd.seg.Segmentation(
        images,
        array,
        kind,
        description[: array.shape[-1]],
        hd.UID(),
        1,
        hd.UID(),
        1,
        "maker",
        "model",
        "1",
        "2",
        **more,
    ).save_as(path)


def test_a_fractional_segment_is_cut_in_the_middle(tmp_path, scan):
    array = np.zeros((9, 7, 6, 1), np.float32)
    array[3, 2, 1], array[3, 2, 2], array[4, 5, 3] = 0.4, 0.6, 1
    write_overlapping(scan, array, tmp_path / "m.dcm", "FRACTIONAL")
    back = read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid)
    assert np.argwhere(back.array).tolist() == [[2, 2, 3], [3, 5, 4]]


@pytest.mark.parametrize(
    ("value", "inside", "words"),
    [(1, True, "holds only 0 and 1: 1 was read as inside"), (100, False, "largest value is 100, below half of 255")],
)
def test_a_fractional_segment_below_its_half_everywhere_says_so(value, inside, words, tmp_path, scan):
    array = np.zeros((9, 7, 6, 1), np.float32)
    array[3, 2, 1] = value / 255
    write_overlapping(scan, array, tmp_path / "m.dcm", "FRACTIONAL")
    back = read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid)
    assert back.array.any() == inside and any(words in remark for remark in back.remarks)


def test_a_grid_that_the_frames_do_not_lie_on_changes_nothing(tmp_path, scan):
    write_mask(labels_on(scan), tmp_path / "m.dcm")
    own = read_volume(tmp_path / "m.dcm", labels=True)
    shifted = np.array(scan.grid.affine)
    shifted[:3, 3] += 0.3
    for grid in (Grid((6, 7, 9), shifted), scan.grid.respace((1, 1, 1)), scan.grid.crop((0, 0, 0), (6, 7, 4))):
        back = read_volume(tmp_path / "m.dcm", labels=True, grid=grid)
        assert back.grid == own.grid and np.array_equal(back.array, own.array)


# Refusals


def test_refuses_a_scan_that_did_not_come_from_dicom(tmp_path):
    scan = Volume(np.zeros((3, 4, 5), np.uint8), Grid.from_spacing((3, 4, 5), (1, 2, 3)))
    words = (
        r"the DICOM output m\.seg\.dcm for a scan that was not read from DICOM; expected a DICOM series; "
        r"give it as source=SERIES in Python, or write \.nii\.gz"
    )
    for attempt in (write_mask, check_mask_output):
        with pytest.raises(FileError, match=words):
            attempt(scan, tmp_path / "m.seg.dcm")
    check_mask_output(scan, tmp_path / "m.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_mask_on_another_grid(tmp_path, scan):
    mask = scan.with_array(np.ones((6, 7, 9), np.uint8))
    cut = Volume(mask.array[:, :, 1:], mask.grid.crop((0, 0, 1), (6, 7, 8)))
    with pytest.raises(
        GeometryError, match="for a DICOM series on Grid.*; expected the same voxels; give the series that"
    ):
        write_mask(cut, tmp_path / "m.dcm", source=scan)
    assert not (tmp_path / "m.dcm").exists()


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID"])
def test_refuses_a_series_that_cannot_be_referred_to(tmp_path, write_study, tag):
    scan = read_volume(write_study(tmp_path / "ct", **{tag: None}))
    with pytest.raises(
        FileError, match=f"a mask of a DICOM series without {tag}; expected a series that can be referred"
    ):
        write_mask(scan.with_array(np.ones((6, 7, 9), np.uint8)), tmp_path / "m.seg.dcm")
    with pytest.raises(FileError, match=f"a mask of a DICOM series without {tag}"):  # before the work
        check_mask_output(scan, tmp_path / "m.seg.dcm")


@pytest.mark.parametrize(
    ("names", "words"),
    [(["one"], "1 names for a mask of 2 objects"), (["", "b"], "the name ''"), (["a\\b", "b"], "without a backslash")],
)
def test_refuses_names_that_do_not_fit(tmp_path, scan, names, words):
    with pytest.raises(ImageError, match=words):
        write_mask(labels_on(scan), tmp_path / "m.dcm", names=names)


def test_says_what_to_install(tmp_path, scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    words = r"without the highdicom package; expected the dicom extra; pip install 'voxsam\[dicom\]'"
    for attempt in (write_mask, check_mask_output):
        with pytest.raises(UnsupportedError, match=words):
            attempt(labels_on(scan), tmp_path / "m.seg.dcm")
    write_mask(labels_on(scan), tmp_path / "m.rtstruct.dcm")  # needs pydicom alone


def test_refuses_files_of_another_kind_and_broken_ones(tmp_path, scan):
    write_mask(labels_on(scan), tmp_path / "m.dcm")
    image = next((tmp_path / "ct").iterdir())
    with pytest.raises(
        FileError, match=r"is a DICOM file of another kind \(CT Image Storage\); expected a DICOM-SEG or"
    ):
        read_volume(image, labels=True)
    content = (tmp_path / "m.dcm").read_bytes()
    for kept in (150, 900, 2000, len(content) // 2, len(content) - 20):
        (tmp_path / "cut.dcm").write_bytes(content[:kept])
        with pytest.raises(
            (FileError, GeometryError), match=r"cut\.dcm (is truncated|has no valid|does not say how many)"
        ):
            read_volume(tmp_path / "cut.dcm", labels=True)
    (tmp_path / "text.dcm").write_text("no image" * 100)
    with pytest.raises(FileError, match=r"text\.dcm is no DICOM file"):
        read_volume(tmp_path / "text.dcm", labels=True)


def _without(keyword):
    return lambda dataset: delattr(dataset, keyword)


def _with(keyword, value):
    return lambda dataset: setattr(dataset, keyword, value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            _without("Columns"),
            "is not a valid DICOM mask: it has no Columns; expected a DICOM-SEG or RTSTRUCT with all",
        ),
        (_without("PixelData"), "is not a valid DICOM mask: it has no PixelData"),
        (_without("BitsStored"), r"is not a valid DICOM mask: Missing required element: \(0028,0101\) 'Bits Stored'"),
        (_without("NumberOfFrames"), "does not say how many frames it has; expected NumberOfFrames; export it again"),
        (_with("NumberOfFrames", -1), "does not say how many frames it has"),
        (_with("NumberOfFrames", 7), r"is truncated or damaged \(\d+ bytes of pixels are declared, \d+ are there\)"),
        (_with("PixelData", b""), r"is truncated or damaged \(\d+ bytes of pixels are declared, 0 are there\)"),
        (
            lambda dataset: delattr(dataset.PerFrameFunctionalGroupsSequence[1], "SegmentIdentificationSequence"),
            "is not a valid DICOM mask: it has no ReferencedSegmentNumber",
        ),
        (
            lambda dataset: setattr(dataset.SegmentSequence[0], "SegmentNumber", None),
            "is not a valid DICOM mask: an element that it needs is empty, or of another type",
        ),
    ],
)
def test_damage_is_said_of_damage_alone_and_what_is_missing_by_name(edit, words, tmp_path, scan):
    dataset = written(labels_on(scan), tmp_path / "m.dcm")
    edit(dataset)
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(FileError, match=rf"^x\.dcm {words}"):
        read_volume(tmp_path / "x.dcm", labels=True, grid=scan.grid)


@pytest.mark.parametrize("number", [0, 9, 300])
def test_frames_of_a_segment_that_is_not_listed_are_left_out_with_a_remark(number, tmp_path, scan):
    """300 is 44 in eight bits: it must not turn into another segment's number, nor vanish silently."""
    mask = labels_on(scan)
    dataset = written(mask, tmp_path / "m.dcm")
    dataset.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
    dataset.save_as(tmp_path / "x.dcm")
    back = read_volume(tmp_path / "x.dcm", labels=True, grid=scan.grid)
    assert f"x.dcm: left out the frames of segment {number}, which it does not list" in back.remarks
    assert set(np.unique(back.array)) <= {0, 1, 2} and back.array.sum() < mask.array.sum()


def test_voxels_of_a_labelmap_that_no_segment_is_listed_for_are_left_out_with_a_remark(tmp_path, scan):
    mask = labels_on(scan)
    dataset = written(mask, tmp_path / "m.dcm", labelmap=True)
    pixels = np.frombuffer(dataset.PixelData, np.uint8).copy()
    pixels[pixels == 2] = 77
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(tmp_path / "x.dcm")
    back = read_volume(tmp_path / "x.dcm", labels=True, grid=scan.grid)
    assert "x.dcm: left out the frames of segment 77, which it does not list" in back.remarks
    assert np.array_equal(back.array, (mask.array == 1) * 1)


def test_refuses_frames_far_apart_and_huge_ones_before_memory_is_taken(tmp_path, scan):
    def changed(edit):
        dataset = written(labels_on(scan), tmp_path / "m.dcm")
        edit(dataset)
        dataset.save_as(tmp_path / "m.dcm")
        return tmp_path / "m.dcm"

    def far(dataset):
        place = dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
        place.ImagePositionPatient = [
            p + n * 2.5e9 for p, n in zip(place.ImagePositionPatient, (0.64, -0.48, 0.6), strict=True)
        ]

    def wide(dataset):
        dataset.Rows = dataset.Columns = 65000

    for edit in (far, wide):
        with pytest.raises(ImageError, match=r"m\.dcm declares .* voxels; expected at most"):
            read_volume(changed(edit), labels=True)

    def uneven(dataset):
        place = dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
        place.ImagePositionPatient = [p + 1 for p in place.ImagePositionPatient]

    with pytest.raises(GeometryError, match=r"the frames of m\.dcm are not evenly spaced"):
        read_volume(changed(uneven), labels=True)


def test_deflated_segmentations_are_read(tmp_path, scan):
    mask = labels_on(scan)
    dataset = written(mask, tmp_path / "m.dcm")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "m.dcm")
    assert np.array_equal(read_volume(tmp_path / "m.dcm", labels=True, grid=scan.grid).array, mask.array)

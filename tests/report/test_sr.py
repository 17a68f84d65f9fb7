"""The DICOM SR of a mask's measurements, read back by highdicom and compared with the mask itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import write_dicom

from voxsam.errors import FileError
from voxsam.geometry import Grid, flip_lps
from voxsam.io import read_volume, write_mask
from voxsam.io.objects import write_objects
from voxsam.io.segments import Code, SegmentInfo
from voxsam.region import Region
from voxsam.report.sr import write_sr
from voxsam.volume import Volume

hd = pytest.importorskip("highdicom")
SPACING_MM = (2.0, 2.0, 5.0)
LYMPH_NODE = Code("59441001", "SCT", "Lymph Node")


@pytest.fixture
def scan(tmp_path) -> Volume:
    """A series of 40 x 30 x 12 voxels of 2 x 2 x 5 mm, tilted."""
    grid = Grid.from_spacing((40, 30, 12), SPACING_MM, axes="LPS").turned(0, 10.0)
    voxels = np.random.default_rng(1).integers(-100, 100, grid.shape).astype(np.int16)
    write_dicom(
        Volume(voxels, grid, "CT"), tmp_path / "series", PatientName="Müller^Eva", SpecificCharacterSet="ISO_IR 100"
    )
    return read_volume(tmp_path / "series")


def block(scan: Volume, low: tuple[int, int, int], high: tuple[int, int, int]) -> Region:
    inside = np.zeros(scan.grid.shape, bool)
    inside[tuple(map(slice, low, high))] = True
    return Region.of(inside)


def read(path: Path):
    """The document, its volume groups and its diameter groups."""
    document = hd.sr.srread(path)
    report = document.content
    return document, report.get_volumetric_roi_measurement_groups(), report.get_image_measurement_groups()


def test_each_segment_has_its_volume_and_diameters_where_they_lie(scan, tmp_path):
    """Known by hand: 10 x 4 x 3 voxels, 8 x 8 x 1 voxels, which share some with the first."""
    objects = {
        1: (SegmentInfo("Tumour", (255, 0, 0)), block(scan, (5, 5, 2), (15, 9, 5))),
        2: (SegmentInfo("Knoten ü", (0, 255, 0), LYMPH_NODE), block(scan, (10, 5, 4), (18, 13, 5))),
    }
    write_objects(objects, scan, tmp_path / "mask.seg.dcm")
    write_sr(tmp_path / "mask.sr.dcm", tmp_path / "mask.seg.dcm", scan)
    seg = pydicom.dcmread(tmp_path / "mask.seg.dcm")
    _, volumes, diameters = read(tmp_path / "mask.sr.dcm")
    sides_mm, ml = ((20.0, 8.0), (16.0, 16.0)), (2.4, 1.28)
    for n, (sized, lined) in enumerate(zip(volumes, diameters, strict=True)):
        item, (info, region) = seg.SegmentSequence[n], objects[n + 1]
        for group in (sized, lined):
            assert group.tracking_uid == item.TrackingUID and group.tracking_identifier == info.name
            assert group.finding_type.value == info.type.value
        assert sized.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert sized.referenced_segment.referenced_segment_numbers == [n + 1]
        (volume,) = sized.get_measurements()
        assert (volume.name.meaning, volume.unit.value) == ("Volume", "cm3") and volume.value == pytest.approx(ml[n])
        long_axis, short_axis = lined.get_measurements()
        assert [m.name.meaning for m in (long_axis, short_axis)] == ["Long axis", "Short axis"]
        assert long_axis.unit.value == short_axis.unit.value == "mm"
        assert max(sides_mm[n]) <= long_axis.value <= np.hypot(*sides_mm[n])
        for diameter in (long_axis, short_axis):
            (line,) = diameter.referenced_coordinates
            assert line.ReferencedFrameOfReferenceUID == seg.FrameOfReferenceUID
            assert np.linalg.norm(line.value[1] - line.value[0]) == pytest.approx(diameter.value, abs=0.01)
            for end in scan.grid.world_to_index(flip_lps(line.value)):  # on a face of a voxel of the object
                assert np.abs(np.argwhere(region.on_all(scan).array) - end).max(axis=1).min() < 0.51


def test_patient_study_and_frame_are_those_of_the_series(scan, tmp_path):
    write_mask(
        Volume(block(scan, (5, 5, 2), (9, 9, 5)).on_all(scan).array, scan.grid, "SEG", scan.header),
        tmp_path / "m.seg.dcm",
    )
    write_sr(tmp_path / "m.sr.dcm", tmp_path / "m.seg.dcm", scan)
    document, *_ = read(tmp_path / "m.sr.dcm")
    source, seg = scan.header["dicom"].common, pydicom.dcmread(tmp_path / "m.seg.dcm")
    assert str(document.PatientName) == "Müller^Eva" and document.StudyInstanceUID == source.StudyInstanceUID
    assert document.SeriesInstanceUID not in (source.SeriesInstanceUID, seg.SeriesInstanceUID)
    assert document.VerificationFlag == "UNVERIFIED" and "not reviewed" in document.SeriesDescription
    referred = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [series.SeriesInstanceUID for series in referred] == [seg.SeriesInstanceUID]


def test_an_empty_segment_has_a_volume_of_nothing_and_no_diameters(scan, tmp_path):
    write_mask(Volume(np.zeros(scan.grid.shape, np.uint8), scan.grid, "SEG", scan.header), tmp_path / "m.seg.dcm")
    write_sr(tmp_path / "m.sr.dcm", tmp_path / "m.seg.dcm", scan)
    _, (group,), diameters = read(tmp_path / "m.sr.dcm")
    assert not diameters
    (volume,) = group.get_measurements()
    assert volume.value == 0


def test_what_is_no_segmentation_or_not_from_dicom_is_refused(scan, tmp_path):
    image = next((tmp_path / "series").iterdir())
    with pytest.raises(FileError, match="is no DICOM-SEG"):
        write_sr(tmp_path / "m.sr.dcm", image, scan)
    (tmp_path / "words.dcm").write_text("no DICOM")
    for name in ("words.dcm", "missing.dcm"):
        with pytest.raises(FileError, match=f"{name}, which cannot be read as DICOM"):
            write_sr(tmp_path / "m.sr.dcm", tmp_path / name, scan)
    with pytest.raises(FileError, match="not read from DICOM"):
        write_sr(tmp_path / "m.sr.dcm", image, Volume(scan.array, scan.grid, "CT"))
    assert not (tmp_path / "m.sr.dcm").exists()

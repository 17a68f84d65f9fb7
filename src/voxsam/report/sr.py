"""A DICOM SR of the measurements of a DICOM-SEG: volume and axial diameters of each segment (PS3.16, TID 1500).

A segment has two measurement groups under its own tracking UID: its volume, with the reference to its voxels (TID
1411), and its diameters, each with its line in the patient (TID 1501, since TID 1411 allows no lines). Written with
highdicom (the extra `dicom`).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from voxsam import __version__
from voxsam.atomic import atomic_path
from voxsam.errors import FileError
from voxsam.geometry import flip_lps
from voxsam.io import read_volume
from voxsam.io.dicom import series_of
from voxsam.io.dicom.seg import highdicom
from voxsam.io.dicom.source import DESCRIPTION, MANUFACTURER, PATIENT_AND_STUDY, SERIES_NUMBER
from voxsam.region import Region
from voxsam.report.metrics import measure
from voxsam.volume import Volume

OBSERVER_UID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, 'voxsam').int}"  # of the program as a device


def write_sr(path: str | os.PathLike[str], seg: str | os.PathLike[str], scan: Volume) -> None:
    """Measure every segment of the file `seg`, a DICOM-SEG of `scan`, and write the SR that refers to it.

    Lengths in mm as in RECIST 1.1, volumes in cm3. Raises FileError if `seg` cannot be read or is not a DICOM-SEG, or
    if the SR cannot be written; UnsupportedError without highdicom; as `series_of` for a scan that is not from DICOM.
    """
    hd, path, seg = highdicom(), Path(path), Path(seg)
    source = series_of(scan, path)
    try:
        segmentation = pydicom.dcmread(seg)
    except (OSError, InvalidDicomError) as error:
        raise FileError(f"{seg.name}, which cannot be read as DICOM", "a DICOM-SEG of the scan", "check it") from error
    if "SegmentSequence" not in segmentation:
        raise FileError(f"{seg.name} is no DICOM-SEG", "a DICOM-SEG of the scan", "choose another file")
    from pydicom.sr.codedict import codes

    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=OBSERVER_UID, name="VoxSAM", manufacturer_name=MANUFACTURER, model_name=__version__
        ),
    )
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=list(_groups(hd, codes, segmentation, seg, scan)),
    )
    evidence = pydicom.Dataset()  # the segmentation, not the patient: highdicom refuses values that are not quite DICOM
    for keyword in PATIENT_AND_STUDY:
        setattr(evidence, keyword, None)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality"):
        setattr(evidence, keyword, segmentation[keyword].value)
    document = hd.sr.Comprehensive3DSR(
        evidence=[evidence],
        content=report,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER + 1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    document.SeriesDescription = DESCRIPTION.replace("segmentation", "measurements")
    source.repeat_in(document)
    with atomic_path(path) as temporary:
        document.save_as(temporary, enforce_file_format=True)


def _groups(hd: Any, codes: Any, segmentation: pydicom.Dataset, seg: Path, scan: Volume) -> Iterator[Any]:
    """Yield the measurement groups of each segment."""
    series = hd.sr.SourceSeriesForSegmentation(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID)
    for item in segmentation.SegmentSequence:
        number = int(item.SegmentNumber)
        mask = read_volume(seg, labels=True, scan=scan, segment=number)
        size = measure(Region.of(mask.array != 0), mask.grid)
        category, kind = (
            hd.sr.CodedConcept.from_dataset(item[name].value[0])
            for name in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence")
        )
        name = hd.sr.TrackingIdentifier(uid=item.get("TrackingUID") or hd.UID(), identifier=str(item.SegmentLabel))
        yield hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=name,
            referenced_segment=hd.sr.ReferencedSegment(
                segmentation.SOPClassUID, segmentation.SOPInstanceUID, number, source_series=series
            ),
            finding_category=category,
            finding_type=kind,
            measurements=[hd.sr.Measurement(codes.SCT.Volume, round(size.volume_ml, 6), codes.UCUM.CubicCentimeter)],
        )
        diameters = []
        for what, line in ((codes.SCT.LongAxis, size.longest), (codes.SCT.ShortAxis, size.perpendicular)):
            if line is not None:
                ends_mm = np.round(flip_lps(mask.grid.index_to_world(line.ends)), 4)
                drawn = [hd.sr.CoordinatesForMeasurement3D("POLYLINE", ends_mm, segmentation.FrameOfReferenceUID)]
                length = round(line.length_mm, 3)
                diameters.append(hd.sr.Measurement(what, length, codes.UCUM.Millimeter, referenced_coordinates=drawn))
        if diameters:
            yield hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=name, finding_category=category, finding_type=kind, measurements=diameters
            )

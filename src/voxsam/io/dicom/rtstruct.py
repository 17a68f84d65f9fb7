"""DICOM RTSTRUCT out and in: masks as contours on the planes of a series (PS3.3 C.8.8.5 to C.8.8.8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from voxsam import __version__
from voxsam.errors import GeometryError, ImageError
from voxsam.geometry import Grid, flip_lps
from voxsam.io.checks import truncated
from voxsam.io.dicom.contours import fill, outline
from voxsam.io.dicom.source import (
    COLOURS,
    DESCRIPTION,
    MANUFACTURER,
    SERIES_NUMBER,
    DicomSource,
    SourceFrame,
    segment_names,
)
from voxsam.volume import Volume

DECIMALS = 4  # of a millimetre
AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
OFF_PLANE = 0.25  # of the slice spacing: how far a contour may lie from the slice that it is drawn on
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # the retired class that a reference to a study names (PS3.3 C.8.8.5)


def write(mask: Volume, path: Path, source: DicomSource, *, names: Sequence[str] = (), model: str = "") -> None:
    """Write a mask of the series `source` as one RTSTRUCT: label n becomes ROI n, with contours on the slices.

    Every instance of the series is referred to. Reading it back on the series' grid gives the same voxels.
    """
    voxels = source.voxels(mask)
    dataset = _empty(source, model)
    names = segment_names(voxels, names)
    dataset.StructureSetROISequence = [_roi(source, n, name) for n, name in enumerate(names, 1)]
    dataset.ROIContourSequence = [_contours(source, voxels, n) for n in range(1, len(names) + 1)]
    dataset.RTROIObservationsSequence = [_observation(n) for n in range(1, len(names) + 1)]
    source.repeat_in(dataset)
    dataset.save_as(path, enforce_file_format=True)


def _empty(source: DicomSource, model: str) -> pydicom.Dataset:
    """The object without its ROIs."""
    now, dataset, meta = datetime.now(), pydicom.Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit ones count an element in 16 bits, too few for a contour
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta = meta
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "RTSTRUCT", generate_uid(), SERIES_NUMBER
    dataset.StudyInstanceUID = source.common.StudyInstanceUID
    dataset.FrameOfReferenceUID = source.common.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = source.common.get("PositionReferenceIndicator")
    dataset.SeriesDescription = DESCRIPTION
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, "VoxSAM"
    dataset.SoftwareVersions = [__version__, model] if model else __version__
    dataset.OperatorsName, dataset.InstanceNumber = None, 1
    dataset.StructureSetLabel, dataset.StructureSetDescription = "VoxSAM", DESCRIPTION
    dataset.StructureSetDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.StructureSetTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    return dataset


def _frame_of_reference(source: DicomSource) -> pydicom.Dataset:
    series = _item(SeriesInstanceUID=source.common.SeriesInstanceUID)
    series.ContourImageSequence = [_image(frame) for frame in source.frames]
    study = _item(ReferencedSOPClassUID=STUDY_CLASS, ReferencedSOPInstanceUID=source.common.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    frame = _item(FrameOfReferenceUID=source.common.FrameOfReferenceUID)
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(frame: SourceFrame) -> pydicom.Dataset:
    item = _item(ReferencedSOPClassUID=frame.sop_class, ReferencedSOPInstanceUID=frame.sop_instance)
    if frame.number:
        item.ReferencedFrameNumber = frame.number
    return item


def _roi(source: DicomSource, number: int, name: str) -> pydicom.Dataset:
    return _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=source.common.FrameOfReferenceUID,
        ROIName=name,
        ROIGenerationAlgorithm="SEMIAUTOMATIC",
    )


def _observation(number: int) -> pydicom.Dataset:
    """What the ROI means is for a person to say: type and interpreter stay empty."""
    return _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter=None)


def _contours(source: DicomSource, voxels: NDArray[np.uint8], number: int) -> pydicom.Dataset:
    """The contours of label `number` in (k, j, i) `voxels`."""
    found = []
    for k in np.flatnonzero((voxels == number).any((1, 2))).tolist():
        # the slice's own position, which may be rounded, so that the contour lies on its image
        shift = flip_lps(np.array(source.frames[k].position_lps_mm, float)) - source.grid.index_to_world((0, 0, k))
        for polygon in outline((voxels[k] == number).T):
            points = source.grid.index_to_world(np.insert(polygon, 2, k, axis=1)) + shift
            found.append(_contour(flip_lps(points), source.frames[k]))
    item = _item(ReferencedROINumber=number, ROIDisplayColor=list(COLOURS[(number - 1) % len(COLOURS)]))
    if found:
        item.ContourSequence = found
    return item


def _contour(points_lps_mm: NDArray[np.float64], frame: SourceFrame) -> pydicom.Dataset:
    rounded = np.round(points_lps_mm.ravel(), DECIMALS) + 0.0  # no -0
    return _item(
        ContourImageSequence=[_image(frame)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points_lps_mm),
        ContourData=[f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".") for value in rounded],
    )


def _item(**elements: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


# In


def read(path: Path, dataset: pydicom.Dataset, grid: Grid | None, roi: int | None) -> Volume:
    """A label map on `grid`, the scan's: the file's n-th ROI is label n; header["segments"] says what each is called.

    A voxel is inside where its centre lies in an odd number of the ROI's contours. With `roi` that one alone, as 0/1.
    Raises GeometryError without a grid, or for contours that do not lie on its slices; ImageError if ROIs overlap and
    none was chosen; FileError for contours that are not points.
    """
    if grid is None:
        given = f"{path.name} is an RTSTRUCT, contours without voxels"
        raise GeometryError(given, "the scan that they lie on", "give grid=scan.grid to read_volume")
    names = _names(dataset)
    if roi is not None and roi not in names:
        listed = ", ".join(f"{number} {name}" for number, name in names.items())
        raise ImageError(f"ROI {roi} of {path.name}", f"one of {listed}", "choose another")
    array = np.zeros(grid.shape, np.uint8 if len(names) < 256 else np.uint16)
    for number, contours in _rois(dataset).items():
        if roi in (None, number):
            points = [grid.world_to_index(flip_lps(_points(contour, path.name))) for contour in contours]
            _draw(array, points, 1 if roi else number, path.name)
    return Volume(array, grid, "SEG", {"segments": names})


def _names(dataset: pydicom.Dataset) -> dict[int, str]:
    return {n: str(item.get("ROIName", "")) for n, item in enumerate(dataset.get("StructureSetROISequence") or [], 1)}


def _rois(dataset: pydicom.Dataset) -> dict[int, list[pydicom.Dataset]]:
    """The areas of each ROI; ROIs are counted from 1, because ROINumber may be 0 or huge."""
    order = {int(item.ROINumber): n for n, item in enumerate(dataset.get("StructureSetROISequence") or [], 1)}
    found: dict[int, list[pydicom.Dataset]] = {}
    for item in dataset.get("ROIContourSequence") or []:
        number = order.get(int(item.get("ReferencedROINumber", -1)))
        contours = [c for c in item.get("ContourSequence") or [] if c.get("ContourGeometricType") in AREAS]
        if number is not None and contours:
            found.setdefault(number, []).extend(contours)
    return found


def _points(contour: pydicom.Dataset, name: str) -> NDArray[np.float64]:
    """(n, 3) LPS mm."""
    try:
        points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    except (AttributeError, TypeError, ValueError) as error:
        raise truncated(name, "its contours are not points") from error
    if len(points) < 3 or not np.isfinite(points).all():
        raise truncated(name, "it has contours of less than three points")
    return points


def _draw(array: NDArray[np.unsignedinteger], contours: list[NDArray[np.float64]], label: int, name: str) -> None:
    """Fill contours (n, 3), in voxels, into the slices that they lie on; those beside the array are left out."""
    axis = int(np.sum([np.ptp(contour, axis=0) for contour in contours], axis=0).argmin())  # across the slices
    planes, slices = np.moveaxis(array, axis, 0), defaultdict(list)
    for contour in contours:
        heights = contour[:, axis]
        k = int(np.rint(heights.mean()))
        if np.abs(heights - k).max() > OFF_PLANE:
            given = f"{name} has contours between the slices of the scan, or not parallel to them"
            raise GeometryError(given, "contours that were drawn on this scan", "give the series that it refers to")
        if 0 <= k < len(planes):
            slices[k].append(np.delete(contour, axis, axis=1))
    for k, polygons in slices.items():
        inside, here = fill(polygons, planes.shape[1:]), planes[k]
        if here[inside].any():
            given = f"ROIs {int(here[inside].max())} and {label} of {name} overlap"
            remedy = f"choose one: segment=N, or {name}#N as a prompt"
            raise ImageError(given, "ROIs that one label map can hold", remedy)
        here[inside] = label

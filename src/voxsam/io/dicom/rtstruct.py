"""Write and read DICOM RTSTRUCT: masks as contours on the planes of a series (PS3.3 C.8.8.5 to C.8.8.8).

Filling the polygons drawn round a mask gives the same mask again: outlines pass halfway between the centres of a voxel
inside and its neighbour outside (marching squares at 0.5), so no centre lies near an edge. A hole is joined to the
outline round it by a zero-width channel, the keyhole technique, because CLOSED_PLANAR contours cannot have holes
(C.8.8.6.3). Filling follows the even-odd rule, which handles keyholes, separate inner contours and CLOSEDPLANAR_XOR
alike. Polygon coordinates are (i, j), in voxels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
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
from voxsam.io.checks import FARTHEST_MM
from voxsam.io.dicom.seg import overlap
from voxsam.io.dicom.source import DESCRIPTION, MANUFACTURER, SERIES_NUMBER, DicomSource, SourceFrame
from voxsam.io.segments import SegmentInfo
from voxsam.region import Region, overlapping
from voxsam.volume import Volume

DECIMALS = 4  # of a millimetre, and of a voxel when filling: finer digits are rounding errors
Polygon = NDArray[np.float64]  # (n, 2), closed: the last point is joined to the first
AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
CROSSING = 0.8  # of the smaller of two contours' areas: sharing less they cross, sharing more one lies in the other
MAX_PAIRS = 400  # contours of a slice that are compared pairwise
MAX_NAMED = 5  # ROIs in one remark: clinics predefine dozens
OFF_PLANE = 0.25  # of the slice spacing: how far a contour may lie from the slice that it is drawn on
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # the retired class that a reference to a study names (PS3.3 C.8.8.5)


def write(
    mask: Volume,
    path: Path,
    source: DicomSource,
    *,
    segments: Sequence[SegmentInfo],
    regions: Sequence[Region] = (),
    model: str = "",
) -> None:
    """Write a mask of the series `source` as one RTSTRUCT: label n becomes ROI n, with contours on the slices.

    If `regions`, the labels' voxels on the mask's grid, overlap, they are written instead. Every instance of the series
    is referenced. Reading the file back on the series' grid gives the same voxels.
    """
    if overlapping(regions):
        each = (source.voxels(region.on_all(mask)) != 0 for region in regions)
    else:
        voxels = source.voxels(mask)
        each = (voxels == number for number in range(1, len(segments) + 1))
    dataset = _empty(source, model)
    rois, contours, observations = [], [], []
    for number, (info, inside) in enumerate(zip(segments, each, strict=True), 1):
        roi = _item(ROINumber=number, ReferencedFrameOfReferenceUID=source.common.FrameOfReferenceUID)
        roi.ROIName, roi.ROIGenerationAlgorithm = info.name, "SEMIAUTOMATIC"
        if info.description:
            roi.ROIDescription = info.description
        rois.append(roi)
        contours.append(_item(ReferencedROINumber=number, ROIDisplayColor=list(info.colour)))
        if drawn := _contours(source, inside):
            contours[-1].ContourSequence = drawn
        observation = _item(ObservationNumber=number, ReferencedROINumber=number)
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", None  # for a person to say
        kind = info.type
        code = _item(CodeValue=kind.value, CodingSchemeDesignator=kind.scheme, CodeMeaning=kind.meaning)
        observation.RTROIIdentificationCodeSequence = [code]
        observations.append(observation)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = rois, contours
    dataset.RTROIObservationsSequence = observations
    source.repeat_in(dataset)
    dataset.save_as(path, enforce_file_format=True)


def _empty(source: DicomSource, model: str) -> pydicom.Dataset:
    """A new RTSTRUCT without its ROIs."""
    now, dataset, meta = datetime.now(), pydicom.Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit VR has 16-bit lengths, too short for a contour
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
    series = _item(SeriesInstanceUID=source.common.SeriesInstanceUID)
    series.ContourImageSequence = [_image(frame) for frame in source.frames]
    study = _item(ReferencedSOPClassUID=STUDY_CLASS, ReferencedSOPInstanceUID=source.common.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    frame = _item(FrameOfReferenceUID=source.common.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    return dataset


def _image(frame: SourceFrame) -> pydicom.Dataset:
    item = _item(ReferencedSOPClassUID=frame.sop_class, ReferencedSOPInstanceUID=frame.sop_instance)
    if frame.number:
        item.ReferencedFrameNumber = frame.number
    return item


def _contours(source: DicomSource, inside: NDArray[np.bool_]) -> list[pydicom.Dataset]:
    """The contours round voxels (k, j, i)."""
    found = []
    for k in np.flatnonzero(inside.any((1, 2))).tolist():
        # the slice's own position, which may be rounded, so that the contour lies on its image
        shift = flip_lps(np.array(source.frames[k].position_lps_mm, float)) - source.grid.index_to_world((0, 0, k))
        for polygon in outline(inside[k].T):
            points = source.grid.index_to_world(np.insert(polygon, 2, k, axis=1)) + shift
            rounded = np.round(flip_lps(points).ravel(), DECIMALS) + 0.0  # no -0
            contour = _item(ContourImageSequence=[_image(source.frames[k])], ContourGeometricType="CLOSED_PLANAR")
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".") for value in rounded]
            found.append(contour)
    return found


def _item(**elements: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


# Reading


def read(path: Path, dataset: pydicom.Dataset, grid: Grid | None, roi: int | None) -> Volume:
    """Read a label map on `grid`, the scan's: the file's n-th ROI is label n, named in header["segments"].

    A voxel is inside if its centre lies in an odd number of the ROI's contours. With `roi`, only that one, as 0/1.
    Contours that are invalid or not closed are left out, with a remark. Raises GeometryError without a grid, or for
    contours off its slices; ImageError for an ROI without a closed contour, or if ROIs overlap and none was chosen.
    """
    if grid is None:
        given = f"{path.name} is an RTSTRUCT, contours without voxels"
        raise GeometryError(given, "the scan that they lie on", "give the scan too: scan= or grid= of read_volume")
    names = {n: str(item.get("ROIName", "")) for n, item in enumerate(dataset.get("StructureSetROISequence") or [], 1)}
    if roi is not None and roi not in names:
        listed = ", ".join(f"{number} {name}" for number, name in names.items())
        raise ImageError(f"ROI {roi} of {path.name}", f"one of {listed}", "choose another")
    array = np.zeros(grid.shape, np.uint8 if len(names) < 256 else np.uint16)
    rois, unlisted = _rois(dataset)
    others = f"{unlisted} ROI{'s' * (unlisted > 1)} that it does not list"
    remarks = [f"{path.name}: left out the contours of {others}"] * bool(unlisted)
    if (roi or next(iter(rois), 0)) not in rois:
        which = f"ROI {roi} {names[roi]!r} of {path.name}" if roi else path.name
        remarks.append(f"{which} has no contours: the mask is empty")
    elif empty := [f"{number} {names[number]!r}" for number in names if number not in rois]:
        more = f" and {len(empty) - MAX_NAMED} more" * (len(empty) > MAX_NAMED)
        which = f"ROI{'s' * (len(empty) > 1)} {', '.join(empty[:MAX_NAMED])}{more}"
        remarks.append(f"{path.name}: no contours of {which}")
    for number, contours in rois.items():
        if roi in (None, number):
            what = f"ROI {number} {names[number]!r} of {path.name}"
            polygons, left_out = _polygons(contours, grid)
            if left_out and not polygons and (roi or len(rois) == 1):
                given = f"{what} has no closed contour ({_counted(left_out)})"
                raise ImageError(given, "contours round an area", "choose another ROI, or draw it again")
            remarks += [f"{what}: left out {_counted(left_out)}"] * bool(left_out)
            label = 1 if roi else number
            remarks += [f"{what}: {said}" for said in _draw(array, polygons, label, path.name, rois)]
    header = {"segments": names, "frame_of_reference": _frame_uid(dataset)}
    return Volume(array, grid, "SEG", header, tuple(remarks))


def _frame_uid(dataset: pydicom.Dataset) -> str:
    """The frame of reference that the contours are given in."""
    items = [
        *(dataset.get("StructureSetROISequence") or []),
        *(dataset.get("ReferencedFrameOfReferenceSequence") or []),
    ]
    keywords = ("ReferencedFrameOfReferenceUID", "FrameOfReferenceUID")
    found = [str(item.get(keyword)) for item in [*items, dataset] for keyword in keywords if item.get(keyword)]
    return found[0] if found else ""


def _rois(dataset: pydicom.Dataset) -> tuple[dict[int, list[pydicom.Dataset]], int]:
    """The contours of each ROI, and the number of items with contours of an unlisted ROI.

    ROIs are counted from 1, because ROINumber may be 0 or huge.
    """
    order = {int(item.ROINumber): n for n, item in enumerate(dataset.get("StructureSetROISequence") or [], 1)}
    found: dict[int, list[pydicom.Dataset]] = {}
    unlisted = 0
    for item in dataset.get("ROIContourSequence") or []:
        if not item.get("ContourSequence"):
            continue
        number = order.get(int(item.get("ReferencedROINumber", -1)))
        if number is None:
            unlisted += 1
        else:
            found.setdefault(number, []).extend(item.ContourSequence)
    return found, unlisted


def _polygons(contours: list[pydicom.Dataset], grid: Grid) -> tuple[list[NDArray[np.float64]], dict[str, int]]:
    """(n, 3) points in voxels of each closed contour, and the number of other contours by kind."""
    found, left_out = [], defaultdict(int)
    for contour in contours:
        kind = str(contour.get("ContourGeometricType") or AREAS[0])
        try:
            points = np.array(contour.get("ContourData") or [], dtype=np.float64).reshape(-1, 3)
        except (TypeError, ValueError):
            points = np.full((1, 3), np.nan)
        if kind not in AREAS:
            left_out[f"of the kind {kind[:20]}"] += 1
        elif not (np.abs(points) <= FARTHEST_MM).all():
            left_out["whose data are not points"] += 1
        elif len(points) < 3:
            left_out["of less than three points"] += 1
        else:
            found.append(grid.world_to_index(flip_lps(points)))
    return found, left_out


def _counted(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} contour{'s' if count > 1 else ''} {kind}" for kind, count in left_out.items())


def _draw(
    array: NDArray[np.unsignedinteger],
    contours: list[NDArray[np.float64]],
    label: int,
    name: str,
    numbers: Iterable[int],
) -> list[str]:
    """Fill contours (n, 3), in voxels, into the slices that they lie on; returns remarks on odd ones."""
    if not contours:
        return []
    axis = int(np.sum([np.ptp(contour, axis=0) for contour in contours], axis=0).argmin())  # across the slices
    planes, slices, beside, crossing = np.moveaxis(array, axis, 0), defaultdict(list), 0, 0
    for contour in contours:
        heights = contour[:, axis]
        k = int(np.rint(heights.mean()))
        if np.abs(heights - k).max() > OFF_PLANE:
            given = f"{name} has contours between the slices of the scan, or not parallel to them"
            raise GeometryError(given, "contours that were drawn on this scan", "give the series that it refers to")
        if 0 <= k < len(planes):
            slices[k].append(np.delete(contour, axis, axis=1))
        else:
            beside += 1
    for k, polygons in slices.items():
        (inside, crosses), here = _united(polygons, planes.shape[1:]), planes[k]
        crossing += crosses
        if here[inside].any():
            raise overlap("ROIs", name, int(here[inside].max()), label, numbers)
        here[inside] = label
    remarks = [f"{beside} of its contours lie beside the scan"] * bool(beside)
    return remarks + [f"contours cross one another in {crossing} slices; joined there"] * bool(crossing)


def _united(polygons: list[Polygon], shape: tuple[int, int]) -> tuple[NDArray[np.bool_], bool]:
    """(shape) the voxels inside the polygons of one slice, and whether any polygons cross.

    A polygon inside another is a hole, or an island in a hole. Duplicates count once, and polygons that cross are
    joined: the even-odd rule alone would silently drop what they share.
    """
    if len(polygons) == 1 or len(polygons) > MAX_PAIRS:
        return fill(polygons, shape), False
    areas: list[NDArray[np.bool_]] = []
    crosses = False
    for area in (fill([polygon], shape) for polygon in polygons):
        if any(np.array_equal(area, other) for other in areas):
            continue
        apart = []
        for other in areas:
            common = np.count_nonzero(area & other)
            if 0 < common < CROSSING * min(np.count_nonzero(area), np.count_nonzero(other)):
                area, crosses = area | other, True
            else:
                apart.append(other)
        areas = [*apart, area]
    return np.bitwise_xor.reduce(areas), crosses


# Polygons


def outline(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Polygons round the voxels of a mask (i, j); parts that touch only at a corner get one each."""
    from scipy.spatial.distance import cdist
    from skimage.measure import find_contours, points_in_poly

    padded = np.pad(mask, 1).astype(np.float64)  # so that all contours close
    rings = []
    for ring in find_contours(padded, 0.5, fully_connected="low"):
        ring = ring[:-1] - 1
        before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
        rings.append(ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]])  # without points on straight edges
    holes = [ring for ring in rings if _signed_area(ring) > 0]
    outer = sorted((ring for ring in rings if _signed_area(ring) <= 0), key=lambda ring: -_signed_area(ring))
    joined = list(outer)
    for hole in holes:
        # the smallest outline that the hole lies in: an island in a hole has an outline of its own
        parent = next(n for n, ring in enumerate(outer) if points_in_poly(hole[:1], ring)[0])
        ring = joined[parent]
        # one polygon: round the outline, through a channel between the nearest points to the hole, round it and back
        at, to = np.unravel_index(cdist(ring, hole).argmin(), (len(ring), len(hole)))
        around = np.concatenate([np.roll(hole, -int(to), axis=0), hole[to : to + 1]])
        joined[parent] = np.concatenate([ring[: at + 1], around, ring[at:]])
    return joined


def fill(polygons: Sequence[Polygon], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(shape) the voxels whose centre is inside an odd number of polygons.

    A centre on an edge counts as inside if the interior lies at higher i or, for an edge along i, at higher j.
    """
    toggled = np.zeros((shape[0] + 1, shape[1]), dtype=np.uint8)
    for polygon in polygons:
        ends = np.round(np.stack([polygon, np.roll(polygon, -1, axis=0)], 1), DECIMALS)
        # from lower to higher j, so that a channel is crossed at exactly the same point on its way back
        ends = np.take_along_axis(ends, ends[:, :, 1].argsort(1, kind="stable")[:, :, None], 1)
        (low_i, low_j), (high_i, high_j) = ends[:, 0].T, ends[:, 1].T
        first = np.clip(np.ceil(low_j), 0, shape[1]).astype(int)
        count = np.clip(np.ceil(high_j), 0, shape[1]).astype(int) - first
        edge = np.repeat(np.arange(len(ends)), count)
        j = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        fraction = (j - low_j[edge]) / (high_j - low_j)[edge]
        crossing = np.round(low_i[edge] + fraction * (high_i - low_i)[edge], DECIMALS)
        i = np.clip(np.ceil(crossing), 0, shape[0]).astype(int)
        np.bitwise_xor.at(toggled, (i, j), 1)
    return np.bitwise_xor.accumulate(toggled, axis=0)[: shape[0]].astype(bool)


def _signed_area(ring: Polygon) -> float:
    """The area by the shoelace formula, positive if the polygon turns from i to j."""
    ahead = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * ahead[:, 1] - ahead[:, 0] * ring[:, 1]).sum() / 2)

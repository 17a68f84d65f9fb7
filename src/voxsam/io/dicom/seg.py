"""Write and read DICOM-SEG.

Writing uses highdicom (the extra `dicom`). Reading uses pydicom alone: BINARY, LABELMAP and FRACTIONAL of any vendor,
including files that highdicom's reader refuses, with every frame placed by its own position.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels
from pydicom.valuerep import DS

from voxsam import __version__
from voxsam.errors import GeometryError, ImageError, OverlapError, UnsupportedError
from voxsam.geometry import Grid, flip_lps
from voxsam.io.checks import check_size
from voxsam.io.dicom.pixels import GROUPS, frame_count, group_item, shallow_copy
from voxsam.io.dicom.source import DESCRIPTION, MANUFACTURER, PATIENT_AND_STUDY, SERIES_NUMBER, DicomSource
from voxsam.io.segments import SegmentInfo
from voxsam.region import Region, overlapping
from voxsam.volume import Volume

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
SAME_HEIGHT = 0.1  # of the slice spacing: frames closer than this lie in one slice
ON_PLANE, ON_SLICE = 0.25, 0.35  # of a voxel: a frame this close to the scan's pixels and slices lies on them


def write(
    mask: Volume,
    path: Path,
    source: DicomSource,
    *,
    segments: Sequence[SegmentInfo],
    regions: Sequence[Region] = (),
    model: str = "",
    labelmap: bool = False,
) -> None:
    """Write a mask of the series `source` as one DICOM-SEG: label n becomes segment n, described by `segments`.

    It is BINARY or, with `labelmap`, the newer LABELMAP (Supplement 243), which few viewers read yet. If `regions`, the
    labels' voxels on the mask's grid, overlap, they are written instead. The algorithm is VoxSAM with its version and
    `model`; all instances are referenced. Raises UnsupportedError without highdicom, otherwise as DicomSource does.
    """
    hd = highdicom()
    if overlapping(regions):
        voxels = np.stack([source.voxels(region.on_all(mask)) for region in regions], axis=-1)
    else:
        voxels = source.voxels(mask)
    images, order = _source_images(source)
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=voxels[order],
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=[_description(hd, number, info, model) for number, info in enumerate(segments, 1)],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="VoxSAM",
        software_versions=__version__,
        device_serial_number="0",
        content_label="TUMOUR",
        content_description=DESCRIPTION,
        series_description=DESCRIPTION,
        omit_empty_frames=bool(voxels.any()),
    )
    described = {number: info.description for number, info in enumerate(segments, 1) if info.description}
    for item in segmentation.SegmentSequence:
        if item.SegmentNumber in described:
            item.SegmentDescription = described[item.SegmentNumber]
    source.repeat_in(segmentation)
    segmentation.save_as(path, enforce_file_format=True)


def highdicom() -> Any:
    """The highdicom package. Raises UnsupportedError if it is not installed."""
    try:
        import highdicom as package
    except ImportError as error:
        given = "writing DICOM-SEG or SR without the highdicom package"
        raise UnsupportedError(given, "the dicom extra", "pip install 'voxsam[dicom]'") from error
    return package


def _description(hd: Any, number: int, info: SegmentInfo, model: str) -> Any:
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="VoxSAM",
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source=MANUFACTURER,
        parameters={"model": model} if model else None,
    )
    category, kind = (hd.sr.CodedConcept(code.value, code.scheme, code.meaning) for code in (info.category, info.type))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=info.name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="SEMIAUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id=info.name,
        display_color=hd.color.CIELabColor.from_rgb(*info.colour),
    )


def _source_images(source: DicomSource) -> tuple[list[pydicom.Dataset], NDArray[np.intp]]:
    """The headers that highdicom refers to, in its order, and the index k of each of their frames.

    They hold what it needs and no patient data, which repeat_in adds later: highdicom refuses non-conforming values.
    """
    base, common = pydicom.Dataset(), source.common
    for keyword in PATIENT_AND_STUDY:
        setattr(base, keyword, None)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "Modality"):
        setattr(base, keyword, common.get(keyword))
    base.PositionReferenceIndicator = common.get("PositionReferenceIndicator")
    if common.get("LossyImageCompression") == "01":
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in common:
                base[keyword] = common[keyword]
    if source.is_multi_frame:
        base.SOPClassUID, base.SOPInstanceUID = source.frames[0].sop_class, source.frames[0].sop_instance
        base.NumberOfFrames = len(source.frames)
        shared = shallow_copy(common.SharedFunctionalGroupsSequence[0])
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):  # highdicom looks for them here alone
            if keyword not in shared:
                shared[keyword] = common.PerFrameFunctionalGroupsSequence[0][keyword]
        base.SharedFunctionalGroupsSequence = [shared]
        base.PerFrameFunctionalGroupsSequence = common.PerFrameFunctionalGroupsSequence
        return [base], np.argsort([frame.number for frame in source.frames])
    base.ImageOrientationPatient = common.ImageOrientationPatient
    base.PixelSpacing = common.PixelSpacing
    step = DS(float(source.grid.spacing_mm[2]), auto_format=True)
    base.SliceThickness = common.get("SliceThickness") or step
    base.SpacingBetweenSlices = step
    images = []
    for frame in source.frames:
        image = shallow_copy(base)
        image.SOPClassUID, image.SOPInstanceUID = frame.sop_class, frame.sop_instance
        image.ImagePositionPatient = list(frame.position_lps_mm)
        images.append(image)
    return images, np.arange(len(images))


# Reading


def read(path: Path, dataset: pydicom.Dataset, grid: Grid | None, segment: int | None) -> Volume:
    """Read a label map: segment n is label n, named in header["segments"]. With `segment`, only that one, as 0/1.

    A SEG holds only the slices that are not empty. The mask is on `grid`, the scan's, if the frames lie on it, else on
    a grid from the first frame's slice to the last one's. Raises FileError, GeometryError; ImageError if segments
    overlap and none was chosen.
    """
    names = {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in dataset.get("SegmentSequence") or []
    }
    names.pop(0, None)  # a LABELMAP may describe its background
    if segment is not None and segment not in names:
        listed = ", ".join(f"{number} {name}" for number, name in names.items())
        raise ImageError(f"segment {segment} of {path.name}", f"one of {listed}", "choose another")
    header = {"segments": names, "frame_of_reference": str(dataset.get("FrameOfReferenceUID", ""))}
    kind = np.uint8 if max(names, default=0) < 256 else np.uint16
    planes, array = None, np.empty(0, kind)
    if grid is not None:
        array = np.zeros(grid.shape, kind)
        planes = _planes_on(array, grid, dataset, path.name)
    if grid is None or planes is None:
        grid, slices = _own_grid(dataset, path.name)
        array = np.zeros(grid.shape, kind)
        planes = [array[:, :, k] for k in slices.tolist()]
    threshold, remarks = _threshold(dataset, path.name)
    unlisted = _fill(planes, dataset, segment, threshold, path.name, names)
    if unlisted:
        others = f"segment{'s' * (len(unlisted) > 1)} {', '.join(map(str, sorted(unlisted)[:5]))}"
        remarks = (*remarks, f"{path.name}: left out the frames of {others}, which it does not list")
    return Volume(array, grid, "SEG", header, remarks)


def _threshold(dataset: pydicom.Dataset, name: str) -> tuple[int, tuple[str, ...]]:
    """The value from which a voxel is inside (half of MaximumFractionalValue if FRACTIONAL, else 1), and remarks.

    A FRACTIONAL file of nothing but 0 and 1 is a mislabelled binary one (these exist, and would be read as empty).
    """
    if dataset.get("SegmentationType") != "FRACTIONAL":
        return 1, ()
    whole = int(dataset.get("MaximumFractionalValue") or 255)
    half, largest = (whole + 1) // 2, max((int(pixels.max()) for pixels in iter_pixels(dataset)), default=0)
    if not 0 < largest < half:
        return half, ()
    if largest == 1:
        return 1, (f"{name} says FRACTIONAL, of at most {whole}, and holds only 0 and 1: 1 was read as inside",)
    return half, (f"{name}: its largest value is {largest}, below half of {whole}: the mask is empty",)


def _fill(
    planes: Sequence[NDArray[np.unsignedinteger]],
    dataset: pydicom.Dataset,
    wanted: int | None,
    threshold: int,
    name: str,
    numbers: Collection[int],
) -> set[int]:
    """Draw every frame (rows, columns) into its plane (column, row), a view of the mask.

    Returns the segments that are not among `numbers`, which were left out.
    """
    labelmap, unlisted = dataset.get("SOPClassUID") == LABELMAP_STORAGE, set()
    for frame, pixels in enumerate(iter_pixels(dataset)):
        number = 0
        if not labelmap:
            number = int(group_item(dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            if wanted not in (None, number):
                continue
        drawn = pixels.transpose()
        if labelmap and not (listed := np.isin(drawn, [0, *numbers])).all():
            unlisted.update(drawn[~listed].tolist())
            drawn = drawn * listed
        elif not labelmap and number not in numbers:
            unlisted.add(number)
            continue
        inside = drawn if labelmap else (drawn >= threshold) * number
        here = planes[frame]
        if wanted is not None:
            here[inside == wanted] = 1
            continue
        clash = (here != 0) & (inside != 0) & (here != inside)
        if clash.any():
            raise overlap("segments", name, int(here[clash][0]), int(inside[clash][0]), numbers)
        np.copyto(here, inside, where=inside != 0, casting="unsafe")
    return unlisted


def overlap(what: str, name: str, first: int, second: int, numbers: Iterable[int]) -> OverlapError:
    """The error for two segments or ROIs of a file that share voxels; `numbers` are those of all its segments."""
    given, remedy = f"{what} {first} and {second} of {name} overlap", f"choose one: segment=N, or {name}#N as a prompt"
    error = OverlapError(given, f"{what} that one label map can hold", remedy)
    error.numbers = tuple(numbers)
    return error


# Where the frames lie


def _frames(dataset: pydicom.Dataset, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 3) positions and (n, 6) orientations of the frames, LPS."""
    positions, turns = (
        np.array([_numbers(dataset, n, keyword, name) for n in range(frame_count(dataset))])
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient")
    )
    return positions, turns


def _planes_on(array: NDArray, grid: Grid, dataset: pydicom.Dataset, name: str) -> list[NDArray] | None:
    """A view (column, row) of `array`, on `grid`, for each frame, where its own position puts it.

    None if any of them does not lie on the grid's voxels.
    """
    positions, turns = _frames(dataset, name)
    size, found = (int(dataset.Columns), int(dataset.Rows)), []
    inverse = np.linalg.inv(grid.affine[:3, :3])
    for n, (position, turn) in enumerate(zip(positions, turns, strict=True)):
        between_rows, between_columns = _numbers(dataset, n, "PixelSpacing", name)
        steps = inverse @ flip_lps([turn[:3] * between_columns, turn[3:] * between_rows]).T  # (3, 2), in voxels
        along_i, along_j = np.abs(steps).argmax(0).tolist()
        if along_i == along_j:
            return None
        across = 3 - along_i - along_j
        origin = grid.world_to_index(flip_lps(position))
        start = np.rint(origin).astype(int)
        signs = np.sign(steps[[along_i, along_j], [0, 1]])
        unit = np.zeros((3, 2))
        unit[[along_i, along_j], [0, 1]] = signs
        drift = np.abs(steps - unit) @ (np.array(size) - 1) + np.abs(origin - start)
        if drift[[along_i, along_j]].max() > ON_PLANE or drift[across] > ON_SLICE:
            return None
        view = []
        for axis, sign, length in zip((along_i, along_j), signs, size, strict=True):
            first = start[axis] if sign > 0 else grid.shape[axis] - 1 - start[axis]
            if first < 0 or first + length > grid.shape[axis]:
                return None
            view.append(slice(first, first + length))
        if not 0 <= start[across] < grid.shape[across]:
            return None
        flip_i, flip_j = (-1 if sign < 0 else 1 for sign in signs)
        turned = array.transpose(along_i, along_j, across)[::flip_i, ::flip_j]
        found.append(turned[(*view, int(start[across]))])
    return found


def _own_grid(dataset: pydicom.Dataset, name: str) -> tuple[Grid, NDArray[np.int_]]:
    """The grid from the lowest frame to the highest, and the slice (n,) of each frame."""
    positions, turns = _frames(dataset, name)
    between_rows, between_columns = _numbers(dataset, 0, "PixelSpacing", name)
    if np.abs(turns - turns[0]).max() > 1e-3:
        raise GeometryError(f"the frames of {name} have different orientations", "parallel frames", "export it again")
    along_i, along_j = turns[0, :3], turns[0, 3:]
    normal = np.cross(along_i, along_j)
    heights = positions @ normal
    step = _step(heights, dataset, name)
    slices = np.rint((heights - heights.min()) / step).astype(int)
    first, last = positions[heights.argmin()], positions[heights.argmax()]
    along_k = (last - first) / slices.max() if slices.max() else step * normal
    off = positions - first - slices[:, None] * along_k
    if np.abs(off).max() > SAME_HEIGHT * step:
        raise GeometryError(f"the frames of {name} are not evenly spaced", "one slice spacing", "export it again")
    shape = (int(dataset.Columns), int(dataset.Rows), int(slices.max()) + 1)
    check_size(name, shape, 1, np.iinfo(np.int64).max, compressed=False)
    steps = np.stack([along_i * between_columns, along_j * between_rows, along_k], 1)
    return Grid.from_lps(shape, steps, first), slices


def _numbers(dataset: pydicom.Dataset, frame: int, keyword: str, name: str) -> NDArray[np.float64]:
    count = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}[keyword]
    try:
        values = np.array(group_item(dataset, frame, GROUPS[keyword])[keyword].value, dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        given = f"frame {frame + 1} of {name} has no valid {keyword}"
        raise GeometryError(given, f"{count} numbers", "export it again")
    return values


def _step(heights: NDArray[np.float64], dataset: pydicom.Dataset, name: str) -> float:
    """The slice spacing in mm: as declared if the frames agree with it, else the smallest gap between frames."""
    measures = group_item(dataset, 0, "PixelMeasuresSequence")
    declared = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 0)
    gaps = np.diff(np.unique(heights))
    gaps = gaps[gaps > SAME_HEIGHT * (declared or 1e-2)]
    for step in (abs(declared), gaps.min(initial=np.inf)):
        if 0 < step < np.inf and (np.abs(gaps / step - np.rint(gaps / step)) < SAME_HEIGHT).all():
            return step
    raise GeometryError(f"the frames of {name} are not evenly spaced", "one slice spacing", "export it again")

"""DICOM-SEG in, through pydicom alone: BINARY, LABELMAP and FRACTIONAL, of any maker; no further package is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels

from voxsam.errors import GeometryError, ImageError
from voxsam.geometry import Grid
from voxsam.io.checks import check_size
from voxsam.io.dicom.pixels import frame_count, group_item
from voxsam.volume import Volume

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
SAME_HEIGHT = 0.1  # of the slice spacing: frames nearer than that lie in one slice
ALIGNED = 0.1  # of the smallest spacing: a SEG whose corners lie that near to voxels of the scan lies on them


def read(path: Path, dataset: pydicom.Dataset, grid: Grid | None, segment: int | None) -> Volume:
    """A label map: segment n is label n; header["segments"] says what each is called. With `segment` that one, as 0/1.

    A SEG holds only the slices that are not empty. The answer is on `grid`, the scan's, if the frames lie on it; else
    on the box from the first frame's slice to the last one's. Raises FileError, GeometryError; ImageError if segments
    overlap and none was chosen.
    """
    names = {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in dataset.get("SegmentSequence") or []
    }
    names.pop(0, None)  # a LABELMAP may describe its background
    if segment is not None and segment not in names:
        listed = ", ".join(f"{number} {name}" for number, name in names.items())
        raise ImageError(f"segment {segment} of {path.name}", f"one of {listed}", "choose another")
    own, slices = _grid(dataset, path.name)
    array = np.zeros(own.shape, np.uint8 if max(names, default=0) < 256 else np.uint16)
    _fill(array, dataset, slices, segment, path.name)
    volume = Volume(array, own, "SEG", {"segments": names})
    return volume if grid is None else _laid_on(volume, grid)


def _fill(
    array: NDArray[np.unsignedinteger],
    dataset: pydicom.Dataset,
    slices: NDArray[np.int_],
    wanted: int | None,
    name: str,
) -> None:
    """Draw every frame (rows, columns) into its slice of the (i, j, k) `array`."""
    labelmap = dataset.SOPClassUID == LABELMAP_STORAGE
    threshold = (int(dataset.get("MaximumFractionalValue") or 255) + 1) // 2 if _is_fractional(dataset) else 1
    for frame, pixels in enumerate(iter_pixels(dataset)):
        number = 0 if labelmap else _segment_of(dataset, frame)
        if not labelmap and wanted not in (None, number):
            continue
        drawn = pixels.transpose()
        inside = drawn if labelmap else (drawn >= threshold) * number
        here = array[:, :, slices[frame]]
        if wanted is not None:
            here[inside == wanted] = 1
            continue
        clash = (here != 0) & (inside != 0) & (here != inside)
        if clash.any():
            raise _overlap(name, int(here[clash][0]), int(inside[clash][0]))
        np.copyto(here, inside, where=inside != 0, casting="unsafe")


def _segment_of(dataset: pydicom.Dataset, frame: int) -> int:
    return int(group_item(dataset, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _is_fractional(dataset: pydicom.Dataset) -> bool:
    return dataset.get("SegmentationType") == "FRACTIONAL"


def _overlap(name: str, first: int, second: int) -> ImageError:
    given = f"segments {first} and {second} of {name} overlap"
    return ImageError(given, "segments that one label map can hold", f"choose one: segment=N, or {name}#N as a prompt")


# Where the frames lie


def _grid(dataset: pydicom.Dataset, name: str) -> tuple[Grid, NDArray[np.int_]]:
    """The grid from the lowest frame to the highest, and which of its slices (n,) each frame is."""
    count = frame_count(dataset)
    positions = np.array(
        [_numbers(dataset, n, "PlanePositionSequence", "ImagePositionPatient", name) for n in range(count)]
    )
    turns = np.array(
        [_numbers(dataset, n, "PlaneOrientationSequence", "ImageOrientationPatient", name) for n in range(count)]
    )
    between_rows, between_columns = _numbers(dataset, 0, "PixelMeasuresSequence", "PixelSpacing", name)
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
    return Grid.from_lps(
        shape, np.stack([along_i * between_columns, along_j * between_rows, along_k], 1), first
    ), slices


def _numbers(dataset: pydicom.Dataset, frame: int, group: str, keyword: str, name: str) -> NDArray[np.float64]:
    count = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}[keyword]
    try:
        values = np.array(group_item(dataset, frame, group)[keyword].value, dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise GeometryError(
            f"frame {frame + 1} of {name} has no valid {keyword}", f"{count} numbers", "export it again"
        )
    return values


def _step(heights: NDArray[np.float64], dataset: pydicom.Dataset, name: str) -> float:
    """The slice spacing in mm: as declared if the frames keep to it, else the smallest gap between frames."""
    measures = group_item(dataset, 0, "PixelMeasuresSequence")
    declared = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 0)
    gaps = np.diff(np.unique(heights))
    gaps = gaps[gaps > SAME_HEIGHT * (declared or 1e-2)]
    for step in (abs(declared), gaps.min(initial=np.inf)):
        if 0 < step < np.inf and (np.abs(gaps / step - np.rint(gaps / step)) < SAME_HEIGHT).all():
            return step
    raise GeometryError(f"the frames of {name} are not evenly spaced", "one slice spacing", "export it again")


def _laid_on(volume: Volume, grid: Grid) -> Volume:
    """The same labels on all of `grid`, if every voxel is one of its voxels; the volume itself if not."""
    turned = volume.grid.reorient(grid.axes)
    start = np.rint(grid.world_to_index(turned.affine[:3, 3])).astype(int)
    inside = (start >= 0).all() and (start + turned.shape <= grid.shape).all()
    if not inside or not grid.crop(start.tolist(), turned.shape).close_to(turned, ALIGNED * grid.spacing_mm.min()):
        return volume
    axes, flips = volume.grid.permutation_to(grid.axes)
    array = volume.array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    out = np.zeros(grid.shape, volume.array.dtype)
    out[tuple(slice(a, a + n) for a, n in zip(start, turned.shape, strict=True))] = array
    return Volume(out, grid, "SEG", volume.header)

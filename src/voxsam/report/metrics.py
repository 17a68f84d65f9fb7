"""Numbers about masks: Dice, volume, the axial diameters of RECIST 1.1, and the connected components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from voxsam.boxes import bounding_box
from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.region import Region
from voxsam.volume import Volume

TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a corner belong to one part
SAME_MM = 1e-9  # lengths that differ by less are equal, so that no rounding error decides which line counts


@dataclass(frozen=True)
class Diameter:
    """A straight line within one axial slice of a mask; its two ends are (i, j, k) indices, not rounded."""

    length_mm: float
    ends: NDArray[np.float64]  # (2, 3)


@dataclass(frozen=True)
class Measurement:
    """The measurements of an object; without voxels it has no diameters."""

    voxels: int
    volume_ml: float
    longest: Diameter | None  # axial (RECIST 1.1)
    perpendicular: Diameter | None  # to the longest, in its slice

    def in_words(self) -> str:
        """`12.3 mL, longest axial diameter 31.0 mm, perpendicular 20.1 mm`."""
        words = (
            f"{self.volume_ml:.2f} mL, longest axial diameter {self.longest.length_mm if self.longest else 0:.1f} mm"
        )
        return words + (f", perpendicular {self.perpendicular.length_mm:.1f} mm" if self.perpendicular else "")


def measure(region: Region, grid: Grid) -> Measurement:
    """The volume and diameters of an object on the scan's `grid`; ends are indices of the scan."""
    part, start = region.on(grid), np.array([along.start for along in region.box])
    longest = longest_axial_diameter(part)
    across = None if longest is None else perpendicular_diameter(part, longest)
    lines = [None if line is None else Diameter(line.length_mm, line.ends + start) for line in (longest, across)]
    return Measurement(region.voxels, region.voxels * grid.voxel_volume_ml, lines[0], lines[1])


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """2 |A and B| / (|A| + |B|) of two arrays of the same shape, in which every non-zero voxel counts.

    Two empty masks agree: 1.0. An empty mask against a non-empty one: 0.0. Raises GeometryError for different shapes.
    """
    first, second = np.asarray(a) != 0, np.asarray(b) != 0
    if first.shape != second.shape:
        raise GeometryError(
            f"masks of shapes {first.shape} and {second.shape}", "two masks on one grid", "resample one onto the other"
        )
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else 1.0


def volume_ml(mask: Volume, label: int | None = None) -> float:
    """Volume in millilitres of the voxels of `label`, or of all non-zero voxels."""
    return int(np.count_nonzero(_inside(mask, label))) * mask.grid.voxel_volume_ml


def longest_axial_diameter(mask: Volume, label: int | None = None) -> Diameter | None:
    """The longest in-plane diameter over all axial slices (RECIST 1.1), of `label` or of all objects; None if empty.

    It is measured in mm between the outer faces of voxels, so a row of n voxels is n spacings long. Axial slices are
    perpendicular to the array axis nearest to Superior; the line may cross a notch of the mask. Of several equally long
    lines it is the one whose ends have the lowest indices.
    """
    longest: Diameter | None = None
    for outline in _slice_outlines(_inside(mask, label), _axial_axis(mask)):
        points = outline[np.lexsort(outline.T[::-1])]
        distances = squareform(pdist(mask.grid.index_to_world(points)))
        first, second = np.argwhere(distances >= distances.max() - SAME_MM)[0]
        length = float(distances[first, second])
        if longest is None or length > longest.length_mm + SAME_MM:
            longest = Diameter(length, points[[first, second]])
    return longest


def perpendicular_diameter(mask: Volume, longest: Diameter, label: int | None = None) -> Diameter:
    """The longest line perpendicular to `longest` in its slice: the short axis of a lesion or node (RECIST 1.1).

    `longest` must be of the same mask and label. Like it, the line is measured in mm between the outer faces of voxels
    and may cross a notch.
    """
    axis = _axial_axis(mask)
    number = round(float(longest.ends[0, axis]))
    layer = tuple(slice(number, number + 1) if a == axis else slice(None) for a in range(3))
    (outline,) = _slice_outlines(_inside(mask, label)[layer], axis)
    outline[:, axis] = number
    first, second = mask.grid.index_to_world(longest.ends)
    along = (second - first) / longest.length_mm
    sides = np.delete(mask.grid.affine[:3, :3], axis, axis=1)
    across = np.cross(np.cross(*sides.T), along)
    across /= np.linalg.norm(across)
    # The outline is convex: the longest line across starts at one of its corners.
    corners = (mask.grid.index_to_world(outline) - first) @ np.stack([along, across], 1)
    chords = np.array([_chord(corners, at) for at in corners[:, 0]])
    widest = np.ptp(chords, axis=1).argmax()
    ends = first + corners[widest, 0] * along + chords[widest, :, None] * across
    return Diameter(float(np.ptp(chords[widest])), mask.grid.world_to_index(ends))


def _chord(polygon: NDArray[np.float64], at: float) -> tuple[float, float]:
    """The lowest and highest y of a convex polygon (n, 2) where x is `at`, the x of one of its corners."""
    found = []
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if min(x0, x1) <= at <= max(x0, x1):
            found += [y0, y1] if x0 == x1 else [y0 + (at - x0) * (y1 - y0) / (x1 - x0)]
    return min(found), max(found)


def _inside(mask: Volume, label: int | None) -> NDArray[np.bool_]:
    return mask.array != 0 if label is None else mask.array == label


def _axial_axis(mask: Volume) -> int:
    """The array axis nearest to Superior."""
    return mask.grid.permutation_to("RAS")[0][2]


def _slice_outlines(inside: NDArray[np.bool_], axial_axis: int) -> Iterator[NDArray[np.float64]]:
    """For each axial slice that is not empty: (n, 3) indices of the convex hull of its voxels' face centres."""
    for number, plane in enumerate(np.ascontiguousarray(np.moveaxis(inside, axial_axis, 0))):
        rows = np.flatnonzero(plane.any(axis=1))
        if not len(rows):
            continue
        # Only voxels at the ends of their row can touch the hull.
        filled = plane[rows]
        first, last = filled.argmax(axis=1), plane.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
        ends = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)])
        faces = np.concatenate([ends + step for step in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))])
        hull = faces[ConvexHull(faces).vertices]
        yield np.insert(hull, axial_axis, float(number), axis=1).astype(np.float64)


def parts_of(mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> list[tuple[tuple[int, int, int], int]]:
    """For each connected component (26 neighbours) of a mask (i, j, k): its deepest voxel, and its size in voxels.

    Of several equally deep voxels it is the one nearest to their centre: the middle of a line, not its end.
    """
    if not mask.any():
        return []
    box = bounding_box(mask)
    numbers = np.zeros([along.stop - along.start for along in box], dtype=np.int32)
    scipy.ndimage.label(mask[box], TOUCHING, output=numbers)
    found = []
    for number, part in enumerate(scipy.ndimage.find_objects(numbers), start=1):
        inside = np.pad(numbers[part] == number, 1)
        depth = np.asarray(scipy.ndimage.distance_transform_edt(inside, sampling=spacing_mm))
        deep = np.argwhere(depth >= depth.max() - 1e-6)
        deepest = deep[np.linalg.norm((deep - deep.mean(0)) * spacing_mm, axis=1).argmin()] - 1
        i, j, k = (int(d + p.start + b.start) for d, p, b in zip(deepest, part, box, strict=True))
        found.append(((i, j, k), int(inside.sum())))
    return found

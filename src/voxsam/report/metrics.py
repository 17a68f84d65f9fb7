"""Numbers about masks: Dice, volume, and the longest axial diameter of RECIST 1.1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from voxsam.errors import GeometryError
from voxsam.volume import Volume


@dataclass(frozen=True)
class Diameter:
    """The longest straight line within one axial slice of a mask; its two ends are (i, j, k) indices, not rounded."""

    length_mm: float
    ends: NDArray[np.float64]  # (2, 3)


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """2 |A and B| / (|A| + |B|) of two arrays of one shape, where every voxel that is not zero counts.

    Two empty masks agree: 1.0. One empty mask against one that is not: 0.0. Raises GeometryError for two shapes.
    """
    first, second = np.asarray(a) != 0, np.asarray(b) != 0
    if first.shape != second.shape:
        raise GeometryError(
            f"masks of shapes {first.shape} and {second.shape}", "two masks on one grid", "resample one onto the other"
        )
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else 1.0


def volume_ml(mask: Volume, label: int | None = None) -> float:
    """Millilitres of the voxels that are `label`, or of all that are not zero."""
    inside = mask.array != 0 if label is None else mask.array == label
    return int(np.count_nonzero(inside)) * mask.grid.voxel_volume_ml


def longest_axial_diameter(mask: Volume, label: int | None = None) -> Diameter | None:
    """The longest in-plane diameter over all axial slices (RECIST 1.1), of `label` or of all objects; None if empty.

    It is measured in mm between the outer faces of voxels, so a row of n voxels is n spacings long. Axial is the
    array's own axis that lies nearest to Superior; the line may cross a notch of the mask.
    """
    inside = mask.array != 0 if label is None else mask.array == label
    longest: Diameter | None = None
    for points in _slice_outlines(inside, axial_axis=mask.grid.permutation_to("RAS")[0][2]):
        distances = squareform(pdist(mask.grid.index_to_world(points)))
        first, second = np.unravel_index(distances.argmax(), distances.shape)
        length = float(distances[first, second])
        if longest is None or length > longest.length_mm:
            longest = Diameter(length, points[[first, second]])
    return longest


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

"""Between a mask in one plane and the polygons round it, so that filling the polygons gives the same mask again.

Outlines cut halfway between the centre of a voxel inside and that of its neighbour outside (marching squares at 0.5),
so no centre lies near a line. A hole is joined to the outline round it by a channel without width, the keyhole
technique: CLOSED_PLANAR contours know no holes (DICOM PS3.3 C.8.8.6.3). Filling counts crossings (even-odd), which
reads keyholes, separate inner contours and CLOSEDPLANAR_XOR alike. All coordinates are (i, j), in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Polygon = NDArray[np.float64]  # (n, 2), closed: the last point is joined to the first

DECIMALS = 4  # of a voxel: below it lies the rounding of coordinates written in millimetres


def outline(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Polygons round the voxels of a mask (i, j); those that touch at a corner only get one each."""
    from skimage.measure import find_contours, points_in_poly

    padded = np.pad(mask, 1).astype(np.float64)  # so that all contours close
    rings = [_without_straight(ring[:-1] - 1) for ring in find_contours(padded, 0.5, fully_connected="low")]
    holes = [ring for ring in rings if _signed_area(ring) > 0]
    outer = sorted((ring for ring in rings if _signed_area(ring) <= 0), key=lambda ring: -_signed_area(ring))
    joined = list(outer)
    for hole in holes:
        # the smallest outline that the hole lies in: an island in a hole has an outline of its own
        parent = next(n for n, ring in enumerate(outer) if points_in_poly(hole[:1], ring)[0])
        joined[parent] = _keyhole(joined[parent], hole)
    return joined


def fill(polygons: Sequence[Polygon], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(shape) which voxels have their centre inside an odd number of polygons.

    A centre on a line counts as inside where the mask lies at higher i, or on a line along i at higher j.
    """
    toggled = np.zeros((shape[0] + 1, shape[1]), dtype=np.uint8)
    for polygon in polygons:
        ends = np.round(np.stack([polygon, np.roll(polygon, -1, axis=0)], 1), DECIMALS)
        # from lower to higher j, so that a channel crosses at the very same place on its way back
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


def _without_straight(ring: Polygon) -> Polygon:
    """The same polygon without the points between two steps of one direction."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns]


def _signed_area(ring: Polygon) -> float:
    """Positive where i turns to j (the shoelace formula)."""
    ahead = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * ahead[:, 1] - ahead[:, 0] * ring[:, 1]).sum() / 2)


def _keyhole(outer: Polygon, hole: Polygon) -> Polygon:
    """One polygon: round the outline, through a channel at the nearest pair of points to the hole, round it, back."""
    at, to = np.unravel_index(cdist(outer, hole).argmin(), (len(outer), len(hole)))
    around = np.concatenate([np.roll(hole, -int(to), axis=0), hole[to : to + 1]])
    return np.concatenate([outer[: at + 1], around, outer[at:]])

"""Edits of a mask by hand: brush and eraser, lasso, hole filling, smoothing, components, slice interpolation.

Each is a pure function of the mask, its grid and what was drawn, and returns an Edit: the box that it may have changed
and the mask's values there, before and after, so that one assignment undoes it. Masks are arrays (i, j, k) whose
non-zero voxels belong to the object. Points are voxel indices, not rounded. Lengths are mm in the patient, measured
through the affine, so that a ball is a ball on anisotropic, oblique and sheared grids alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from voxsam.boxes import bounding_box, is_empty, within
from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.preprocess import Slices

Mask = NDArray[np.bool_]
ROUNDING = 1e-9  # relative, of a distance: a centre exactly on the brush's edge counts
SMOOTHING_REACH = 3  # standard deviations at which the Gaussian is cut off


@dataclass(frozen=True)
class Edit:
    """A box of the mask, and its values (bool) before and after."""

    box: Slices
    before: Mask
    after: Mask

    @property
    def changes(self) -> bool:
        """Whether the edit changes any voxel."""
        return not np.array_equal(self.before, self.after)

    def apply(self, mask: ArrayLike) -> Mask:
        """A new mask with the edit applied."""
        return _pasted(mask, self.box, self.after)

    def undo(self, mask: ArrayLike) -> Mask:
        """A new mask with the edit undone."""
        return _pasted(mask, self.box, self.before)


def brush(
    mask: ArrayLike,
    grid: Grid,
    stroke: ArrayLike,
    radius_mm: float,
    *,
    add: bool = True,
    axis: int | None = None,
    image: ArrayLike | None = None,
    intensities: tuple[float, float] = (-np.inf, np.inf),
) -> Edit:
    """Paint (`add`) or erase the voxels whose centre lies within `radius_mm` of the line through `stroke` (n, 3).

    With `axis`, only in the one slice perpendicular to that axis of the array in which the whole stroke lies (a disc);
    else in 3D (a ball). The voxels that hold the stroke's points always count. With `image`, on the same grid, only
    voxels in that range of `intensities`, ends included, are painted or erased. Anything outside the grid is ignored.
    Raises PromptError for no points, a radius that is not positive, or a stroke through several slices.
    """
    points = _points(stroke)
    if not (np.isfinite(radius_mm) and radius_mm > 0):
        raise PromptError(f"a brush with a radius of {radius_mm:g} mm", "more than 0 mm", "choose a larger one")
    if axis is not None:
        points[:, axis] = _only_slice(points, axis)
    # Along each axis the ball reaches as far as that row of the inverse matrix is long.
    reach = radius_mm * np.linalg.norm(np.linalg.inv(grid.affine[:3, :3]), axis=1)
    if axis is not None:
        reach[axis] = 0
    box = _round(grid, points, reach)
    painted = np.zeros([part.stop - part.start for part in box], dtype=bool)
    for ends in pairwise(points) if len(points) > 1 else [(points[0], points[0])]:
        near = _round(grid, np.array(ends), reach)
        if is_empty(near):
            continue  # outside the grid
        painted[within(near, box)] |= _near(grid, near, ends, radius_mm)
    own = grid.voxel_of(points)[grid.contains(points)] - [part.start for part in box]
    painted[tuple(own.T)] = True
    if image is not None:
        part = np.asarray(image)[box]
        painted &= (part >= intensities[0]) & (part <= intensities[1])
    return _painted(mask, box, painted, add)


def lasso(mask: ArrayLike, grid: Grid, polygon: ArrayLike, axis: int, *, add: bool = True, slices: int = 1) -> Edit:
    """Fill (`add`) or clear the voxels of one slice whose centre lies inside the closed `polygon` (n, 3).

    The slice is perpendicular to `axis` of the array; of several `slices` it is the middle one. Where the outline
    crosses itself, what it encloses twice is outside (even-odd rule). Raises PromptError for fewer than three points,
    or points in several slices.
    """
    points = _points(polygon)
    if len(points) < 3:
        raise PromptError(f"a lasso of {len(points)} points", "three or more", "draw round the region")
    points[:, axis] = _only_slice(points, axis)
    low, high = np.ceil(points.min(0)), np.floor(points.max(0))
    low[axis] -= (slices - 1) // 2
    high[axis] += slices // 2
    box = _box_in(grid, low, high)
    u, v = (a for a in range(3) if a != axis)
    rows, columns = np.ogrid[box[u], box[v]]
    inside = np.zeros((rows.size, columns.size), dtype=bool)
    # A ray from each centre along u crosses the outline an odd number of times if the centre lies inside.
    for (u0, v0), (u1, v1) in zip(points[:, [u, v]], np.roll(points[:, [u, v]], -1, axis=0), strict=True):
        if v0 == v1:
            continue
        crosses = (columns >= min(v0, v1)) & (columns < max(v0, v1))
        inside ^= crosses & (rows < u0 + (columns - v0) * (u1 - u0) / (v1 - v0))
    planes = np.expand_dims(inside, axis)
    return _painted(mask, box, np.broadcast_to(planes, [part.stop - part.start for part in box]), add)


def fill_holes(mask: ArrayLike, grid: Grid, axis: int | None = None) -> Edit:
    """Fill the background that the object encloses: in 3D, or with `axis` in each slice perpendicular to it.

    Background is connected through faces, or edges in a slice; what reaches the border of the object's box is no hole.
    """
    box = bounding_box(np.asarray(mask))
    part = np.asarray(mask)[box] != 0
    structure = ndimage.generate_binary_structure(3, 1)
    if axis is not None:
        structure = structure & _plane_of(axis)
    return Edit(box, part, np.asarray(ndimage.binary_fill_holes(part, structure)))


def smooth(mask: ArrayLike, grid: Grid, sigma_mm: float) -> Edit:
    """Smooth the object with a Gaussian of `sigma_mm`; it keeps its number of voxels, and thus its volume.

    The Gaussian runs along the axes of the array; beyond the scan's border the object continues as it is there. Raises
    PromptError for a sigma that is not positive.
    """
    if not (np.isfinite(sigma_mm) and sigma_mm > 0):
        raise PromptError(f"smoothing by {sigma_mm:g} mm", "more than 0 mm", "choose a larger value")
    sigma = sigma_mm / grid.spacing_mm
    bounds = bounding_box(np.asarray(mask))
    margin = np.ceil(SMOOTHING_REACH * sigma)
    box = _box_in(grid, [p.start for p in bounds] - margin, [p.stop - 1 for p in bounds] + margin)
    part = np.asarray(mask)[box] != 0
    count = int(np.count_nonzero(part))
    if not count:
        return Edit(box, part, part)
    blurred = ndimage.gaussian_filter(part.astype(np.float32), sigma, mode="nearest", truncate=SMOOTHING_REACH)
    threshold = np.partition(blurred, -count, axis=None)[-count]
    after = blurred > threshold
    # Of the voxels at the threshold, those that belonged to the object come first.
    level = blurred == threshold
    candidates = np.concatenate([np.flatnonzero(level & part), np.flatnonzero(level & ~part)])
    after.flat[candidates[: count - np.count_nonzero(after)]] = True
    return Edit(box, part, after)


def keep_component(mask: ArrayLike, grid: Grid, index: ArrayLike) -> Edit:
    """Keep the component (voxels connected through faces) at a voxel, and clear the others.

    Raises PromptError if the voxel does not belong to the object.
    """
    box, part, component = _component(mask, grid, index)
    return Edit(box, part, component)


def remove_component(mask: ArrayLike, grid: Grid, index: ArrayLike) -> Edit:
    """Clear the component (voxels connected through faces) at a voxel, and keep the others.

    Raises PromptError if the voxel does not belong to the object.
    """
    box, part, component = _component(mask, grid, index)
    return Edit(box, part, part & ~component)


def interpolate_slices(mask: ArrayLike, grid: Grid, axis: int) -> Edit:
    """Fill the empty slices, perpendicular to `axis`, between those in which the object was drawn.

    Shape-based interpolation (Raya and Udupa 1990): the signed distances in mm to the outlines of the two drawn slices
    are averaged, weighted by how near each is, and voxels where the result is positive belong to the object. If each
    outline is in one piece, their centroids are aligned first, so that an oblique vessel stays whole. Slices that hold
    anything are left as they are.
    """
    box = bounding_box(np.asarray(mask))
    part = np.asarray(mask)[box] != 0
    after = part.copy()
    planes, filled = np.moveaxis(part, axis, 0), np.moveaxis(after, axis, 0)  # views
    sampling = [mm for a, mm in enumerate(grid.spacing_mm) if a != axis]
    drawn = np.flatnonzero(planes.any(axis=(1, 2))).tolist()
    for first, last in pairwise(drawn):
        if last - first > 1:
            filled[first + 1 : last] = _between(planes[first], planes[last], last - first - 1, sampling)
    return Edit(box, part, after)


# Helpers


def _between(first: Mask, last: Mask, count: int, sampling_mm: Sequence[float]) -> Mask:
    """(count, rows, columns) slices evenly spaced between two."""
    one_piece = all(ndimage.label(plane)[1] == 1 for plane in (first, last))  # type: ignore[misc]
    way = np.subtract(ndimage.center_of_mass(last), ndimage.center_of_mass(first)) if one_piece else np.zeros(2)
    margin = int(np.ceil(np.abs(way).max())) + 1  # the outlines close outside the box, wherever they are shifted
    ends = [_signed_distance(np.pad(plane, margin), sampling_mm) for plane in (first, last)]
    out = np.zeros((count, *first.shape), dtype=bool)
    for n in range(count):
        t = (n + 1) / (count + 1)
        moved = [_moved(distance, shift) for distance, shift in zip(ends, (t * way, (t - 1) * way), strict=True)]
        mixed = (1 - t) * moved[0] + t * moved[1]
        out[n] = mixed[margin:-margin, margin:-margin] > 0
    return out


def _moved(distance: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    return ndimage.shift(distance, shift, order=1, mode="nearest") if shift.any() else distance


def _signed_distance(plane: Mask, sampling_mm: Sequence[float]) -> NDArray[np.float64]:
    """Millimetres from each pixel's centre to the nearest one on the other side of the outline; negative outside."""
    inside, outside = (np.asarray(ndimage.distance_transform_edt(side, sampling_mm)) for side in (plane, ~plane))
    return inside - outside


def _round(grid: Grid, points: NDArray[np.float64], reach: NDArray[np.float64]) -> Slices:
    """The box of the voxels that hold points (n, 3), and of those whose centre is at most `reach` voxels away."""
    return _box_in(grid, np.floor(points.min(0) - reach + 0.5), np.ceil(points.max(0) + reach - 0.5))


def _near(grid: Grid, box: Slices, ends: tuple[NDArray, NDArray], radius_mm: float) -> Mask:
    """The voxels of a box whose centre lies within `radius_mm` of the straight line between two indices."""
    start, end = grid.index_to_world(np.array(ends))
    way = end - start
    length = float(way @ way)
    near = np.zeros([p.stop - p.start for p in box], dtype=bool)
    for n, i in enumerate(range(box[0].start, box[0].stop)):  # a slice at a time: coordinates take 24 bytes a voxel
        centres = np.stack(np.meshgrid(i, *(np.arange(p.start, p.stop) for p in box[1:]), indexing="ij"), -1)[0]
        away = grid.index_to_world(centres) - start
        along = (away @ way / length).clip(0, 1) if length else np.zeros(away.shape[:2])
        near[n] = np.linalg.norm(away - along[..., None] * way, axis=-1) <= radius_mm * (1 + ROUNDING)
    return near


def _component(mask: ArrayLike, grid: Grid, index: ArrayLike) -> tuple[Slices, Mask, Mask]:
    """The box of the object, the object in it, and its component at a voxel."""
    voxel = tuple(int(v) for v in grid.voxel_of(index))
    if not grid.contains(index) or not np.asarray(mask)[voxel]:
        given = f"voxel {', '.join(map(str, voxel))}, which is not in the mask"
        raise PromptError(given, "a voxel of the object", "click in the part that is meant")
    box = bounding_box(np.asarray(mask))
    part = np.asarray(mask)[box] != 0
    labels, _ = ndimage.label(part)  # type: ignore[misc]
    return box, part, labels == labels[tuple(v - p.start for v, p in zip(voxel, box, strict=True))]


def _points(points: ArrayLike) -> NDArray[np.float64]:
    """A copy of the points as (n, 3); raises PromptError for anything else."""
    out = np.array(points, dtype=np.float64, ndmin=2)
    if out.ndim != 2 or out.shape[1] != 3 or not len(out) or not np.isfinite(out).all():
        given = f"points of shape {out.shape}"
        raise PromptError(given, "one or more finite voxel indices (i, j, k)", "check what is sent")
    return out


def _only_slice(points: NDArray[np.float64], axis: int) -> int:
    """The slice perpendicular to an axis in which all points lie; raises PromptError for several."""
    slices = np.unique(np.floor(points[:, axis] + 0.5).astype(int))
    if len(slices) > 1:
        given = f"a stroke through slices {slices[0]} to {slices[-1]} of axis {axis}"
        raise PromptError(given, "points in one slice", "draw in one plane, or use the 3D brush")
    return int(slices[0])


def _box_in(grid: Grid, low: ArrayLike, high: ArrayLike) -> Slices:
    """The box from voxel `low` to voxel `high`, both included, clipped to the grid; it may hold no voxels."""
    start = np.clip(np.asarray(low, dtype=int), 0, grid.shape)
    stop = np.clip(np.asarray(high, dtype=int) + 1, start, grid.shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return i, j, k


def _plane_of(axis: int) -> Mask:
    """(3, 3, 3) the middle slice perpendicular to an axis."""
    plane = np.zeros((3, 3, 3), dtype=bool)
    plane[tuple(1 if a == axis else slice(None) for a in range(3))] = True
    return plane


def _painted(mask: ArrayLike, box: Slices, painted: Mask, add: bool) -> Edit:
    part = np.asarray(mask)[box] != 0
    return Edit(box, part, part | painted if add else part & ~painted)


def _pasted(mask: ArrayLike, box: Slices, values: Mask) -> Mask:
    out = np.asarray(mask) != 0  # a new array
    out[box] = values
    return out

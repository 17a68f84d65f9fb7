"""Boxes of voxels as three slices: their intersection, their hull, and the box of a mask. Starts may be negative."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from voxsam.geometry import Grid
from voxsam.preprocess import Slices
from voxsam.volume import Volume

NOWHERE: Slices = (slice(0, 0), slice(0, 0), slice(0, 0))


def whole(grid: Grid) -> Slices:
    """The box of all voxels of a grid."""
    i, j, k = (slice(0, n) for n in grid.shape)
    return i, j, k


def is_empty(box: Slices) -> bool:
    """Whether a box holds no voxels."""
    return any(part.stop <= part.start for part in box)


def voxels(box: Slices) -> int:
    """Number of voxels in a box."""
    return math.prod(max(0, part.stop - part.start) for part in box)


def bounding_box(mask: NDArray) -> Slices:
    """The smallest box that holds every non-zero voxel of `mask` (i, j, k); NOWHERE if there are none."""
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(lines[0]):
        return NOWHERE
    i, j, k = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    return i, j, k


def intersection(a: Slices, b: Slices) -> Slices:
    """The voxels that two boxes share; NOWHERE if there are none."""
    shared = [slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True)]
    i, j, k = shared
    return NOWHERE if is_empty((i, j, k)) else (i, j, k)


def hull(boxes: Iterable[Slices]) -> Slices:
    """The smallest box that holds all of `boxes`, ignoring empty ones; NOWHERE if none is left."""
    parts = list(zip(*(box for box in boxes if not is_empty(box)), strict=True))
    if not parts:
        return NOWHERE
    i, j, k = (slice(min(p.start for p in along), max(p.stop for p in along)) for along in parts)
    return i, j, k


def joined(boxes: Iterable[Slices]) -> list[Slices]:
    """The boxes, any two merged into their hull where it has no more voxels than both together."""
    waiting, done = list(boxes), []
    while waiting:
        box = waiting.pop()
        for others in (waiting, done):
            partner = next((o for o in others if voxels(hull((box, o))) <= voxels(box) + voxels(o)), None)
            if partner is not None:
                others.remove(partner)
                waiting.append(hull((box, partner)))
                break
        else:
            done.append(box)
    return done


def grown(box: Slices, margin: int) -> Slices:
    """The box grown by `margin` voxels on every side."""
    i, j, k = (slice(part.start - margin, part.stop + margin) for part in box)
    return i, j, k


def within(box: Slices, outer: Slices) -> Slices:
    """The box relative to the first voxel of `outer`, which holds it: where it lies in an array of `outer` alone."""
    if is_empty(box):
        return NOWHERE
    i, j, k = (slice(p.start - o.start, p.stop - o.start) for p, o in zip(box, outer, strict=True))
    return i, j, k


def crop_to_objects(mask: Volume) -> Volume:
    """The mask cropped to its non-zero voxels; one voxel of background if it is empty.

    Most of a scan is background: work on the part costs as much as the objects, not as the scan.
    """
    box = bounding_box(mask.array)
    if is_empty(box):
        box = (slice(0, 1), slice(0, 1), slice(0, 1))
    part = mask.array[box]
    return Volume(part, mask.grid.crop([along.start for along in box], part.shape), "SEG")


def labels_of(mask: Volume) -> list[int]:
    """The labels of a mask's objects, ascending, without the background 0."""
    return [int(label) for label in np.unique(mask.array) if label]

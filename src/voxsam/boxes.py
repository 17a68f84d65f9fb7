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
    """Whether a box has no voxel."""
    return any(part.stop <= part.start for part in box)


def voxels(box: Slices) -> int:
    """How many voxels a box has."""
    return math.prod(max(0, part.stop - part.start) for part in box)


def bounding_box(mask: NDArray) -> Slices:
    """The smallest box that holds every voxel of `mask` (i, j, k) that is not zero; NOWHERE if there is none."""
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(lines[0]):
        return NOWHERE
    i, j, k = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    return i, j, k


def intersection(a: Slices, b: Slices) -> Slices:
    """The voxels that two boxes share; NOWHERE if there is none."""
    shared = [slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True)]
    i, j, k = shared
    return NOWHERE if is_empty((i, j, k)) else (i, j, k)


def hull(boxes: Iterable[Slices]) -> Slices:
    """The smallest box that holds all of `boxes`; empty ones do not count; NOWHERE if none is left."""
    parts = list(zip(*(box for box in boxes if not is_empty(box)), strict=True))
    if not parts:
        return NOWHERE
    i, j, k = (slice(min(p.start for p in along), max(p.stop for p in along)) for along in parts)
    return i, j, k


def joined(boxes: Iterable[Slices]) -> list[Slices]:
    """The boxes, two of them made one wherever that takes no more voxels than both."""
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
    """The box with `margin` voxels more on every side."""
    i, j, k = (slice(part.start - margin, part.stop + margin) for part in box)
    return i, j, k


def within(box: Slices, outer: Slices) -> Slices:
    """The box counted from the first voxel of `outer`, which holds it: where it lies in an array of that box alone."""
    if is_empty(box):
        return NOWHERE
    i, j, k = (slice(p.start - o.start, p.stop - o.start) for p, o in zip(box, outer, strict=True))
    return i, j, k


def crop_to_objects(mask: Volume) -> Volume:
    """The part of a mask that holds all its voxels that are not zero; one voxel of background if it is empty.

    Most of a scan is background: what is asked of the part costs as much as the objects, not as the scan.
    """
    box = bounding_box(mask.array)
    if is_empty(box):
        box = (slice(0, 1), slice(0, 1), slice(0, 1))
    part = mask.array[box]
    return Volume(part, mask.grid.crop([along.start for along in box], part.shape), "SEG")


def labels_of(mask: Volume) -> list[int]:
    """The labels of a mask's objects, ascending, without the background 0."""
    return [int(label) for label in np.unique(mask.array) if label]

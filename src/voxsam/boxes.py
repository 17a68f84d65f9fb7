"""Boxes of voxels as three slices: what two of them share, what holds them all, what a mask's objects lie in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from voxsam.preprocess import Slices
from voxsam.volume import Volume

NOWHERE: Slices = (slice(0, 0), slice(0, 0), slice(0, 0))


def is_empty(box: Slices) -> bool:
    """Whether a box has no voxel."""
    return any(part.stop <= part.start for part in box)


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
    spans = [np.flatnonzero(mask.array.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    start = [int(span[0]) if len(span) else 0 for span in spans]
    stop = [int(span[-1]) + 1 if len(span) else 1 for span in spans]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    return Volume(mask.array[box], mask.grid.crop(start, [b - a for a, b in zip(start, stop, strict=True)]), "SEG")


def labels_of(mask: Volume) -> list[int]:
    """The labels of a mask's objects, ascending, without the background 0."""
    return [int(label) for label in np.unique(mask.array) if label]

"""Boxes of voxels as three slices: what two of them share, what holds them all, where one lies in another."""

from __future__ import annotations

from collections.abc import Iterable

from voxsam.preprocess import Slices

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

"""Scans turned to the axes that another system was made for, voxel by voxel, and its masks turned back."""

from __future__ import annotations

from dataclasses import replace

from voxsam.geometry import Grid
from voxsam.volume import Volume


def turned(volume: Volume, axes: str) -> Volume:
    """The same voxels, permuted and flipped so that the indices grow into the directions of `axes`, e.g. "SPL"."""
    permutation, flips = volume.grid.permutation_to(axes)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return replace(volume, array=volume.array.transpose(permutation)[steps], grid=volume.grid.reorient(axes))


def turned_back(mask: Volume, grid: Grid) -> Volume:
    """A mask on a grid that was turned from `grid`, on `grid` itself."""
    return Volume(turned(mask, grid.axes).array, grid, "SEG")

"""Interpolation between grids: the only module that reads values between voxels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.geometry import INDEX_DECIMALS, Grid
from voxsam.volume import Volume

MAP_DECIMALS = 12  # of a matrix between grids: over 1000 voxels it is still exact to INDEX_DECIMALS
SKEW_TOLERANCE = 1e-4  # voxels per voxel: below it, the axes of two grids count as parallel
BLOCK = 32  # positions along an axis that are interpolated together

Method = Literal["linear", "area", "nearest"]


def index_map(target: Grid, source: Grid) -> NDArray[np.float64]:
    """(4, 4) matrix that maps an index of `target` to the index of `source` at the same point."""
    return np.round(np.linalg.inv(source.affine) @ target.affine, MAP_DECIMALS) + 0.0


def parallel_axes(target: Grid, source: Grid) -> NDArray[np.intp] | None:
    """(3,) for each axis of `target` the parallel axis of `source`; None if the grids are oblique to each other."""
    linear = index_map(target, source)[:3, :3]
    partner = np.abs(linear).argmax(axis=0)
    rest = linear.copy()
    rest[partner, range(3)] = 0
    parallel = sorted(partner) == [0, 1, 2] and np.abs(rest).max() <= SKEW_TOLERANCE
    return partner if parallel else None


def resample(volume: Volume, target: Grid, method: Method = "linear") -> NDArray[np.float32]:
    """The volume's values at the voxels of `target`, (target.shape) float32; outside, the nearest edge voxel.

    "linear" reads the two nearest voxels along each axis. "area" also averages over the target's spacing where that is
    coarser (a triangle of that width), which keeps thin structures and removes noise. Grids with parallel axes, even
    permuted or flipped, are interpolated axis by axis, and only the part of the source that the target covers is read:
    the cost depends on the target, not on the scan. For oblique grids "area" is the same as "linear".
    """
    matrix = index_map(target, volume.grid)
    partner = parallel_axes(target, volume.grid)
    if partner is not None:
        return _along_axes(volume.array, matrix, partner, target.shape, method)
    out = np.empty(target.shape, dtype=np.float32)
    order = 0 if method == "nearest" else 1
    source = volume.array.astype(np.float32, copy=False)
    scipy.ndimage.affine_transform(source, matrix[:3, :3], matrix[:3, 3], output=out, order=order, mode="nearest")  # type: ignore[arg-type]
    return out


def _along_axes(
    array: NDArray, matrix: NDArray[np.float64], partner: NDArray[np.intp], shape: tuple[int, ...], method: Method
) -> NDArray[np.float32]:
    taps = [(np.empty(0, dtype=int), np.empty(0, dtype=np.float32))] * 3  # per source axis
    for axis, source_axis in enumerate(partner):
        step = matrix[source_axis, axis]
        at = np.round(step * np.arange(shape[axis]) + matrix[source_axis, 3], INDEX_DECIMALS)
        at = np.clip(at, 0, array.shape[source_axis] - 1)
        taps[source_axis] = _taps(at, array.shape[source_axis], abs(step), method)
    starts = [int(index.min()) for index, _ in taps]
    covered = tuple(slice(s, int(index.max()) + 1) for s, (index, _) in zip(starts, taps, strict=True))
    part = array[covered].transpose(partner)
    # Shrinking axes first keeps the intermediate arrays small.
    for axis in sorted(range(3), key=lambda a: shape[a] / part.shape[a]):
        index, weight = taps[partner[axis]]
        part = _along_one(part, axis, index - starts[partner[axis]], weight)
    values = np.ascontiguousarray(part, dtype=np.float32)
    return values if values.base is None else values.copy()  # never a view of the scan


def _taps(
    at: NDArray[np.float64], length: int, step: float, method: Method
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """(n, taps) the voxels along an axis that each of the n positions `at` reads, and their weights."""
    if method == "nearest":
        return np.floor(at + 0.5).astype(int)[:, None], np.ones((len(at), 1), np.float32)
    reach = max(1.0, step) if method == "area" else 1.0
    first = np.floor(at - reach).astype(int) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * reach)))
    weight = np.maximum(0, 1 - np.abs(index - at[:, None]) / reach)
    weight /= weight.sum(1, keepdims=True)
    used = weight.any(axis=0)
    return index[:, used].clip(0, length - 1), weight[:, used].astype(np.float32)


def _along_one(part: NDArray, axis: int, index: NDArray[np.intp], weight: NDArray[np.float32]) -> NDArray:
    """Interpolate along one axis of an array of any type and layout, in float32.

    Where each position reads one voxel the type is kept, and neighbouring voxels come as a view. Otherwise BLOCK
    positions at a time are the product of a small dense matrix with the voxels that they read: no more of the source
    than that is float32 at any time.
    """
    if weight.shape[1] == 1:
        first, last = int(index[0, 0]), int(index[-1, 0])
        neighbours = np.array_equal(index[:, 0], np.arange(first, last + 1))
        return part[_along(axis, slice(first, last + 1))] if neighbours else part.take(index[:, 0], axis)
    out = np.empty([len(index) if a == axis else n for a, n in enumerate(part.shape)], dtype=np.float32)
    for start in range(0, len(index), BLOCK):
        block = slice(start, start + BLOCK)
        low, high = int(index[block].min()), int(index[block].max()) + 1
        matrix = np.zeros((len(index[block]), high - low), dtype=np.float32)
        np.add.at(matrix, (np.arange(len(matrix))[:, None], index[block] - low), weight[block])
        read = np.ascontiguousarray(part[_along(axis, slice(low, high))], dtype=np.float32)
        made = out[_along(axis, block)]
        if axis == 2:  # plane by plane, as suits BLAS
            np.matmul(read, matrix.T, out=made)
        else:
            np.matmul(matrix, np.moveaxis(read, axis, 1), out=np.moveaxis(made, axis, 1))
    return out


def _along(axis: int, box: slice) -> tuple[slice, ...]:
    """Slices of an array: `box` on one axis, everything on the others."""
    return tuple(box if a == axis else slice(None) for a in range(3))

"""A tumour label on another grid, without losing lesions that are thinner than its voxels."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.geometry import Grid
from voxsam.resample import Method, resample
from voxsam.volume import Volume

ANISOTROPIC = 8.0  # largest / smallest spacing above which slices are resampled in plane first (docs/released.md)
PLANES = 64  # of a mask whose voxels are listed at once
TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a corner belong to one lesion


def deepest_points(mask: NDArray[np.bool_], spacing_mm: NDArray) -> NDArray[np.int64]:
    """(lesions, 3) for each connected lesion the index of its voxel farthest from the border.

    Of several equally deep ones, that nearest to their centre: the middle of a line, not its end.
    """
    if not mask.any():
        return np.empty((0, 3), dtype=np.int64)
    box = scipy.ndimage.find_objects(mask.astype(np.uint8))[0]
    assert box is not None
    numbered, _ = scipy.ndimage.label(mask[box], TOUCHING)  # type: ignore[misc]
    points = []
    for number, part in enumerate(scipy.ndimage.find_objects(numbered), start=1):
        lesion = np.pad(numbered[part] == number, 1)
        depth = np.asarray(scipy.ndimage.distance_transform_edt(lesion, sampling=spacing_mm))
        deep = np.argwhere(depth >= depth.max() - 1e-6)
        nearest = np.linalg.norm((deep - deep.mean(0)) * spacing_mm, axis=1).argmin()
        points.append(deep[nearest] - 1 + [a.start + b.start for a, b in zip(part, box, strict=True)])
    return np.array(points, dtype=np.int64)


def resample_label(
    mask: Volume, target: Grid, points: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The mask (0/1) on `target`: where more than half is tumour, what is thinner than its voxels, and under `points`.

    `points` (n, 3) are indices of `mask`; also (n, 3) the voxels of `target` under them.
    """
    label, touched = resample_scan(mask, target, "area") > 0.5, _touched(mask, target)
    for box in scipy.ndimage.find_objects(touched.astype(np.uint8)):  # one: most of a scan is background
        label[box] |= _thin_parts(label[box], touched[box])
    at = _voxels_under(mask.grid, target, points)
    label[tuple(at.T)] = True
    return label.astype(np.uint8), at


def _thin_parts(label: NDArray[np.bool_], touched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels in which tumour lies, but which averaging lost: sheets, rods and bridges, not the rims of the rest.

    A rim is at most a voxel wide: what lies further from the label is thin, and so is what joins it to the label.
    """
    apart = touched & ~np.asarray(scipy.ndimage.binary_dilation(label, TOUCHING), dtype=bool)
    return touched & np.asarray(scipy.ndimage.binary_dilation(apart, TOUCHING), dtype=bool) if apart.any() else apart


def _touched(mask: Volume, target: Grid) -> NDArray[np.bool_]:
    """The voxels of `target` that hold the centre of a voxel of the mask."""
    touched = np.zeros(target.shape, dtype=bool)
    for start in range(0, mask.grid.shape[0], PLANES):
        index = np.argwhere(mask.array[start : start + PLANES]) + [start, 0, 0]
        touched[tuple(_voxels_under(mask.grid, target, index).T)] = True
    return touched


def _voxels_under(grid: Grid, target: Grid, index: NDArray[np.int64]) -> NDArray[np.int32]:
    """(n, 3) the voxels of `target` in which the voxels (n, 3) of `grid` have their centres."""
    at = np.floor(grid.index_in(target, index) + 0.5).astype(np.int32)
    return at.clip(0, np.array(target.shape, dtype=np.int32) - 1)


def resample_scan(volume: Volume, target: Grid, method: Method) -> NDArray[np.float32]:
    """`voxsam.resample.resample`, for extremely anisotropic scans in two steps: slices in plane, then between them.

    `target` has the axes of the volume, in any order.
    """
    spacing = volume.grid.spacing_mm
    if spacing.max() <= ANISOTROPIC * spacing.min():
        return resample(volume, target, method)
    turned = volume.grid.reorient(target.axes)
    between = int(turned.spacing_mm.argmax())
    flat_spacing, flat_shape = target.spacing_mm.copy(), list(target.shape)
    flat_spacing[between], flat_shape[between] = turned.spacing_mm[between], turned.shape[between]
    in_plane = turned.respace(flat_spacing.tolist()).crop((0, 0, 0), flat_shape)
    slices = resample(volume, in_plane, method)
    return resample(Volume(slices, in_plane), target, method)

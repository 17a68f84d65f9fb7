"""Surfaces of lesions, bodies and bones as triangles in RAS+ mm (marching cubes)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from voxsam.boxes import crop_to_objects
from voxsam.geometry import Grid
from voxsam.resample import resample
from voxsam.volume import Volume

FINE_VOXELS = 56  # of an object's longest side
COARSE_VOXELS = 80  # of a whole scan's sides


@dataclass(frozen=True)
class Mesh:
    """Triangles with outward vertex normals, in RAS+ mm."""

    vertices_mm: NDArray[np.float64]  # (n, 3)
    faces: NDArray[np.int64]  # (m, 3)
    normals: NDArray[np.float64]  # (n, 3), of length 1


def object_mesh(mask: Volume, label: int) -> Mesh | None:
    """The surface of one label, on cubes of 1/FINE_VOXELS of its longest side or more; None if it has no voxels."""
    part = crop_to_objects(mask.with_array(mask.array == label))
    if not part.array.any():
        return None
    longest = float((part.grid.shape * part.grid.spacing_mm).max())
    part = Volume(np.pad(part.array, 2), part.grid.pad((2, 2, 2), (2, 2, 2)))
    step = max(longest / FINE_VOXELS, float(mask.grid.spacing_mm.min()) / 2)
    cubes = part.grid.respace([step] * 3)
    values = np.pad(resample(part, cubes, "linear"), 2)
    smooth = ndimage.gaussian_filter(values, 0.5 * mask.grid.spacing_mm.max() / step)
    # Blurring may sink a thin object below one half: follow it down, so that it is not lost.
    return _mesh(smooth, min(0.5, 0.5 * float(smooth.max())), cubes, offset=-2.0)


def tissue_mesh(scan: Volume, threshold: float, blur: float, largest_only: bool = False) -> Mesh | None:
    """The coarse surface of what is brighter than `threshold`, closed at the scan's borders; None if nothing is."""
    stride = tuple(max(1, int(np.ceil(n / COARSE_VOXELS))) for n in scan.array.shape)
    coarse = scan.array[tuple(slice(None, None, s) for s in stride)].astype(np.float32)
    inside = ndimage.gaussian_filter(coarse, blur) > threshold
    if largest_only and inside.any():
        parts = np.asarray(ndimage.label(ndimage.binary_opening(inside))[0])  # type: ignore[index]
        inside = parts == 1 + np.argmax(np.bincount(parts.ravel(), minlength=2)[1:])
    if not inside.any():
        return None
    smooth = ndimage.gaussian_filter(np.pad(inside, 2).astype(np.float32), 0.7)
    return _mesh(smooth, min(0.5, 0.5 * float(smooth.max())), scan.grid, offset=-2.0, stride=np.array(stride))


def _mesh(values: NDArray, level: float, grid: Grid, offset: float, stride: NDArray | int = 1) -> Mesh:
    vertices, faces, _, _ = marching_cubes(values, level)
    points = grid.index_to_world((vertices + offset) * stride)
    corners = points[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if np.einsum("ij,ij->", corners[:, 0], across) < 0:  # a signed volume: a mirrored grid turns triangles inside out
        faces, across = faces[:, ::-1], -across
    normals = np.stack(
        [np.bincount(faces.ravel(), weights=np.repeat(across[:, axis], 3), minlength=len(points)) for axis in range(3)],
        axis=-1,
    )
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(points, faces.astype(np.int64), normals / np.maximum(lengths, 1e-12))

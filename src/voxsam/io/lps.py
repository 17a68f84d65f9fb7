"""Between LPS, the world of DICOM and ITK (x grows to the Left, y to Posterior), and the RAS+ world of a Grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxsam.geometry import Grid

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])


def grid_from_lps(shape: Sequence[int], steps_lps_mm: ArrayLike, origin_lps_mm: ArrayLike) -> Grid:
    """The Grid of (i, j, k) `shape`. Column a of `steps_lps_mm` (3, 3) is the step from voxel to voxel along axis a;
    `origin_lps_mm` (3,) is the centre of voxel (0, 0, 0). Raises GeometryError as Grid does."""
    affine = np.eye(4)
    affine[:3, :3] = _RAS_FROM_LPS @ np.asarray(steps_lps_mm, dtype=np.float64)
    affine[:3, 3] = _RAS_FROM_LPS @ np.asarray(origin_lps_mm, dtype=np.float64)
    return Grid(tuple(shape), affine)  # type: ignore[arg-type]


def lps_from_grid(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(3,) origin in LPS mm, (3,) spacing in mm, (3, 3) direction (unit columns, LPS), as ITK wants them."""
    direction = _RAS_FROM_LPS @ grid.affine[:3, :3] / grid.spacing_mm
    return _RAS_FROM_LPS @ grid.affine[:3, 3], grid.spacing_mm, direction


def flip_lps(points_mm: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) points in RAS+ mm as LPS, or in LPS as RAS+: the same flip."""
    return np.asarray(points_mm, dtype=np.float64) @ _RAS_FROM_LPS

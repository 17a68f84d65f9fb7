"""Axial, coronal and sagittal planes of a volume as a radiologist expects to see them, with their sizes in mm.

Every plane is a Grid of one slice whose first index runs to the viewer's right and whose second runs down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxsam.geometry import Grid
from voxsam.resample import resample
from voxsam.volume import Volume

# To the right, down, through the plane. Radiological: the patient's left is at the viewer's right.
PLANE_AXES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Plane:
    """One slice of a scan's grid, turned for display; coordinates on it are mm from its top left corner."""

    name: str
    grid: Grid  # (columns, rows, 1)

    @classmethod
    def through(cls, name: str, grid: Grid, index: ArrayLike, side_mm: float = np.inf) -> Plane:
        """The plane `name` of `grid` through `index`, cut to at most `side_mm` round it and to the grid."""
        turned = grid.reorient(PLANE_AXES[name])
        at = np.clip(np.rint(grid.index_in(turned, index)).astype(int), 0, np.array(turned.shape) - 1)
        start, shape = [0, 0, int(at[2])], [turned.shape[0], turned.shape[1], 1]
        for axis in (0, 1):
            length = int(min(np.ceil(side_mm / turned.spacing_mm[axis]), turned.shape[axis]))
            start[axis] = int(np.clip(at[axis] - length // 2, 0, turned.shape[axis] - length))
            shape[axis] = length
        return cls(name, turned.crop(start, shape))

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        width, height = (n * s for n, s in zip(self.grid.shape[:2], self.grid.spacing_mm[:2], strict=True))
        return float(width), float(height)

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """The patient's directions at the left, right, top and bottom edge."""
        right, down, _ = self.grid.axes
        return OPPOSITE[right], right, OPPOSITE[down], down

    def read(self, volume: Volume) -> NDArray[np.float32]:
        """(rows, columns) voxels of a volume that lies on the grid from which the plane was cut."""
        return resample(volume, self.grid, "nearest")[:, :, 0].T

    def place_mm(self, grid: Grid, index: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of (..., 3) indices of `grid`: (..., 2) mm to the right and down on the plane, and (...) mm off the plane."""
        at = (grid.index_in(self.grid, index) + [0.5, 0.5, 0]) * self.grid.spacing_mm
        return at[..., :2], at[..., 2]


def three_planes(grid: Grid, index: ArrayLike, side_mm: float = np.inf) -> list[Plane]:
    """Axial, coronal, sagittal through `index`."""
    return [Plane.through(name, grid, index, side_mm) for name in PLANE_AXES]

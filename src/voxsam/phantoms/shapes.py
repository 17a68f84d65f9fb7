"""Smooth shapes, noise and paint from which phantoms are made; every length is in millimetres.

Shapes are signed distances (mm, negative inside), so a border falls where it belongs within a voxel and the same shape
can be drawn on any spacing. All arrays are float32 of the frame's shape; x, y, z grow to Right, Anterior, Superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]  # float32 throughout
Place = tuple[Field, Field, Field]  # x, y and z in mm, to broadcast; warped coordinates make organic shapes
LATTICE_NODES = 32  # noise repeats after this many periods
SPLINE_SD = 0.479**1.5  # s.d. of white noise after cubic B-splines along three axes


@dataclass(frozen=True)
class Frame:
    """World coordinates (mm) of a box's voxels along its three axes, shaped to broadcast, and its spacing."""

    x: Field
    y: Field
    z: Field
    spacing_mm: tuple[float, float, float]

    @classmethod
    def around(cls, centre_mm: NDArray[np.float64], shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Frame:
        """The frame of `shape` voxels whose middle lies at `centre_mm`."""
        lines = [(np.arange(n) - (n - 1) / 2) * s + c for n, s, c in zip(shape, spacing_mm, centre_mm, strict=True)]
        x, y, z = (line.astype(np.float32) for line in lines)
        return cls(x[:, None, None], y[None, :, None], z[None, None, :], tuple(spacing_mm))  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.size, self.y.size, self.z.size

    @property
    def place(self) -> Place:
        return self.x, self.y, self.z

    @property
    def edge_mm(self) -> float:
        """Width of a border blurred by partial volume: about a voxel."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))


def lattice_noise(rng: np.random.Generator, frame: Frame, period_mm: float) -> Field:
    """Smooth noise of mean 0 and s.d. 1 with bumps of about `period_mm`, the same in mm at every spacing."""
    model_grid = rng.standard_normal((LATTICE_NODES,) * 3, dtype=np.float32)
    along_x, along_y, along_z = (_spline_weights(line.ravel() / period_mm) for line in (frame.x, frame.y, frame.z))
    noise = np.tensordot(along_x, model_grid, 1)
    return np.matmul(along_y, noise) @ along_z.T / np.float32(SPLINE_SD)


def _spline_weights(position: Field) -> Field:
    """(n,) positions in lattice units -> (n, nodes) weights of the periodic uniform cubic B-spline."""
    base = np.floor(position).astype(int)
    t = position - base
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    matrix = np.zeros((position.size, LATTICE_NODES), np.float32)
    for step, weight in enumerate(weights):
        matrix[np.arange(position.size), (base + step - 1) % LATTICE_NODES] += weight / 6
    return matrix


def ellipsoid(place: Place, centre_mm: NDArray, radii_mm: NDArray, turn: NDArray | None = None) -> Field:
    """Distance to an ellipsoid, first order; `turn` (3, 3) holds its axes as rows (default: the world's)."""
    x, y, z = (c - np.float32(m) for c, m in zip(place, centre_mm, strict=True))
    near, steep = np.float32(0), np.float32(0)
    for axis, radius in zip(np.eye(3) if turn is None else turn, radii_mm, strict=True):
        along = (
            (x * np.float32(axis[0]) + y * np.float32(axis[1]) + z * np.float32(axis[2])) / np.float32(radius)
        ) ** 2
        near, steep = near + along, steep + along / np.float32(radius**2)
    near, steep = np.sqrt(near), np.sqrt(steep)
    # At the very centre both vanish; there the distance is that of the shortest radius.
    return np.where(steep > 1e-6, near * (near - 1) / np.maximum(steep, 1e-6), -np.float32(np.min(radii_mm)))


def superellipse(x: Field, y: Field, half_x: Field | float, half_y: Field | float, power: float) -> Field:
    """Distance, first order, to the cylinder |x / half_x|^power + |y / half_y|^power = 1."""
    rho = (np.abs(x / half_x) ** np.float32(power) + np.abs(y / half_y) ** np.float32(power)) ** np.float32(1 / power)
    reach = np.sqrt(x * x + y * y)
    return np.where(rho > 1e-3, reach * (1 - 1 / np.maximum(rho, 1e-3)), -np.minimum(half_x, half_y)).astype(np.float32)


def tube(x: Field, y: Field, centre_x: Field | float, centre_y: Field | float, radius: Field | float) -> Field:
    """Distance to a tube that runs along z; its centre may be a (1, 1, z) line."""
    return np.sqrt((x - centre_x) ** 2 + (y - centre_y) ** 2) - np.float32(radius)


def smooth_union(a: Field, b: Field, blend_mm: float) -> Field:
    """The union of two distances with a fillet of about `blend_mm` (polynomial smooth minimum)."""
    overlap = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0) / np.float32(blend_mm)
    return np.minimum(a, b) - overlap * overlap * np.float32(blend_mm / 4)


def coverage(distance: Field, width_mm: float) -> Field:
    """Share 0 to 1 of each voxel that lies inside: a linear step of `width_mm` across the border."""
    return np.clip(np.float32(0.5) - distance / np.float32(width_mm), 0, 1)


def paint(image: Field, distance: Field, value: Field | float, width_mm: float) -> None:
    """Mix `value` (HU) into `image`, in place, where `distance` is inside."""
    inside = coverage(distance, width_mm)
    image += inside * (value - image)

"""Grid: where the voxels of an array lie in the patient. The only module that computes affines.

An index (i, j, k) counts the voxels of an array; (0, 0, 0) is the centre of the first voxel. World coordinates are
RAS+ millimetres, as in NIfTI: x increases towards the patient's Right, y towards Anterior, z towards Superior. A Grid
is immutable: crop, pad, respace and reorient return a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxsam.errors import GeometryError

WHOLE_VOXEL_TOLERANCE = 1e-3  # float32 headers: a length within a thousandth of a whole voxel counts as whole
GRID_TOLERANCE_MM = 1e-2  # two grids are the same when no corner differs by more
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
INDEX_DECIMALS = 9  # of an index: 1000 times coarser than the last bits of a double, which differ between processors


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape (i, j, k) and affine (4, 4), float64, index -> RAS+ millimetres; both are read-only.

    Raises GeometryError for a shape without voxels, or an affine that is not finite or is singular.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64) + 0.0  # turns -0 into 0: equal grids must have equal hashes
        if len(shape) != 3 or min(shape) < 1:
            expected = "three axes with at least one voxel each"
            raise GeometryError(f"a grid of shape {shape}", expected, "check the file")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            given = "an affine with missing or infinite entries"
            raise GeometryError(given, "a finite 4 x 4 matrix", "repair the header")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0:
            given = f"a spacing of {_numbers(lengths)} mm"
            raise GeometryError(given, "positive spacing on each axis", "repair the header")
        if abs(_determinant(affine / [*lengths, 1])) < 1e-3:
            raise GeometryError("a singular affine (axes that coincide)", "three independent axes", "repair the header")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        origin_mm: Sequence[float] = (0, 0, 0),
        axes: str = "RAS",
    ) -> Grid:
        """An axis-aligned grid whose indices increase in the directions of `axes`, e.g. "LPS".

        The centre of voxel (0, 0, 0) is at `origin_mm`.
        """
        if np.shape(spacing_mm) != (3,):
            raise GeometryError(f"a spacing of {spacing_mm}", "three numbers, in mm", "give one for each axis")
        upright = np.eye(4) if axes == "RAS" else cls((1, 1, 1), np.eye(4)).reorient(axes).affine
        affine = upright @ np.diag([*spacing_mm, 1.0])
        affine[:3, 3] = origin_mm
        return cls(tuple(shape), affine)  # type: ignore[arg-type]

    def turned(self, axis: int, degrees: float) -> Grid:
        """The grid rotated about its own `axis` through its first voxel, as by a tilted gantry."""
        direction, angle = self.affine[:3, axis] / self.spacing_mm[axis], np.deg2rad(degrees)
        cross = np.cross(np.eye(3), direction)  # Rodrigues' formula
        affine = self.affine.copy()
        affine[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ affine[:3, :3]
        return Grid(self.shape, affine)

    @classmethod
    def from_lps(cls, shape: Sequence[int], steps_lps_mm: ArrayLike, origin_lps_mm: ArrayLike) -> Grid:
        """A grid from LPS coordinates, as in DICOM and ITK: x increases towards the Left, y towards Posterior.

        Column a of `steps_lps_mm` (3, 3) is the step between neighbouring voxels along axis a; `origin_lps_mm` (3,) is
        the centre of voxel (0, 0, 0).
        """
        affine = np.eye(4)
        affine[:3, :3] = _RAS_FROM_LPS @ np.asarray(steps_lps_mm, dtype=np.float64)
        affine[:3, 3] = flip_lps(origin_lps_mm)
        return cls(tuple(shape), affine)  # type: ignore[arg-type]

    def to_lps(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(3,) origin in LPS mm, (3,) spacing in mm, (3, 3) direction (unit columns, LPS), as ITK expects."""
        return flip_lps(self.affine[:3, 3]), self.spacing_mm, _RAS_FROM_LPS @ self.affine[:3, :3] / self.spacing_mm

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __repr__(self) -> str:
        size, spacing = " x ".join(map(str, self.shape)), _numbers(self.spacing_mm)
        return f"Grid({size} voxels, {spacing} mm, axes {self.axes})"

    # Properties

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """(3,) distance in mm between neighbouring voxel centres along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def axes(self) -> str:
        """Three letters of R/L, A/P, S/I: the direction in which each index increases (the nearest if oblique)."""
        return "".join(nib.orientations.aff2axcodes(self.affine))  # type: ignore[arg-type]

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return abs(_determinant(self.affine)) / 1000

    def close_to(self, other: Grid, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Whether both have the same shape and no corner coordinate differs by more than `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners_world_mm() - other.corners_world_mm()).max() <= tolerance_mm)

    def corners_world_mm(self) -> NDArray[np.float64]:
        """(8, 3) world coordinates of the outer corners of the outermost voxels."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        return self.index_to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(8, 3))

    # Index <-> world

    def index_to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) voxel indices -> (..., 3) RAS+ mm."""
        return _mapped(self.affine, index)

    def world_to_index(self, world_mm: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) RAS+ mm -> (..., 3) voxel indices, rounded so that floating-point errors do not show."""
        return np.round(_mapped(np.linalg.inv(self.affine), world_mm), INDEX_DECIMALS) + 0.0  # + 0.0: no -0

    def index_in(self, other: Grid, index: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) indices of this grid -> (..., 3) indices of `other`, rounded as in `world_to_index`."""
        return other.world_to_index(self.index_to_world(index))

    def contains(self, index: ArrayLike) -> NDArray[np.bool_]:
        """(...,) whether each of (..., 3) indices lies in a voxel of the grid (its outer faces included)."""
        index = np.asarray(index, dtype=np.float64)
        return np.all((index >= -0.5) & (index <= np.array(self.shape) - 0.5), axis=-1)

    def voxel_of(self, index: ArrayLike) -> NDArray[np.int_]:
        """(..., 3) the voxel that holds each of (..., 3) indices; on or beyond an outer face, the outermost voxel."""
        whole = np.floor(np.asarray(index, dtype=np.float64) + 0.5).astype(int)
        return whole.clip(0, np.array(self.shape) - 1)

    # New grids

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """The grid of `shape` voxels whose first voxel is this grid's index `start`; may reach outside (padding)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.index_to_world(np.asarray(start, dtype=np.float64))
        return Grid(tuple(shape), affine)  # type: ignore[arg-type]

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """The grid extended on each axis by `before` voxels at its start and `after` at its end."""
        shape = [b + n + a for b, n, a in zip(before, self.shape, after, strict=True)]
        return self.crop([-b for b in before], shape)

    def respace(self, spacing_mm: Sequence[float]) -> Grid:
        """The grid over the same box at another spacing; the first voxels of both share their outer corner.

        Each axis has floor(n * old / new) voxels, at least one, as in the released code (docs/released.md,
        "Intensities and spacing").
        """
        new = np.asarray(spacing_mm, dtype=np.float64)
        ratio = new / self.spacing_mm
        lengths = np.floor(np.array(self.shape) / ratio + WHOLE_VOXEL_TOLERANCE).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] *= ratio
        affine[:3, 3] = self.index_to_world(ratio / 2 - 0.5)
        return Grid(tuple(np.maximum(lengths, 1)), affine)  # type: ignore[arg-type]

    def reorient(self, axes: str) -> Grid:
        """The same voxels, permuted and flipped so that indices increase in the directions of `axes`, e.g. "SAR"."""
        permutation, flips = self.permutation_to(axes)
        affine = np.eye(4)
        index_map = np.zeros((3, 3))  # new index -> old index
        first = np.zeros(3)
        for new_axis, (old_axis, flip) in enumerate(zip(permutation, flips, strict=True)):
            index_map[old_axis, new_axis] = -1 if flip else 1
            first[old_axis] = self.shape[old_axis] - 1 if flip else 0
        affine[:3, :3] = self.affine[:3, :3] @ index_map
        affine[:3, 3] = self.index_to_world(first)
        return Grid(tuple(self.shape[a] for a in permutation), affine)  # type: ignore[arg-type]

    def mirrored(self) -> Grid:
        """The same voxels with the last index in the opposite direction, e.g. "SAL" for "SAR"."""
        affine = self.affine.copy()
        affine[:3, 2] *= -1
        affine[:3, 3] = self.index_to_world((0, 0, self.shape[2] - 1))
        return Grid(self.shape, affine)

    def permutation_to(self, axes: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """For each axis of the grid reoriented to `axes`: the axis of this grid it comes from, and whether it flips."""
        pairs = ("RL", "AP", "SI")
        wanted = [pair for want in axes for pair in pairs if want in pair]
        found = [next(a for a, have in enumerate(self.axes) if have in pair) for pair in wanted]
        if len(axes) != 3 or sorted(found) != [0, 1, 2]:
            raise GeometryError(f"axes {axes!r}", "one letter each of R/L, A/P, S/I", "write for example 'RAS'")
        flips = tuple(self.axes[a] != want for a, want in zip(found, axes, strict=True))
        return tuple(found), flips  # type: ignore[return-value]


def flip_lps(points_mm: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) points in mm converted from RAS+ to LPS, or from LPS to RAS+: the same flip."""
    return np.asarray(points_mm, dtype=np.float64) @ _RAS_FROM_LPS


def _mapped(affine: NDArray[np.floating], points: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) points mapped by a (4, 4) affine, without BLAS: its sums differ in the last bits between processors,
    and affines are written to files."""
    at = np.asarray(points, dtype=np.float64)
    x, y, z = at[..., :1], at[..., 1:2], at[..., 2:]
    return x * affine[:3, 0] + y * affine[:3, 1] + z * affine[:3, 2] + affine[:3, 3]


def _determinant(affine: NDArray[np.float64]) -> float:
    """Determinant of the linear part of a (4, 4) affine, without BLAS as in `_mapped`."""
    return float((np.cross(affine[:3, 0], affine[:3, 1]) * affine[:3, 2]).sum())


def _numbers(values: ArrayLike) -> str:
    return " x ".join(f"{v:.4g}" for v in np.asarray(values, dtype=float))

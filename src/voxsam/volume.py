"""Volume: an array of voxels with the Grid that says where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxsam.errors import ImageError, InternalError
from voxsam.geometry import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """An array (i, j, k) in its file's own axis order, with its Grid and modality.

    `modality` is "CT" (Hounsfield units), "MR", "SEG" (labels) or "" (unknown). `header` keeps what a writer needs
    to save it in its original format (for NIfTI: codes, units); it never determines the geometry. `remarks` are what a
    person should know about it, one line each: what was odd in its file, or why a mask needs a second look.
    """

    array: NDArray[Any]
    grid: Grid
    modality: str = ""
    header: dict[str, Any] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.grid.shape:
            raise InternalError(f"array of shape {self.array.shape} on a grid of shape {self.grid.shape}")

    @classmethod
    def from_array(
        cls,
        array: ArrayLike,
        *,
        spacing_mm: Sequence[float],
        axes: str = "RAS",
        origin_mm: Sequence[float] = (0, 0, 0),
        modality: str = "CT",
    ) -> Volume:
        """A scan from an array (i, j, k), its spacing in mm, and the direction of each axis.

        `axes` are three letters of R/L, A/P, S/I: an array from SimpleITK or pydicom, (z, y, x), usually has "SPL".
        `origin_mm` is the centre of the first voxel, RAS+. "CT" means Hounsfield units. Raises ImageError unless the
        array has three axes of finite numbers, GeometryError for a spacing or axes that make no sense.
        """
        voxels = np.asarray(array)
        if voxels.ndim != 3 or voxels.dtype.kind not in "biuf" or not voxels.size:
            given = f"an array of shape {voxels.shape} and type {voxels.dtype}"
            raise ImageError(given, "three axes (i, j, k) of numbers", "give one scan; channels as a list of volumes")
        if not np.isfinite(voxels).all():
            given = f"an array with {np.count_nonzero(~np.isfinite(voxels))} voxels of NaN or infinity"
            raise ImageError(given, "numbers", "fill them, for example with the value of air")
        if voxels.dtype.kind == "b":
            voxels = voxels.astype(np.uint8)
        return cls(voxels, Grid.from_spacing(voxels.shape, spacing_mm, origin_mm, axes), modality)

    def with_array(self, array: NDArray[Any], modality: str | None = None) -> Volume:
        """A copy with other voxel values on the same grid; `modality` changes unless it is None."""
        return replace(self, array=array, modality=self.modality if modality is None else modality)

    def reorient(self, axes: str) -> Volume:
        """The same voxels, a view, permuted and flipped so that the indices increase along `axes`, e.g. "SPL".

        Raises GeometryError unless `axes` are one letter each of R/L, A/P, S/I.
        """
        permutation, flips = self.grid.permutation_to(axes)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        return replace(self, array=self.array.transpose(permutation)[steps], grid=self.grid.reorient(axes))

    @property
    def volume_ml(self) -> float:
        """Volume of the non-zero voxels in millilitres; meant for masks."""
        return int(np.count_nonzero(self.array)) * self.grid.voxel_volume_ml

"""Volume: an array of voxels with the Grid that says where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import InternalError
from voxsam.geometry import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """An array (i, j, k) in its file's own order, its Grid, and what kind of image it is.

    `modality` is "CT" (Hounsfield units), "MR", "SEG" (labels) or "" (unknown). `header` keeps what a writer needs
    to give the file back in its own kind (for NIfTI: codes, units); it never decides geometry. `remarks` are what a
    person should know of it, one line each: what was odd in its file, or, of a mask, why to look twice.
    """

    array: NDArray[Any]
    grid: Grid
    modality: str = ""
    header: dict[str, Any] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.grid.shape:
            raise InternalError(f"array of shape {self.array.shape} on a grid of shape {self.grid.shape}")

    def with_array(self, array: NDArray[Any], modality: str | None = None) -> Volume:
        """The same place with other voxels."""
        return replace(self, array=array, modality=self.modality if modality is None else modality)

    @property
    def volume_ml(self) -> float:
        """Volume of the voxels that are not zero, in millilitres; meant for masks."""
        return int(np.count_nonzero(self.array)) * self.grid.voxel_volume_ml

"""A scan with its label: what training samples are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import GeometryError, ImageError
from voxsam.volume import Volume

BODY_HU = -200.0  # in a CT, what is brighter is not air
TRIES = 20


@dataclass(frozen=True)
class Labelled:
    """A scan with its label (0/1) on the same grid, and where the label's voxels are; arrays may be read as needed."""

    scan: Volume
    label: Volume
    foreground: NDArray[np.int32]  # (n, 3) indices

    @classmethod
    def make(cls, scan: Volume, label: Volume) -> Labelled:
        """Whatever is above 0 in `label` is foreground. Raises GeometryError for another grid, ImageError for none."""
        if not label.grid.close_to(scan.grid):
            given, expected = f"a label on {label.grid}", f"the scan's grid, {scan.grid}"
            raise GeometryError(given, expected, "resample the label to its scan")
        foreground = np.argwhere(label.array > 0).astype(np.int32)
        if not len(foreground):
            raise ImageError(
                "a label without tumour", "at least one voxel above 0", "leave the case out (held_out in the recipe)"
            )
        return cls(scan, Volume((label.array > 0).astype(np.uint8), scan.grid, "SEG"), foreground)

    def tumour_voxel(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """(3,) the index of a voxel of the tumour."""
        return self.foreground[rng.integers(len(self.foreground))]

    def background_voxel(self, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """(3,) the index of a voxel of the body outside the tumour, or None if twenty tries find none."""
        for index in rng.integers(0, self.scan.grid.shape, size=(TRIES, 3)):
            box = tuple(slice(i, i + 1) for i in index)
            body = self.scan.modality != "CT" or self.scan.array[box].item() > BODY_HU
            if body and not self.label.array[box].item():
                return index
        return None

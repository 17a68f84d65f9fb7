"""A scan with its label: what training samples are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import GeometryError, ImageError
from voxsam.lab.data.cases import ABOVE_0, LabelChoice
from voxsam.volume import Volume

BODY_HU = -200.0  # in a CT, what is brighter is not air
TRIES = 20


@dataclass(frozen=True)
class Labelled:
    """A scan with its label (0/1) on the same grid, and where the label's voxels are; arrays may be read as needed.

    `additional`: images of the same patient beside `scan`, on its grid (several MR sequences).
    """

    scan: Volume
    label: Volume
    foreground: NDArray[np.int32]  # (n, 3) indices
    additional: tuple[Volume, ...] = ()
    known_body: NDArray[np.int64] | None = None  # what `body` gives, where it has been found before

    @classmethod
    def make(
        cls, scan: Volume, label: Volume, additional: Sequence[Volume] = (), choice: LabelChoice = ABOVE_0
    ) -> Labelled:
        """What `choice` takes of `label` is foreground. Raises GeometryError for another grid, ImageError for none."""
        for other, what in ((label, "a label"), *((image, "a further image") for image in additional)):
            if not other.grid.close_to(scan.grid):
                given, expected = f"{what} on {other.grid}", f"the scan's grid, {scan.grid}"
                raise GeometryError(given, expected, f"resample {what.replace('a ', 'the ')} to its scan")
        tumour = choice(label.array)
        foreground = np.argwhere(tumour).astype(np.int32)
        if not len(foreground):
            remedy = "leave the case out (held_out in the recipe)"
            raise ImageError("a label without tumour", f"at least one voxel of {choice.wanted}", remedy)
        return cls(scan, Volume(tumour.astype(np.uint8), scan.grid, "SEG"), foreground, tuple(additional))

    @property
    def images(self) -> tuple[Volume, ...]:
        """All channels."""
        return self.scan, *self.additional

    @cached_property
    def body(self) -> NDArray[np.int64]:
        """(2, 3) first and last index of the box round all that is not air."""
        return body_box(self.scan) if self.known_body is None else self.known_body

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


def body_box(scan: Volume) -> NDArray[np.int64]:
    """(2, 3) first and last index of the box round what is above BODY_HU in a CT, above the lowest value elsewhere."""
    array = np.asarray(scan.array[...])
    inside = array > (BODY_HU if scan.modality == "CT" else array.min())
    if not inside.any():
        return np.stack([np.zeros(3, np.int64), np.array(array.shape) - 1])
    lines = (np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return np.array([(line[0], line[-1]) for line in lines], dtype=np.int64).T

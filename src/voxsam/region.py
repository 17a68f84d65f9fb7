"""Region: a set of voxels of a scan, stored as its bounding box and one bit for each voxel of that box."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxsam.boxes import NOWHERE, bounding_box, hull, intersection, is_empty, within
from voxsam.geometry import Grid
from voxsam.preprocess import Slices
from voxsam.volume import Volume


@dataclass(frozen=True, eq=False)
class Region:
    """An immutable set of voxels; `a | b`, `a & b` and `a - b` are union, intersection and difference.

    `box` is its bounding box, `bits` the voxels of that box in C order, eight to a byte: undo takes little memory.
    """

    box: Slices
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, inside: NDArray, start: Sequence[int] = (0, 0, 0)) -> Region:
        """The non-zero voxels of an array (i, j, k) whose first voxel is voxel `start` of the scan."""
        box = bounding_box(inside)
        if is_empty(box):
            return EMPTY
        i, j, k = (slice(part.start + at, part.stop + at) for part, at in zip(box, start, strict=True))
        return cls((i, j, k), np.packbits(inside[box] != 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the box."""
        i, j, k = (part.stop - part.start for part in self.box)
        return i, j, k

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(shape) mask of the region in its box; a new array."""
        i, j, k = self.shape
        return np.unpackbits(self.bits, count=i * j * k).reshape(self.shape).astype(bool)

    @property
    def voxels(self) -> int:
        """Number of voxels in the region."""
        return int(np.bitwise_count(self.bits).sum())

    @property
    def nbytes(self) -> int:
        """Bytes that the bits take."""
        return self.bits.nbytes

    def __bool__(self) -> bool:
        return not is_empty(self.box)

    def __or__(self, other: Region) -> Region:
        if not self or not other:
            return self or other
        box = hull((self.box, other.box))
        out = self.within(box)
        out[within(other.box, box)] |= other.inside
        return Region.of(out, [part.start for part in box])

    def __and__(self, other: Region) -> Region:
        common = intersection(self.box, other.box)
        return Region.of(self.within(common) & other.within(common), [part.start for part in common])

    def __sub__(self, other: Region) -> Region:
        if is_empty(intersection(self.box, other.box)):
            return self
        return Region.of(self.inside & ~other.within(self.box), [part.start for part in self.box])

    def within(self, box: Slices) -> NDArray[np.bool_]:
        """Mask of the region in any box; a new array."""
        out = np.zeros([part.stop - part.start for part in box], dtype=bool)
        common = intersection(self.box, box)
        if not is_empty(common):
            out[within(common, box)] = self.inside[within(common, self.box)]
        return out

    def holds(self, voxel: Sequence[int]) -> bool:
        """Whether a voxel (i, j, k) belongs to the region."""
        i, j, k = (slice(int(at), int(at) + 1) for at in voxel)
        return bool(self.within((i, j, k)).any())

    def component(self, voxel: Sequence[int]) -> Region:
        """The connected component (through faces) that holds a voxel; EMPTY if the region does not hold it."""
        if not self.holds(voxel):
            return EMPTY
        start = [part.start for part in self.box]
        labels, _ = ndimage.label(self.inside)  # type: ignore[misc]
        return Region.of(labels == labels[tuple(int(v) - s for v, s in zip(voxel, start, strict=True))], start)

    def differs(self, other: Region) -> Slices:
        """The bounding box of the voxels that belong to only one of the two regions."""
        box = hull((self.box, other.box))
        return Region.of(self.within(box) ^ other.within(box), [part.start for part in box]).box

    def on(self, grid: Grid) -> Volume:
        """uint8 0/1 on the part of the scan's `grid` inside the box; one voxel of background for an empty region."""
        if not self:
            return Volume(np.zeros((1, 1, 1), np.uint8), grid.crop((0, 0, 0), (1, 1, 1)), "SEG")
        part = grid.crop([along.start for along in self.box], self.shape)
        return Volume(self.inside.astype(np.uint8), part, "SEG")

    def on_all(self, scan: Volume) -> Volume:
        """uint8 0/1 on the whole of the scan's grid, with its header."""
        out = np.zeros(scan.grid.shape, dtype=np.uint8)
        out[self.box] = self.inside
        return Volume(out, scan.grid, "SEG", scan.header)


EMPTY = Region(NOWHERE, np.zeros(0, np.uint8))


def overlapping(regions: Iterable[Region]) -> bool:
    """Whether any two regions share voxels."""
    regions = list(regions)
    return any(a & b for n, a in enumerate(regions) for b in regions[n + 1 :])

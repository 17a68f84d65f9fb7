"""Region: some voxels of a scan, kept as the box that holds them and a bit for each voxel of that box."""

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
    """A set of voxels that never changes; `a | b` and `a - b` are those of both, and those of a alone.

    `box` is the smallest that holds them, `bits` are its voxels in C order, eight to a byte: what undo keeps is small.
    """

    box: Slices
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, inside: NDArray, start: Sequence[int] = (0, 0, 0)) -> Region:
        """The voxels of an array (i, j, k) that are not zero; its first voxel is voxel `start` of the scan."""
        box = bounding_box(inside)
        if is_empty(box):
            return EMPTY
        i, j, k = (slice(part.start + at, part.stop + at) for part, at in zip(box, start, strict=True))
        return cls((i, j, k), np.packbits(inside[box] != 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the box."""
        i, j, k = (part.stop - part.start for part in self.box)
        return i, j, k

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(shape) which voxels of the box belong to it; a new array."""
        i, j, k = self.shape
        return np.unpackbits(self.bits, count=i * j * k).reshape(self.shape).astype(bool)

    @property
    def voxels(self) -> int:
        """How many there are."""
        return int(np.bitwise_count(self.bits).sum())

    @property
    def nbytes(self) -> int:
        """Memory of the bits."""
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
        """Which voxels of any box belong to it; a new array."""
        out = np.zeros([part.stop - part.start for part in box], dtype=bool)
        common = intersection(self.box, box)
        if not is_empty(common):
            out[within(common, box)] = self.inside[within(common, self.box)]
        return out

    def holds(self, voxel: Sequence[int]) -> bool:
        """Whether a voxel (i, j, k) belongs to it."""
        i, j, k = (slice(int(at), int(at) + 1) for at in voxel)
        return bool(self.within((i, j, k)).any())

    def component(self, voxel: Sequence[int]) -> Region:
        """Its voxels that are joined to a voxel through faces; EMPTY if that one does not belong to it."""
        if not self.holds(voxel):
            return EMPTY
        start = [part.start for part in self.box]
        labels, _ = ndimage.label(self.inside)  # type: ignore[misc]
        return Region.of(labels == labels[tuple(int(v) - s for v, s in zip(voxel, start, strict=True))], start)

    def differs(self, other: Region) -> Slices:
        """The smallest box that holds every voxel that belongs to one of the two alone."""
        box = hull((self.box, other.box))
        return Region.of(self.within(box) ^ other.within(box), [part.start for part in box]).box

    def on(self, grid: Grid) -> Volume:
        """uint8 0/1 on the part of the scan's `grid` that is the box; one voxel of background if there is none."""
        if not self:
            return Volume(np.zeros((1, 1, 1), np.uint8), grid.crop((0, 0, 0), (1, 1, 1)), "SEG")
        part = grid.crop([along.start for along in self.box], self.shape)
        return Volume(self.inside.astype(np.uint8), part, "SEG")

    def on_all(self, scan: Volume) -> Volume:
        """uint8 0/1 on all of the scan's grid, with its header."""
        out = np.zeros(scan.grid.shape, dtype=np.uint8)
        out[self.box] = self.inside
        return Volume(out, scan.grid, "SEG", scan.header)


EMPTY = Region(NOWHERE, np.zeros(0, np.uint8))


def overlapping(regions: Iterable[Region]) -> bool:
    """Whether some of them share voxels."""
    regions = list(regions)
    return any(a & b for n, a in enumerate(regions) for b in regions[n + 1 :])

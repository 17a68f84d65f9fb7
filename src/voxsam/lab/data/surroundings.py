"""A scan that was cut round its tumour, put into the tissue of another: training then sees whole fields of view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxsam.lab.data.labelled import Labelled
from voxsam.preprocess import Preprocessing, Slices, Window

SEAM = 3  # voxels beyond the block over which its border fades into the other tissue
OTHERS = 4  # scans that are tried, until nothing is left to fill
PLACES = 6  # places that are tried in each
AT_TUMOUR = 0.5  # of the places: the block takes the place of the other scan's tumour


def find_place(
    other: Labelled, preprocessing: Preprocessing, shape: tuple[int, int, int], block: Slices, rng: np.random.Generator
) -> Window | None:
    """The window of `shape` on the model grid of `other` that shows its tissue round `block` (in the window's voxels).

    None of its tumour shows outside the block: it would be a tumour without a label. None if no such place is found.
    """
    model_grid = preprocessing.model_grid(other.scan.grid)
    tumour = other.scan.grid.index_in(model_grid, other.foreground)
    first, last = np.array([[part.start, part.stop - 1] for part in block]).T
    for _ in range(PLACES):
        voxel = other.tumour_voxel(rng) if rng.random() < AT_TUMOUR else other.background_voxel(rng)
        if voxel is None:
            continue
        start = np.rint(other.scan.grid.index_in(model_grid, voxel) - (first + last) / 2).astype(int)
        at = tumour - start
        shown = ((at > -1) & (at < np.array(shape))).all(1) & ~((at >= first) & (at <= last)).all(1)
        if not shown.any():
            a, b, c = start.tolist()
            return Window(model_grid, (a, b, c), shape)
    return None


def fill(
    image: NDArray[np.float32],
    seen: NDArray[np.bool_],
    block: Slices,
    tissue: NDArray[np.float32],
    known: NDArray[np.bool_],
) -> None:
    """Put `tissue` (C, ...) into `image` (C, ...) where it is `known` (...) and nothing was `seen`, and say so there.

    What was seen stays as it is. The outermost voxels of `block` go on for SEAM voxels beyond it, fading.
    """
    lines = [np.arange(n) for n in seen.shape]
    inner = [line.clip(part.start, part.stop - 1) for line, part in zip(lines, block, strict=True)]
    apart = np.ix_(*(np.square(a - b, dtype=np.float32) for a, b in zip(lines, inner, strict=True)))
    distance = np.sqrt(apart[0] + apart[1] + apart[2])
    own = np.clip(1 - distance / np.float32(SEAM + 1), 0, 1)
    use = known & ~seen
    edge = image[:, *np.ix_(*inner)]
    image[:, use] = (own * edge + (1 - own) * tissue)[:, use]
    seen |= use

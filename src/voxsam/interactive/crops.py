"""Which crops a set of clicks needs, and how the crops' answers become one: all on the model's model grid.

Indices are model grid voxels (d, h, w); a piece is a window with the probabilities that the model gave in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.errors import CheckpointError
from voxsam.geometry import Grid
from voxsam.preprocess import Window

Piece = tuple[Window, NDArray[np.float32]]

WELL_INSIDE = 8  # a click this share (1/8) of the side or more from the crop's faces keeps the crop where it is
TOUCH = 2  # a mask within this many voxels of a face of its crop is said to reach it
THRESHOLD = 0.5  # of the probability: inside the tumour (docs/released.md, "Mask decoder")


def choose_windows(model_grid: Grid, points: NDArray[np.float64], side: int, current: Sequence[Window]) -> list[Window]:
    """The windows for clicks (N, 3): the current ones if they hold, else one for each group of clicks that fits in one.

    A new window is centred on the middle of its clicks' bounding box, as released.
    """
    if current and all(any(_well_inside(window, point) for window in current) for point in points):
        return [w for w in current if any(_well_inside(w, point) for point in points)]
    # Where the scan is no longer than a crop, one crop holds all of it.
    extent = np.where(np.array(model_grid.shape) <= side, side, side - 2 * (side // WELL_INSIDE))
    chosen: list[Window] = []
    for group in _groups(points, extent):
        held = [w for w in current if all(_well_inside(w, point) for point in group)]
        window = held[0] if held else Window.around(model_grid, (group.min(0) + group.max(0)) / 2, (side,) * 3)
        if window not in chosen:
            chosen.append(window)
    return chosen


def _groups(points: NDArray[np.float64], extent: NDArray[np.int_]) -> list[NDArray[np.float64]]:
    """Clicks split, in their order, into groups whose bounding boxes are at most `extent` (3,) wide."""
    groups: list[NDArray[np.float64]] = []
    for point in points:
        for number, group in enumerate(groups):
            joined = np.vstack([group, point])
            if (np.ptp(joined, axis=0) <= extent).all():
                groups[number] = joined
                break
        else:
            groups.append(point[None])
    return groups


def _well_inside(window: Window, point: NDArray[np.float64]) -> bool:
    """Whether a click is far from those faces of a window behind which the scan goes on."""
    for at, start, n, length in zip(point, window.start, window.shape, window.model_grid.shape, strict=True):
        margin = n // WELL_INSIDE
        if at < start + (margin if start > 0 else 0) or at > start + n - 1 - (margin if start + n < length else 0):
            return False
    return True


def next_windows(piece: Piece, mask: NDArray[np.bool_]) -> list[Window]:
    """Where a tumour goes on: for each face of the piece's window that `mask` reaches, the window centred there.

    It is centred on the middle of all places reached, so that it holds every one of them.
    """
    window, _ = piece
    found = []
    for axis in range(3):
        for at_end in (False, True):
            if _is_scan_border(window, axis, at_end):
                continue
            n = window.shape[axis]
            slab = np.moveaxis(mask, axis, 0)[n - TOUCH :] if at_end else np.moveaxis(mask, axis, 0)[:TOUCH]
            touched = slab.any(axis=0)
            if touched.any():
                places = np.argwhere(touched)
                centre = np.insert((places.min(0) + places.max(0)) / 2, axis, n - 1 if at_end else 0)
                found.append(Window.around(window.model_grid, centre + window.start, window.shape))
    return found


def _is_scan_border(window: Window, axis: int, at_end: bool) -> bool:
    if at_end:
        return window.start[axis] + window.shape[axis] >= window.model_grid.shape[axis]
    return window.start[axis] <= 0


def is_new(window: Window, others: Sequence[Window]) -> bool:
    """Whether a window's start differs from all others by at least a quarter of its side on some axis."""
    step = max(window.shape) / 4
    return all(np.abs(np.subtract(window.start, other.start)).max() >= step for other in others)


def connected(piece: Piece, merged: Piece) -> NDArray[np.float32]:
    """The piece's probabilities, without the parts of its mask that no voxel of the merged mask belongs to."""
    window, probability = piece
    before = cut(merged, window) > THRESHOLD
    parts = np.zeros(window.shape, dtype=np.int32)
    scipy.ndimage.label(probability > THRESHOLD, output=parts)
    joined = np.unique(parts[before])
    stray = (parts > 0) & ~np.isin(parts, joined[joined > 0])
    return np.where(stray, np.float32(0), probability)


def cut(piece: Piece, window: Window) -> NDArray[np.float32]:
    """(window.shape) the probabilities of a piece in another window of the same model grid, 0 where it has none."""
    source, probability = piece
    out = np.zeros(window.shape, dtype=np.float32)
    offset = np.subtract(source.start, window.start)
    here = tuple(
        slice(max(0, o), max(0, min(n, o + m))) for o, n, m in zip(offset, window.shape, source.shape, strict=True)
    )
    there = tuple(slice(h.start - o, h.stop - o) for h, o in zip(here, offset, strict=True))
    if all(h.stop > h.start for h in here):
        out[here] = probability[there]
    return out


def around_tumour(piece: Piece) -> Piece | None:
    """The part of a piece that holds its voxels above THRESHOLD and their neighbours; None if there is no such voxel.

    Only voxels in the scan count: a network may see a tumour in the padding, too. Interpolated linearly, no place
    beyond the part comes above THRESHOLD.
    """
    window, probability = piece
    inside = np.zeros(window.shape, dtype=bool)
    in_scan = window.inside()
    inside[in_scan] = probability[in_scan] > THRESHOLD
    found = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(found[0]):
        return None
    low = [max(0, int(places[0]) - 1) for places in found]
    high = [min(n, int(places[-1]) + 2) for places, n in zip(found, window.shape, strict=True)]
    start, shape = np.add(window.start, low), np.subtract(high, low)
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return Window(window.model_grid, tuple(start.tolist()), tuple(shape.tolist())), probability[part]


def require_numbers(probability: NDArray[np.float32], model: str) -> None:
    """Raises CheckpointError if an answer of the model `model` has a NaN: thresholded it would be an empty mask."""
    if np.isnan(probability.max()):
        raise CheckpointError(
            f"the model {model} answered with NaN",
            "probabilities",
            "get its file again, or try float32 and --device cpu",
        )


def merge(pieces: Sequence[Piece]) -> Piece:
    """All pieces as one on the window that holds them: where they overlap, the mean, weighted towards crop centres."""
    if len(pieces) == 1:
        return pieces[0]
    model_grid = pieces[0][0].model_grid
    low = np.min([w.start for w, _ in pieces], axis=0)
    high = np.max([np.add(w.start, w.shape) for w, _ in pieces], axis=0)
    union = Window(model_grid, tuple(low.tolist()), tuple((high - low).tolist()))
    total = np.zeros(union.shape, dtype=np.float32)
    weights = np.zeros(union.shape, dtype=np.float32)
    for window, probability in pieces:
        box = tuple(slice(s - o, s - o + n) for s, o, n in zip(window.start, low, window.shape, strict=True))
        weight = _centre_weight(window.shape)
        total[box] += weight * probability
        weights[box] += weight
    return union, np.divide(total, weights, out=total, where=weights > 0)


def _centre_weight(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(shape) falling linearly from the middle of a crop to its faces."""
    ramps = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / (n / 2) for n in shape]
    return np.einsum("i,j,k->ijk", *ramps).astype(np.float32)

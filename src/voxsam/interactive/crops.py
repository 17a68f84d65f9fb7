"""Crops of a scan: which ones a set of clicks needs, what the model predicts in each, and how they are blended.

A piece is a window (a box of a model grid) with the probabilities that the model gave in it. Indices are model grid
voxels (d, h, w).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import scipy.ndimage
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.boxes import NOWHERE, bounding_box, grown, hull, intersection, is_empty, joined, within
from voxsam.errors import CheckpointError
from voxsam.geometry import Grid
from voxsam.network.promptable import Features, Promptable, Static
from voxsam.preprocess import Slices, Window, read_crops
from voxsam.volume import Volume

Piece = tuple[Window, NDArray[np.float32]]
ReportProgress = Callable[[str, float], None]  # a stage's name, and the fraction done

WELL_INSIDE = 8  # a click this fraction (1/8) of the side or more from the crop's faces keeps the crop where it is
TOUCH = 2  # a mask within this many voxels of a face of its crop is said to reach it
THRESHOLD = 0.5  # of the probability: inside the tumour (docs/released.md, "Mask decoder")
SURE = 1e-5  # probabilities are kept this far from 0 and 1, so that logits are finite
KEPT_BYTES = 1 << 30  # of encoded crops that the current object does not use
AFTER_BLOCKS = 2  # stages that progress counts after the encoder's blocks: the necks, the static part of the decoder


# Windows


def choose_windows(model_grid: Grid, points: NDArray[np.float64], side: int, current: Sequence[Window]) -> list[Window]:
    """The windows for clicks (N, 3): the current ones if they hold all, else one per group of clicks that fits in one.

    A new window is centred on the middle of its clicks' bounding box, as released.
    """
    if current and all(any(_well_inside(window, point) for window in current) for point in points):
        return [w for w in current if any(_well_inside(w, point) for point in points)]
    # Along an axis where the scan is no longer than a crop, one crop holds all of it.
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
    """Whether a click is far from those faces of a window beyond which the scan continues."""
    for at, start, n, length in zip(point, window.start, window.shape, window.model_grid.shape, strict=True):
        margin = n // WELL_INSIDE
        if at < start + (margin if start > 0 else 0) or at > start + n - 1 - (margin if start + n < length else 0):
            return False
    return True


def next_windows(window: Window, mask: NDArray[np.bool_]) -> list[Window]:
    """Where a tumour continues: for each face of a window that its `mask` reaches, the window centred there.

    The centre is the middle of all places reached, so that the window holds every one of them. Faces at the end of the
    scan do not count.
    """
    found = []
    for axis, (start, n, length) in enumerate(zip(window.start, window.shape, window.model_grid.shape, strict=True)):
        along = np.moveaxis(mask, axis, 0)
        for slab, at, ends in ((along[:TOUCH], 0, start <= 0), (along[n - TOUCH :], n - 1, start + n >= length)):
            places = np.argwhere(slab.any(axis=0))
            if len(places) and not ends:
                centre = np.insert((places.min(0) + places.max(0)) / 2, axis, at)
                found.append(Window.around(window.model_grid, centre + window.start, window.shape))
    return found


def is_new(window: Window, others: Iterable[Window]) -> bool:
    """Whether a window's start differs from all others by at least a quarter of its side on some axis."""
    step = max(window.shape) / 4
    return all(np.abs(np.subtract(window.start, other.start)).max() >= step for other in others)


# Blending


def blend(pieces: Sequence[Piece], window: Window) -> NDArray[np.float32]:
    """(window.shape) the pieces' probabilities in a window of their model grid; 0 where there is no piece.

    Where pieces overlap, it is their mean, weighted towards the middles of their crops. Do not write to the result.
    """
    each = [(source, probability, intersection(source.box, window.box)) for source, probability in pieces]
    overlapping = [one for one in each if not is_empty(one[2])]
    if len(overlapping) == 1 and overlapping[0][0] == window:
        return overlapping[0][1]
    out = np.zeros(window.shape, dtype=np.float32)
    if len(overlapping) == 1:
        source, probability, common = overlapping[0]
        out[within(common, window.box)] = probability[within(common, source.box)]
    if len(overlapping) <= 1:
        return out
    weights = np.zeros(window.shape, dtype=np.float32)
    for source, probability, common in overlapping:
        here, there = within(common, window.box), within(common, source.box)
        weight = _centre_weight(source.shape)[there]
        out[here] += weight * probability[there]
        weights[here] += weight
    return np.divide(out, weights, out=out, where=weights > 0)


def _centre_weight(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(shape) weights that fall linearly from the middle of a crop to its faces."""
    ramps = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / (n / 2) for n in shape]
    return np.einsum("i,j,k->ijk", *ramps).astype(np.float32)


def connected(probability: NDArray[np.float32], before: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A crop's probabilities, 0 in components of its mask (connected through faces) that hold no voxel of `before`."""
    parts = np.zeros(probability.shape, dtype=np.int32)
    scipy.ndimage.label(probability > THRESHOLD, output=parts)
    joined = np.unique(parts[before])
    stray = (parts > 0) & ~np.isin(parts, joined[joined > 0])
    return np.where(stray, np.float32(0), probability)


def parts_of(pieces: Sequence[Piece], *, tumour: bool = False) -> list[Piece]:
    """A few pieces that together hold the blend; with `tumour`, all of it that is above THRESHOLD in the scan.

    (A network may see a tumour in the padding, too.) Each piece includes the neighbours of its voxels, so that linear
    interpolation is nowhere above the blend, and everywhere equal to it in one of them: where they overlap, the highest
    counts. Distant lesions are separate pieces: a box that holds both may not fit in memory.
    """
    if not pieces:
        return []
    ends = hull(window.box for window, _ in pieces)
    boxes = [_tumour_box(pieces, window) if tumour else window.box for window, _ in pieces]
    boxes = [intersection(grown(box, 1), ends) for box in boxes if not is_empty(box)]
    windows = [Window.of_box(pieces[0][0].model_grid, box) for box in joined(boxes)]
    return [(window, blend(pieces, window)) for window in windows]


def _tumour_box(pieces: Sequence[Piece], window: Window) -> Slices:
    """The box, on the model grid, of the voxels above THRESHOLD in a window, as far as they lie in the scan."""
    inside = np.zeros(window.shape, dtype=bool)
    in_scan = window.inside()
    inside[in_scan] = blend(pieces, window)[in_scan] > THRESHOLD
    found = bounding_box(inside)
    if is_empty(found):
        return NOWHERE
    i, j, k = (slice(p.start + start, p.stop + start) for p, start in zip(found, window.start, strict=True))
    return i, j, k


# The model


@dataclass(frozen=True)
class Encoded:
    """What is kept of an encoded crop: the features that clicks change, and the part of decoding that they do not."""

    features: Features
    static: Static
    crop: Tensor  # (1, K, D, H, W), K images

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        static = (self.static,) if isinstance(self.static, Tensor) else self.static
        return sum(tensor.nbytes for tensor in (*self.features, *static, self.crop))


class EncodedCrops:
    """The crops of a scan (`images` are its channels), each encoded once and decoded often: `kept`, the latest last.

    `used` are those of the current object. They are kept as long as memory allows, so that its next click encodes
    nothing; others up to KEPT_BYTES. `limit` bounds the bytes of all of them, if given.
    """

    def __init__(
        self, model: Promptable, images: Sequence[Volume], progress: ReportProgress, limit: int | None = None
    ) -> None:
        self.model, self.images, self.progress, self.limit = model, images, progress, limit
        self.kept: OrderedDict[Window, Encoded] = OrderedDict()
        self.used: set[Window] = set()

    @property
    def nbytes(self) -> int:
        """Bytes that they take together."""
        return sum(encoded.nbytes for encoded in self.kept.values())

    def use(self, windows: Iterable[Window]) -> None:
        """Say which windows the current object uses from now on."""
        self.used = {view for window in windows for view in (window, window.mirrored())}

    def get(self, window: Window) -> Encoded:
        """The window's encoded crop, encoded now unless it is kept; under the caller's gradient mode."""
        self.used.add(window)
        if window not in self.kept:
            encoded = self._encode(window)
            self._make_room(encoded.nbytes)
            self.kept[window] = encoded
            self.progress("encoding", 1.0)
        self.kept.move_to_end(window)
        return self.kept[window]

    def sample(self, window: Window, world_mm: Sequence[float]) -> Tensor:
        """(1, 1, C) the prompt features of a click at RAS+ mm in the window's crop."""
        encoded = self.get(window)
        return self.model.sample(encoded.features, _points(window, [world_mm], encoded))

    def logits(
        self,
        window: Window,
        world_mm: Sequence[Sequence[float]],
        prompt_features: Tensor,
        labels: Tensor | None,
        before: Sequence[Piece] = (),
    ) -> Tensor:
        """(window.shape) logits, tumour minus background, for N clicks at RAS+ mm.

        `prompt_features` are (1, N, C), `labels` (1, N). A network that takes a previous mask is given that of the
        pieces `before`, if they lie on the window's grid.
        """
        encoded = self.get(window)
        logits = self.model.decode(
            encoded.features,
            encoded.crop,
            _points(window, world_mm, encoded),
            prompt_features=prompt_features,
            labels=labels,
            static=encoded.static,
            conditioning=self.model.card.conditioning,
            previous=self._previous(window, before, encoded.crop) if self.model.goes_on else None,
        )
        background, tumour = logits[0].float()
        return tumour - background

    def _previous(self, window: Window, before: Sequence[Piece], like: Tensor) -> Tensor | None:
        """(1, 1, D, H, W) logits of the pieces in a window of their grid, 0 elsewhere; None if there are none."""
        pieces = [
            (source, probability)
            for source, probability in before
            if source.model_grid == window.model_grid and not is_empty(intersection(source.box, window.box))
        ]
        if not pieces:
            return None
        logits, known = np.zeros(window.shape, dtype=np.float32), blend(pieces, window)
        for covered, _ in pieces:
            here = within(intersection(covered.box, window.box), window.box)
            logits[here] = scipy.special.logit(known[here].clip(SURE, 1 - SURE))
        return torch.from_numpy(logits).to(like)[None, None]

    def _encode(self, window: Window) -> Encoded:
        self.progress("encoding", 0.0)
        parameter = next(self.model.parameters())
        if (mirror := self.kept.get(window.mirrored())) is not None:
            crop = mirror.crop.flip(-1)
        else:
            crop = torch.from_numpy(read_crops(self.images, window, self.model.card.preprocessing))
            crop = crop[None].to(parameter.device, parameter.dtype)
        features = self.model.encode(crop, self._report_block)
        return Encoded(self.model.prompted(features), self.model.static(features, crop), crop)

    def _report_block(self, done: int, blocks: int) -> None:
        self.progress("encoding", done / (blocks + AFTER_BLOCKS))

    def _make_room(self, nbytes: int) -> None:
        """Drop crops of other objects, the oldest first; then, where memory is short, the latest of this object.

        The latest, because every click visits all of an object's crops in the same order: if the oldest went, each of
        them would be gone by the time its turn comes.
        """
        for window in [w for w in self.kept if w not in self.used]:
            if self.nbytes + nbytes > (KEPT_BYTES if self.limit is None else min(self.limit, KEPT_BYTES)):
                del self.kept[window]
        if self.limit is None:
            limit = max(KEPT_BYTES, self.nbytes + _free_bytes(next(self.model.parameters()).device) // 2)
        else:
            limit = self.limit
        while self.kept and self.nbytes + nbytes > limit:
            self.kept.popitem(last=True)


def _points(window: Window, world_mm: Sequence[Sequence[float]], encoded: Encoded) -> Tensor:
    """(1, N, 3) clicks at RAS+ mm as crop voxels (d, h, w)."""
    at = window.model_grid.world_to_index(world_mm) - window.start
    return torch.tensor(at, dtype=torch.float32, device=encoded.crop.device)[None]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def require_numbers(probability: NDArray[np.float32], model: str) -> None:
    """Raises CheckpointError if a prediction of the model `model` has a NaN, which would look like an empty mask."""
    if np.isnan(probability.max()):
        raise CheckpointError(
            f"the model {model} answered with NaN",
            "probabilities",
            "get its file again, or try float32 and --device cpu",
        )

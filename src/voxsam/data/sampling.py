"""Training samples: a crop around a tumour or beside it, varied, its label, and the first clicks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from voxsam.data.augmentation import Augmentation, apply
from voxsam.data.labelled import Labelled
from voxsam.data.surroundings import OTHERS, fill, find_place
from voxsam.preprocess import Preprocessing, Slices, Window
from voxsam.resample import resample

Sample = dict[str, NDArray]
Prompts = Literal["clicks", "paper", "released"]

IN_TUMOUR, IN_BACKGROUND = 40, 10  # points of a step (paper, Sec. 3.3)
RELEASED_IN_TUMOUR, RELEASED_ANYWHERE = 10, 20  # docs/released.md, "Training"
MOST_CLICKS = 10
TUMOUR, SEEN = 1, 2  # bits of the array that goes through the transforms as the label


class Sampler:
    """Draws samples for one model: crops of `side` voxels and the points of a way of prompting.

    "clicks": a click in the tumour, at times several; what the model then gets wrong is clicked during the training
    step. "paper": 40 points in the tumour, or 10 in the background of a crop without tumour (Sec. 3.3). "released": 10
    in the tumour, if there is any, and 20 anywhere (docs/released.md, "Training").
    """

    def __init__(
        self, preprocessing: Preprocessing, side: int, augmentation: Augmentation, prompts: Prompts = "clicks"
    ) -> None:
        self.preprocessing, self.side, self.augmentation = preprocessing, side, augmentation
        self.prompts: Prompts = prompts
        self.others: Sequence[Labelled] = ()  # scans whose tissue may surround another's
        self._transform = augmentation.transform(side)

    def among(self, others: Sequence[Labelled]) -> Sampler:
        """The same sampler, which has the tissue of `others` to surround scans with."""
        same = copy(self)
        same.others = others
        return same

    def draw(self, case: Labelled, rng: np.random.Generator) -> Sample:
        """`crop` (1, D, H, W) float32, `label` (1, D, H, W) float32 0/1, `points` (N, 3) float32, `labels` (N,) int64.

        `points` are crop voxels; their labels are 1, or -1 for padding. A crop beside the tumour has an empty label.
        """
        a, use = self.augmentation, self.preprocessing
        beside = case.background_voxel(rng) if rng.random() < a.background else None
        voxel = case.tumour_voxel(rng) if beside is None else beside
        lattice = use.lattice(case.scan.grid)
        centre = case.scan.grid.index_in(lattice, voxel)
        off_centre = beside is None and rng.random() < a.off_centre
        if off_centre:
            within = np.minimum(a.off_centre_mm / np.array(use.spacing_mm), self.side // 2 - 1)  # stay in the crop
            centre = centre + rng.uniform(-1, 1, 3) * within
        window = Window.around(lattice, centre, (a.reach(self.side),) * 3)
        image, bits, block = self._read(case, window, _limits(case, a, rng))
        if a.surroundings and rng.random() < a.surroundings:
            self._surround(case, image, bits, block, rng)
        at = np.rint(case.scan.grid.index_in(window.grid, voxel)).astype(int)
        if beside is None and ((at >= 0) & (at < window.shape)).all():
            bits[tuple(at)] |= TUMOUR  # a lesion thinner than the crop's voxels must not vanish under its click
        image, bits = apply(self._transform, image, bits, int(rng.integers(2**32)))
        return self._sample(image, bits.astype(np.uint8), beside is not None, off_centre, rng)

    def _read(
        self, case: Labelled, window: Window, limits: tuple[NDArray, NDArray]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], Slices]:
        """Intensities less the mean, 0 where the scan (cut to `limits`) has none; the bits TUMOUR and SEEN; its box."""
        image, bits = np.zeros(window.shape, np.float32), np.zeros(window.shape, np.uint8)
        at = case.scan.grid.index_in(window.grid, np.stack(limits))
        low, high = np.ceil(at.min(0)).astype(int), np.floor(at.max(0)).astype(int) + 1
        box: Slices = tuple(  # type: ignore[assignment]
            slice(max(p.start, a), max(p.start, a, min(p.stop, b)))
            for p, a, b in zip(window.inside(), low, high, strict=True)
        )
        if all(p.stop > p.start for p in box):
            grid = window.grid.crop([p.start for p in box], [p.stop - p.start for p in box])
            image[box] = resample(case.scan, grid, self.preprocessing.interpolation) - self.preprocessing.mean
            bits[box] = SEEN
            bits[box] += np.uint8(TUMOUR) * (resample(case.label, grid, "area") > 0.5)
        return image, bits, box

    def _surround(self, case: Labelled, image: NDArray, bits: NDArray, block: Slices, rng: np.random.Generator) -> None:
        """Tissue of other scans of the same modality outside `block`, in place; no tumour, whatever it was there."""
        others = [o for o in self.others if o is not case and o.scan.modality == case.scan.modality]
        seen = (bits & SEEN) > 0
        if not seen.any():
            return
        for number in rng.permutation(len(others))[:OTHERS]:
            if seen.all():
                break
            window = find_place(others[number], self.preprocessing, image.shape, block, rng)  # type: ignore[arg-type]
            if window is not None:
                tissue, theirs, _ = self._read(others[number], window, _whole(others[number]))
                fill(image, seen, block, tissue, (theirs & SEEN) > 0)
        bits |= np.uint8(SEEN) * seen

    def _sample(
        self, image: NDArray, bits: NDArray, beside: bool, off_centre: bool, rng: np.random.Generator
    ) -> Sample:
        use = self.preprocessing
        crop = np.where(bits & SEEN, use.normalise(image + use.mean), np.float32(0))
        label = (bits & TUMOUR) > 0
        middle = (self.side // 2,) * 3
        if not beside and not label.any():
            label[middle] = True
        if self.prompts == "clicks":
            points, labels = _clicks(label, beside, off_centre, rng)
        elif self.prompts == "paper":
            inside = label.any() and not beside
            points, labels = _some(label if inside else ~label, IN_TUMOUR if inside else IN_BACKGROUND, rng, IN_TUMOUR)
        else:
            inner, marks = _some(label, RELEASED_IN_TUMOUR, rng, RELEASED_IN_TUMOUR)
            outer = rng.integers(0, self.side, (RELEASED_ANYWHERE, 3)).astype(np.float32)
            points = np.concatenate([inner, outer])
            labels = np.concatenate([marks, np.ones(RELEASED_ANYWHERE, np.int64)])
        target = label & (not beside) if self.prompts == "clicks" else label
        return {"crop": crop[None], "label": target[None].astype(np.float32), "points": points, "labels": labels}


def _limits(
    case: Labelled, a: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last index (3,) that may be seen of a scan: random margins, so that its borders give nothing away."""
    low, high = _whole(case)
    if a.margin_mm is None or (a.uncut and rng.random() < a.uncut):
        return low, high
    margins = rng.uniform(*a.margin_mm, size=(2, 3)) / case.scan.grid.spacing_mm
    first, last = case.foreground.min(0) - margins[0], case.foreground.max(0) + margins[1]
    return np.where(first <= 0, low, first), np.where(last >= high - 0.5, high, last)


def _whole(case: Labelled) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last index (3,) of a scan, to the outer faces of its voxels."""
    return np.full(3, -0.5), np.array(case.scan.grid.shape) - 0.5


def _some(
    region: NDArray[np.bool_], count: int, rng: np.random.Generator, length: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`count` voxels of a region, drawn with replacement, as points and labels padded to `length`."""
    points, labels = np.zeros((length, 3), np.float32), np.full(length, -1, np.int64)
    voxels = np.argwhere(region)
    if len(voxels):
        points[:count], labels[:count] = voxels[rng.integers(len(voxels), size=count)], 1
    return points, labels


def _clicks(
    label: NDArray[np.bool_], beside: bool, off_centre: bool, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One click, at times up to ten; the first in the middle, as in a session's first crop, if not off centre."""
    several = not beside and rng.random() < 0.3
    count = int(rng.integers(2, MOST_CLICKS + 1)) if several else 1
    points, labels = _some(label, count, rng, MOST_CLICKS)
    if beside or not off_centre:
        middle = np.array(label.shape) // 2
        voxels = np.argwhere(label != beside)
        points[0] = voxels[np.abs(voxels - middle).sum(1).argmin()] if len(voxels) else middle
        labels[0] = 1
    return points, labels

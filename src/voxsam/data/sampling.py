"""Training samples: a crop around a tumour or beside it, varied, its label, and the first clicks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from voxsam.data.augmentation import Augmentation, apply
from voxsam.errors import GeometryError, ImageError
from voxsam.preprocess import Preprocessing, Window
from voxsam.resample import resample
from voxsam.volume import Volume

Sample = dict[str, NDArray]
Prompts = Literal["clicks", "paper", "released"]

IN_TUMOUR, IN_BACKGROUND = 40, 10  # points of a step (paper, Sec. 3.3)
RELEASED_IN_TUMOUR, RELEASED_ANYWHERE = 10, 20  # docs/released.md, "Training"
MOST_CLICKS = 10
BODY_HU = -200.0  # in a CT, what is brighter is not air
TRIES = 20
TUMOUR, SEEN = 1, 2  # bits of the array that goes through the transforms as the label


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
        self._transform = augmentation.transform(side)

    def draw(self, case: Labelled, rng: np.random.Generator) -> Sample:
        """`crop` (1, D, H, W) float32, `label` (1, D, H, W) float32 0/1, `points` (N, 3) float32, `labels` (N,) int64.

        `points` are crop voxels; their labels are 1, or -1 for padding. A crop beside the tumour has an empty label.
        """
        a, use = self.augmentation, self.preprocessing
        beside = _background_voxel(case, rng) if rng.random() < a.background else None
        voxel = case.foreground[rng.integers(len(case.foreground))] if beside is None else beside
        lattice = use.lattice(case.scan.grid)
        centre = case.scan.grid.index_in(lattice, voxel)
        off_centre = beside is None and rng.random() < a.off_centre
        if off_centre:
            within = np.minimum(a.off_centre_mm / np.array(use.spacing_mm), self.side // 2 - 1)  # stay in the crop
            centre = centre + rng.uniform(-1, 1, 3) * within
        window = Window.around(lattice, centre, (a.reach(self.side),) * 3)
        image, bits = self._read(case, window, _limits(case, a.margin_mm, rng))
        at = np.rint(case.scan.grid.index_in(window.grid, voxel)).astype(int)
        if beside is None and ((at >= 0) & (at < window.shape)).all():
            bits[tuple(at)] |= TUMOUR  # a lesion thinner than the crop's voxels must not vanish under its click
        image, bits = apply(self._transform, image, bits, int(rng.integers(2**32)))
        return self._sample(image, bits.astype(np.uint8), beside is not None, off_centre, rng)

    def _read(
        self, case: Labelled, window: Window, limits: tuple[NDArray, NDArray]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Intensities less the mean, 0 where the scan (cut to `limits`) has none; and the bits TUMOUR and SEEN."""
        image, bits = np.zeros(window.shape, np.float32), np.zeros(window.shape, np.uint8)
        at = case.scan.grid.index_in(window.grid, np.stack(limits))
        low, high = np.ceil(at.min(0)).astype(int), np.floor(at.max(0)).astype(int) + 1
        parts = [
            slice(max(p.start, a), max(p.start, a, min(p.stop, b)))
            for p, a, b in zip(window.inside(), low, high, strict=True)
        ]
        if all(p.stop > p.start for p in parts):
            grid = window.grid.crop([p.start for p in parts], [p.stop - p.start for p in parts])
            box = tuple(parts)
            image[box] = resample(case.scan, grid, self.preprocessing.interpolation) - self.preprocessing.mean
            bits[box] = SEEN
            bits[box] += np.uint8(TUMOUR) * (resample(case.label, grid, "area") > 0.5)
        return image, bits

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
    case: Labelled, margin_mm: tuple[float, float] | None, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last index (3,) that may be seen of a scan: random margins, so that its borders give nothing away."""
    last = np.array(case.scan.grid.shape) - 1.0
    if margin_mm is None:
        return np.full(3, -0.5), last + 0.5
    margins = rng.uniform(*margin_mm, size=(2, 3)) / case.scan.grid.spacing_mm
    low, high = case.foreground.min(0) - margins[0], case.foreground.max(0) + margins[1]
    return np.where(low <= 0, -0.5, low), np.where(high >= last, last + 0.5, high)


def _background_voxel(case: Labelled, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """A voxel of the body outside the tumour, or None if twenty tries find none."""
    for index in rng.integers(0, case.scan.grid.shape, size=(TRIES, 3)):
        box = tuple(slice(i, i + 1) for i in index)
        body = case.scan.modality != "CT" or case.scan.array[box].item() > BODY_HU
        if body and not case.label.array[box].item():
            return index
    return None


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

"""Training samples: an augmented crop around a click, its label, and simulated clicks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from voxsam.errors import GeometryError, ImageError
from voxsam.preprocess import Preprocessing, Window, read_crop
from voxsam.resample import resample
from voxsam.volume import Volume

Sample = dict[str, NDArray]


class Augmentation(BaseModel):
    """How a crop is varied. Lengths in mm, intensities in the scan's unit (HU)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zoom: tuple[float, float] = (0.85, 1.2)
    flip: float = 0.5  # probability on each axis
    rotate: float = 0.5  # probability of a turn by 90 degrees in the axial plane
    shift: float = 15.0  # s.d. of an offset
    scale: float = 0.1  # s.d. of a contrast factor
    noise: float = 8.0  # largest s.d. of added noise
    margin_mm: tuple[float, float] = (5.0, 60.0)  # what is left of a scan around its tumour, drawn for each side
    off_centre: float = 0.25  # probability that the crop is centred beside its click
    off_centre_mm: float = 40.0
    background: float = 0.06  # probability of a click beside the tumour, with nothing to segment (paper, Sec. 3.3)


@dataclass(frozen=True)
class Labelled:
    """A scan in memory with its label (0/1) on the same grid, and where the label's voxels are."""

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
    """Draws samples for one model: crops of `side` voxels with up to `max_points` clicks.

    `negatives=False`: positive clicks only, for a model without polarity.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        side: int,
        max_points: int,
        augmentation: Augmentation,
        negatives: bool = True,
    ) -> None:
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.side, self.max_points, self.negatives = side, max_points, negatives

    def draw(self, case: Labelled, rng: np.random.Generator) -> Sample:
        """`crop` (1, D, H, W) float32, `label` (1, D, H, W) float32 0/1, `points` (N, 3), `labels` (N,) int64.

        The first point is a positive click on a voxel of the label, or beside the tumour, and then the label is empty.
        """
        a = self.augmentation
        case = self._cut_margins(case, rng)
        zoom = float(rng.uniform(*a.zoom))
        varied = self.preprocessing.model_copy(
            update={"spacing_mm": tuple(s * zoom for s in self.preprocessing.spacing_mm)}
        )
        lattice = varied.lattice(case.scan.grid)
        click = self._background_click(case, rng) if rng.random() < a.background else None
        background = click is not None
        if click is None:
            click = case.foreground[rng.integers(len(case.foreground))]
        centre = case.scan.grid.index_in(lattice, click)
        if rng.random() < a.off_centre:
            reach = np.minimum(a.off_centre_mm / np.array(varied.spacing_mm), self.side // 2 - 1)  # stay in the crop
            centre = centre + rng.uniform(-1, 1, 3) * reach
        window = Window.around(lattice, centre, (self.side,) * 3)
        crop = self._vary_intensity(read_crop(case.scan, window, varied), window, rng)
        label = self._read_label(case.label, window)
        at = np.rint(case.scan.grid.index_in(window.grid, click)).astype(int).clip(0, self.side - 1)
        if not background:
            label[tuple(at)] = True  # a lesion thinner than the crop's voxels must not vanish under its click
        crop, label, at = self._turn(crop, label, at, rng)
        points, labels = self._clicks(label, at, background, rng)
        target = np.zeros_like(label) if background else label
        return {"crop": crop[None], "label": target[None].astype(np.float32), "points": points, "labels": labels}

    def _cut_margins(self, case: Labelled, rng: np.random.Generator) -> Labelled:
        """The case cut to random margins around its tumour, so that a scan's borders give nothing away."""
        spacing = case.scan.grid.spacing_mm
        margins = rng.uniform(*self.augmentation.margin_mm, size=(2, 3)) / spacing
        low = np.maximum(case.foreground.min(0) - margins[0], 0).astype(int)
        high = np.minimum(case.foreground.max(0) + margins[1] + 1, case.scan.grid.shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = case.scan.grid.crop(low.tolist(), (high - low).tolist())
        scan = Volume(case.scan.array[box], grid, case.scan.modality)
        return Labelled(scan, Volume(case.label.array[box], grid), case.foreground - low.astype(np.int32))

    def _background_click(self, case: Labelled, rng: np.random.Generator) -> NDArray | None:
        """A voxel of the body outside the tumour, or None if fifty tries find none."""
        tries = rng.integers(0, case.label.array.shape, size=(50, 3))
        outside = case.label.array[tuple(tries.T)] == 0
        body = case.scan.array[tuple(tries.T)] > -200
        good = tries[outside & body]
        return good[0] if len(good) else None

    def _vary_intensity(self, crop: NDArray, window: Window, rng: np.random.Generator) -> NDArray:
        a, sd = self.augmentation, self.preprocessing.sd
        inside = window.inside()
        part = crop[inside]
        noise = rng.standard_normal(part.shape, dtype=np.float32) * (rng.random() * a.noise / sd)
        if rng.random() < 0.5:
            noise = 2.5 * scipy.ndimage.gaussian_filter(noise, 0.7)
        factor = 1 + a.scale * float(np.clip(rng.standard_normal(), -2.5, 2.5))
        offset = a.shift * float(np.clip(rng.standard_normal(), -2.5, 2.5)) / sd
        crop[inside] = part * factor + offset + noise
        return crop

    def _read_label(self, label: Volume, window: Window) -> NDArray[np.bool_]:
        out = np.zeros(window.shape, dtype=bool)
        inside = window.inside()
        if all(p.stop > p.start for p in inside):
            grid = window.grid.crop([p.start for p in inside], [p.stop - p.start for p in inside])
            out[inside] = resample(label, grid, "area") > 0.5
        return out

    def _turn(
        self, crop: NDArray, label: NDArray, at: NDArray, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray, NDArray]:
        at = at.copy()
        for axis in range(3):
            if rng.random() < self.augmentation.flip:
                crop, label = np.flip(crop, axis), np.flip(label, axis)
                at[axis] = self.side - 1 - at[axis]
        if rng.random() < self.augmentation.rotate:
            crop, label, at = crop.swapaxes(1, 2), label.swapaxes(1, 2), at[[0, 2, 1]]
        return np.ascontiguousarray(crop), np.ascontiguousarray(label), at

    def _clicks(
        self, label: NDArray, first: NDArray, background: bool, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The first click, then at times a random number of more: inside the label, and beside it as negatives."""
        points = np.zeros((self.max_points, 3), dtype=np.float32)
        labels = np.full(self.max_points, -1, dtype=np.int64)
        points[0], labels[0] = first, 1
        if not background and self.max_points > 1 and rng.random() < 0.5:
            inside = np.argwhere(label)
            ring = np.argwhere(scipy.ndimage.binary_dilation(label, iterations=4) & ~label)
            for slot in range(1, 1 + int(rng.integers(1, self.max_points))):
                positive = rng.random() < 0.5 or not self.negatives
                pool = inside if positive else ring
                if len(pool):
                    points[slot], labels[slot] = pool[rng.integers(len(pool))], int(positive)
        return points, labels

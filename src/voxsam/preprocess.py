"""From a scan to a normalised crop and back: the preprocessing that a checkpoint records, and the crop's window.

The model reads a scan on its *model grid*: the scan's grid with the model's axes and spacing, starting at the same
outer corner. A *window* is a box of whole model grid voxels; it may reach outside the scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from voxsam.geometry import Grid
from voxsam.resample import resample
from voxsam.volume import Volume

Slices = tuple[slice, slice, slice]

# Model files bring their own values: these bounds keep a damaged or malicious file from arithmetic that overflows.
Value = Annotated[float, Field(ge=-1e9, le=1e9)]  # an intensity
Spread = Annotated[float, Field(ge=1e-9, le=1e9)]  # a s.d. of intensities
Spacing = Annotated[float, Field(ge=1e-3, le=1e3)]  # mm


class Intensity(BaseModel):
    """Intensity normalisation of one image channel; clip, mean and s.d. are in the scan's unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    modality: str = "CT"
    clip: tuple[Value, Value]
    mean: Value
    sd: Spread
    per_scan: bool = False  # standardise each scan first (MR has no unit); the numbers above are then in its s.d.
    standardise_others: bool = False  # in use, not in training: standardise a scan of another modality to mean and sd

    @field_validator("clip")
    @classmethod
    def _rising(cls, clip: tuple[float, float]) -> tuple[float, float]:
        if clip[0] >= clip[1]:
            raise ValueError("the lower bound must lie below the upper one")
        return clip

    def normalise(self, array: NDArray) -> NDArray[np.float32]:
        """Clip, subtract the mean, divide by the s.d. (of the foreground voxels of the training set)."""
        values = np.clip(array, *self.clip)  # a new array, on which the rest works in place
        values -= self.mean
        values /= self.sd
        return values.astype(np.float32, copy=False)


STANDARDISED: dict[str, Any] = {"clip": (-5.0, 10.0), "mean": 0.0, "sd": 1.0, "per_scan": True}  # for an MR model
SAMPLED = 2_000_000  # voxels of a scan from which statistics are taken, at most
TAILS = (1.0, 99.0)  # percentiles of the foreground; values beyond them are left out


def standardised(scan: Volume, mean: float = 0.0, sd: float = 1.0) -> Volume:
    """The scan (float32), its foreground standardised to `mean` and `sd`, so that gain and offset do not matter.

    Foreground is whatever is brighter than the scan's mean, without its darkest and brightest hundredth: the head, not
    the air around it, whether or not the air has been set to 0.
    """
    array = np.asarray(scan.array[...], dtype=np.float32)
    some = array.reshape(-1)[:: -(-array.size // SAMPLED)]
    foreground = some[some > some.mean(dtype=np.float64)]
    if not len(foreground):
        return scan.with_array(np.full_like(array, mean))
    low, high = np.percentile(foreground, TAILS)
    middle = foreground[(foreground >= low) & (foreground <= high)].astype(np.float64)
    values = array - np.float32(middle.mean())
    values /= np.float32((middle.std() or 1.0) / sd)
    values += np.float32(mean)
    return scan.with_array(values)


class Preprocessing(Intensity):
    """How a model's crops are made: their model grid, and the normalisation of the first image and `additional` ones.

    `axes` names the directions in which (d, h, w) increase, e.g. "SAR".
    """

    axes: str = "SAR"
    spacing_mm: tuple[Spacing, Spacing, Spacing] = (1.0, 1.0, 1.0)
    spacing_range_mm: tuple[Spacing, Spacing] | None = None  # finest and coarsest: a lesion's size chooses in between
    interpolation: Literal["linear", "area"] = "linear"  # "area" averages where the scan is finer than the crop
    # model files of 0.1 call it `further`
    additional: tuple[Intensity, ...] = Field(
        default=(), validation_alias=AliasChoices("additional", "further")
    )  # images besides the first, on the same model grid: further MR sequences, say

    @field_validator("axes")
    @classmethod
    def _three_axes(cls, axes: str) -> str:
        if sorted(axes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
            raise ValueError("one letter each of R/L, A/P, S/I")
        return axes

    @field_validator("spacing_range_mm")
    @classmethod
    def _range(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError("the finest spacing first")
        return ends

    @property
    def channels(self) -> int:
        """Number of images in a crop."""
        return 1 + len(self.additional)

    def channel(self, number: int) -> Preprocessing:
        """The preprocessing of one image on the same model grid: the first (0), or an additional one."""
        own = {} if number == 0 else self.additional[number - 1].model_dump()
        return self.model_copy(update={**own, "additional": ()})

    def with_channels(self, others: Sequence[Intensity]) -> Preprocessing:
        """The same preprocessing with additional images, normalised as `others` say."""
        kept = ({name: getattr(other, name) for name in Intensity.model_fields} for other in others)
        return self.model_copy(update={"additional": tuple(Intensity.model_validate(fields) for fields in kept)})

    def model_grid(self, grid: Grid, spacing_mm: Sequence[float] | None = None) -> Grid:
        """The scan's grid at the model's axes and spacing, or at another spacing."""
        return grid.reorient(self.axes).respace(self.spacing_mm if spacing_mm is None else spacing_mm)


# docs/released.md, "Axes" and "Intensities and spacing". KiTS files are stored I,P,L and were read as they are; MSD
# files are R,A,S and were read with the order reversed. LiTS is taken to be stored like MSD.
RELEASED = {
    "kits": Preprocessing(axes="IPL", clip=(-54, 247), mean=59.53867, sd=55.457336),
    "lits": Preprocessing(clip=(-48, 163), mean=60.057533, sd=40.198017),
    "pancreas": Preprocessing(clip=(-39, 204), mean=68.45214, sd=63.422806),
    "colon": Preprocessing(clip=(-57, 175), mean=65.175035, sd=32.651197),
}
PAPER = {
    "kits": RELEASED["kits"].model_copy(update={"clip": (-52.0, 247.0)}),
    "lits": RELEASED["lits"].model_copy(update={"clip": (-17.0, 201.0), "mean": 99.40, "sd": 39.39}),
    "pancreas": RELEASED["pancreas"],
    "colon": RELEASED["colon"],
}


@dataclass(frozen=True)
class Window:
    """A box of a model grid: its first voxel and its shape, in model grid voxels (d, h, w)."""

    model_grid: Grid
    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    @classmethod
    def around(cls, model_grid: Grid, centre: ArrayLike, shape: Sequence[int]) -> Window:
        """The window whose voxel shape // 2 is nearest to the index `centre` of the model grid, as released."""
        start = np.floor(np.asarray(centre, dtype=float) + 0.5).astype(int) - np.asarray(shape) // 2
        return cls(model_grid, tuple(int(s) for s in start), tuple(int(n) for n in shape))  # type: ignore[arg-type]

    @classmethod
    def of_box(cls, model_grid: Grid, box: Slices) -> Window:
        """The window that covers a box of model grid voxels."""
        start, shape = [part.start for part in box], [part.stop - part.start for part in box]
        return cls(model_grid, tuple(start), tuple(shape))  # type: ignore[arg-type]

    @property
    def box(self) -> Slices:
        """The window as a box of model grid voxels; its starts may be negative."""
        i, j, k = (slice(start, start + n) for start, n in zip(self.start, self.shape, strict=True))
        return i, j, k

    @property
    def grid(self) -> Grid:
        """Grid of the crop in the window."""
        return self.model_grid.crop(self.start, self.shape)

    def mirrored(self) -> Window:
        """The same box on the model grid with its last axis (w) reversed: its crop is this one's mirror image."""
        d, h, w = self.start
        return Window(self.model_grid.mirrored(), (d, h, self.model_grid.shape[2] - w - self.shape[2]), self.shape)

    def inside(self) -> Slices:
        """The part of the crop, in crop voxels, that lies in the model grid; the rest is padding."""
        return tuple(  # type: ignore[return-value]
            slice(min(max(0, -s), n), max(0, min(n, length - s)))
            for s, n, length in zip(self.start, self.shape, self.model_grid.shape, strict=True)
        )


def read_crop(volume: Volume, window: Window, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(window.shape) normalised crop, 0 outside the scan as released; only the scan's voxels under it are read."""
    crop = np.zeros(window.shape, dtype=np.float32)
    inside = window.inside()
    if all(part.stop > part.start for part in inside):
        grid = window.grid.crop([p.start for p in inside], [p.stop - p.start for p in inside])
        crop[inside] = preprocessing.normalise(resample(volume, grid, preprocessing.interpolation))
    return crop


def read_crops(volumes: Sequence[Volume], window: Window, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(K, window.shape) normalised crops of K images, each as its channel requires; their grids may differ."""
    each = (preprocessing.channel(number) for number in range(len(volumes)))
    return np.stack([read_crop(volume, window, one) for volume, one in zip(volumes, each, strict=True)])


def standardised_as(images: Sequence[Volume], preprocessing: Preprocessing) -> tuple[Volume, ...]:
    """The images, standardised where their channel is `per_scan`."""
    each = (preprocessing.channel(number) for number in range(len(images)))
    return tuple(standardised(one) if how.per_scan else one for one, how in zip(images, each, strict=True))


def paste_box(window: Window, scan: Grid) -> Slices:
    """The box of the scan's voxels that a crop can reach: one model grid voxel beyond its outermost centres.

    At the end of the model grid it is two, since the scan may extend up to a voxel beyond the last whole one.
    """
    ends = [
        (p.start - 1, p.stop + (s + p.stop >= length))
        for s, p, length in zip(window.start, window.inside(), window.model_grid.shape, strict=True)
    ]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    at = window.grid.index_in(scan, corners)
    low = np.maximum(np.floor(at.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(at.max(0)).astype(int) + 1, scan.shape)
    return tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def paste(crop: NDArray[np.float32], window: Window, scan: Grid) -> tuple[Slices, NDArray[np.float32]]:
    """A crop's probabilities resampled to the scan: the box of the scan that they reach, and their values there.

    Linear interpolation; 0 beyond the crop, but at the border of the scan itself the outermost value continues.
    """
    inside = window.inside()
    box = paste_box(window, scan)
    borders = [
        (s + p.start <= 0, s + p.stop >= length)
        for s, p, length in zip(window.start, inside, window.model_grid.shape, strict=True)
    ]
    values = np.pad(crop[inside], 1)
    for axis, (at_start, at_end) in enumerate(borders):
        moved = np.moveaxis(values, axis, 0)
        if at_start:
            moved[0] = moved[1]
        if at_end:
            moved[-1] = moved[-2]
    source = window.grid.crop([p.start - 1 for p in inside], values.shape)
    target = scan.crop([b.start for b in box], [b.stop - b.start for b in box])
    return box, resample(Volume(values, source), target)

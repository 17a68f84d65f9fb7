"""The fingerprint of a data set: the intensities of its tumours, its spacing, and the spacing to prepare it at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from voxsam.errors import InternalError

Triple = tuple[float, float, float]

CLIP_PERCENT = (0.5, 99.5)
QUANTILES = 1000  # kept of one case: ranks within 0.05 %
ANISOTROPY = 3.0  # a coarsest axis this many times coarser than the others is treated by itself, as in nnU-Net
COARSE_PERCENTILE = 10


class Sketch(BaseModel):
    """The foreground intensities of one case and channel: exact moments, and at most QUANTILES values of even rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    mean: float
    sd: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: NDArray) -> Sketch:
        """Of all values of the foreground, (n,) in the scan's unit."""
        ordered = np.sort(values)
        count = len(ordered)
        if count > QUANTILES:
            ranks = np.rint((np.arange(QUANTILES) + 0.5) / QUANTILES * count - 0.5).astype(int)
            ordered = ordered[ranks]
        mean, sd = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        return cls(voxels=count, mean=mean, sd=sd, quantiles=tuple(ordered.tolist()))


class Intensities(BaseModel):
    """One channel's foreground over many cases: number of voxels, 0.5 and 99.5 percentile, mean, s.d."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    low: float
    high: float
    mean: float
    sd: float

    @classmethod
    def merge(cls, sketches: Sequence[Sketch]) -> Intensities:
        """Every voxel of every case counts alike, as in the released statistics. Raises InternalError for none."""
        counts = np.array([s.voxels for s in sketches], dtype=float)
        total = counts.sum()
        if total < 1:
            raise InternalError("a fingerprint without foreground voxels")
        means, sds = np.array([(s.mean, s.sd) for s in sketches]).T
        mean = (counts * means).sum() / total
        variance = (counts * (sds**2 + (means - mean) ** 2)).sum() / total
        values = np.concatenate([s.quantiles for s in sketches])
        weights = np.concatenate([np.full(len(s.quantiles), s.voxels / len(s.quantiles)) for s in sketches])
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order]
        ranks = np.cumsum(weights) - weights / 2 - 0.5  # of single voxels: 0, 1, 2, ... as in numpy.percentile
        low, high = np.interp(np.array(CLIP_PERCENT) / 100 * (total - 1), ranks, values)
        return cls(voxels=int(total), low=float(low), high=float(high), mean=float(mean), sd=float(variance**0.5))


class Fingerprint(BaseModel):
    """What a data set is like; lengths along the model's axes, medians over the cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    channels: tuple[Intensities, ...]
    spacing_mm: Triple
    shape: Triple
    volume_ml: float  # of the tumour


def choose_spacing(spacings_mm: ArrayLike, shapes: ArrayLike) -> Triple:
    """A spacing (mm) for cases with spacings (n, 3) and shapes (n, 3), along the same axes: nnU-Net's rule.

    The median of each axis. If one axis is more than three times coarser than both others and has fewer than a third
    of their voxels, its 10th percentile, but not below the others: else thick slices would decide for thin ones.
    Source: Isensee et al. 2021, supplementary note 2.
    """
    spacings = np.asarray(spacings_mm, dtype=float).reshape(-1, 3)
    target = np.median(spacings, axis=0)
    voxels = np.median(np.asarray(shapes, dtype=float).reshape(-1, 3), axis=0)
    coarse = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    if target[coarse] > ANISOTROPY * target[others].max() and voxels[coarse] * ANISOTROPY < voxels[others].min():
        target[coarse] = max(np.percentile(spacings[:, coarse], COARSE_PERCENTILE), target[others].max())
    a, b, c = (round(float(s), 6) for s in target)
    return a, b, c

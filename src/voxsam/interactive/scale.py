"""The spacing that suits a lesion: the one at which it is about a third of the crop across, found by looking.

A first click is looked at with the finest, a middle and the coarsest spacing, and the look with the surest mask
counts. If that mask is too small or too large there, another spacing is tried. Spacings come from a ladder, so that
nearby and later clicks find their crops already encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.interactive.crops import THRESHOLD, Piece
from voxsam.preprocess import Preprocessing, Window

ACROSS = 22 / 64  # of the crop's side: usual diameter, as of a ball of equal volume, of what networks train on
KEPT_ACROSS = (19 / 64, 36 / 64)  # within which a spacing is kept
CORRECTED_ACROSS = (15 / 64, 36 / 64)  # after negative clicks: a mask that they shrank needs no closer look
STEP = 1.3  # factor from one spacing of the ladder to the next, at most
MAX_CHANGES = 2  # of spacing after the first looks
LARGER = 0.02  # how much less sure a mask e times as wide may be: a small, sure mask is often only a part
ROOM = 0.75  # of the crop's side in which all clicks should lie


@dataclass(frozen=True)
class Scale:
    """The spacings (mm, from fine to coarse) at which a model looks, and its crop's side in voxels."""

    ladder: tuple[float, ...]
    side: int

    @classmethod
    def of(cls, preprocessing: Preprocessing, side: int) -> Scale | None:
        """The ladder of a general model; None for a model with a single spacing."""
        if preprocessing.spacing_range_mm is None:
            return None
        low, high = preprocessing.spacing_range_mm
        steps = int(np.ceil(np.log(high / low) / np.log(STEP) - 1e-9))
        return cls(tuple(float(f"{s:.4g}") for s in np.geomspace(low, high, steps + 1)), side)

    def first(self, clicks_mm: NDArray[np.float64], current: Sequence[Window]) -> tuple[float, ...]:
        """The spacing of the current windows, else three to begin with; coarser if the clicks need more room.

        `clicks_mm` are (N, 3) positions in mm along the axes of the model grid.
        """
        if current:
            known = float(current[0].model_grid.spacing_mm.max())
            starts = [min(self.ladder, key=lambda s: abs(np.log(s / known)))]
        else:
            starts = [self.ladder[n] for n in (0, len(self.ladder) // 2, -1)]
        return tuple(dict.fromkeys(self._with_room(start, clicks_mm) for start in starts))

    @staticmethod
    def preference(across: float, sure: float) -> float:
        """Score of a look by its mask's width in voxels and mean probability; the look with the highest counts."""
        return sure + LARGER * float(np.log(across + 0.5))

    def next(self, spacing: float, across: float, clicks_mm: NDArray[np.float64], corrected: bool = False) -> float:
        """The spacing that suits a mask `across` voxels wide at `spacing`: often the same.

        `corrected` means by negative clicks, in a mask that was seen before. With `across` 0 the click is not in its
        mask, as for a lesion too small for the voxels to show, and half the spacing is wanted.
        """
        part = across / self.side
        low, high = CORRECTED_ACROSS if corrected else KEPT_ACROSS
        if low <= part <= high:
            return spacing
        wanted = spacing * part / ACROSS if across else spacing / 2
        nearest = min(self.ladder, key=lambda s: abs(np.log(s / wanted)))
        return self._with_room(nearest, clicks_mm)

    def _with_room(self, spacing: float, clicks_mm: NDArray[np.float64]) -> float:
        """The finest spacing, from this one up, whose crop holds all clicks well inside; the coarsest if none does."""
        span = float(np.ptp(clicks_mm, axis=0).max())
        able = [s for s in self.ladder if s >= spacing and s * self.side * ROOM >= span]
        return able[0] if able else self.ladder[-1]


def clicked_extent(pieces: Sequence[Piece], clicks_mm: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Diameter and mean probability of the clicked components of the mask; (0, 0) if there are none.

    The diameter, in voxels of the model grid, is that of a ball of their volume. A component that reaches beyond its
    crop counts as larger than it is seen: each face of the crop that it reaches adds half its volume.
    """
    volume, total, factor = 0, 0.0, 1.0
    for window, probability in pieces:
        parts = np.zeros(probability.shape, dtype=np.int32)
        scipy.ndimage.label(probability > THRESHOLD, output=parts)
        at = np.rint(window.model_grid.world_to_index(clicks_mm) - window.start).astype(int)
        inside = ((at >= 0) & (at < window.shape)).all(1)
        numbers = {int(parts[tuple(place)]) for place in at[inside]} - {0}
        clicked = np.isin(parts, list(numbers))
        volume += int(clicked.sum())
        total += float(probability[clicked].sum(dtype=np.float64))
        ends = [np.moveaxis(clicked, axis, 0)[[0, -1]].any(axis=(1, 2)) for axis in range(3)]
        factor = max(factor, 1 + 0.5 * float(np.sum(ends)))
    return float(np.cbrt(6 * volume * factor / np.pi)), total / max(1, volume)

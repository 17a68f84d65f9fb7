"""Which voxel size a lesion asks for: so large that it is about a third of the crop across, chosen by looking.

A first click is looked at with the finest, a middle and the coarsest spacing, and the look with the surest mask
counts. If that mask is too small or too large there, it asks for yet another spacing. Spacings come from a ladder, so
that clicks nearby, and later ones, find their crops encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.interactive.crops import THRESHOLD, Piece
from voxsam.preprocess import Preprocessing, Window

ACROSS = 22 / 64  # of the crop's side: diameter, as a ball of its volume, of what networks are trained on most
KEPT_ACROSS = (19 / 64, 36 / 64)  # within which a spacing is kept
CORRECTED_ACROSS = (15 / 64, 36 / 64)  # and after negative clicks: what they take away asks for no closer look
STEP = 1.3  # from one spacing of the ladder to the next, at most
MAX_CHANGES = 2  # of spacing after the first looks
LARGER = 0.02  # by so much less sure a mask may be that is e times as large: what is small and sure is often a part
ROOM = 0.75  # of the crop's side in which all clicks should lie


@dataclass(frozen=True)
class Scale:
    """The spacings (mm, from fine to coarse) that a model looks with, and its crop's side in voxels."""

    ladder: tuple[float, ...]
    side: int

    @classmethod
    def of(cls, preprocessing: Preprocessing, side: int) -> Scale | None:
        """The ladder of a model for many sizes; None for one that has one spacing."""
        if preprocessing.spacing_range_mm is None:
            return None
        low, high = preprocessing.spacing_range_mm
        steps = int(np.ceil(np.log(high / low) / np.log(STEP) - 1e-9))
        return cls(tuple(float(f"{s:.4g}") for s in np.geomspace(low, high, steps + 1)), side)

    def first(self, clicks_mm: NDArray[np.float64], current: Sequence[Window]) -> tuple[float, ...]:
        """The spacing of the windows so far, else three to begin with; coarser if the clicks need more room.

        They are (N, 3) places in mm along the axes of the model grid.
        """
        if current:
            known = float(current[0].model_grid.spacing_mm.max())
            starts = [min(self.ladder, key=lambda s: abs(np.log(s / known)))]
        else:
            starts = [self.ladder[n] for n in (0, len(self.ladder) // 2, -1)]
        return tuple(dict.fromkeys(self._with_room(start, clicks_mm) for start in starts))

    @staticmethod
    def preference(across: float, sure: float) -> float:
        """The greater, the sooner a look with a mask of so many voxels across and such a mean probability counts."""
        return sure + LARGER * float(np.log(across + 0.5))

    def next(self, spacing: float, across: float, clicks_mm: NDArray[np.float64], corrected: bool = False) -> float:
        """The spacing that a mask of so many voxels `across`, seen at `spacing`, asks for: often the same.

        `corrected`: by negative clicks, in a mask that was seen before. 0 across: the click is not in its mask, as when
        the lesion is smaller than voxels can show: half the spacing.
        """
        part = across / self.side
        low, high = CORRECTED_ACROSS if corrected else KEPT_ACROSS
        if low <= part <= high:
            return spacing
        wanted = spacing * part / ACROSS if across else spacing / 2
        nearest = min(self.ladder, key=lambda s: abs(np.log(s / wanted)))
        return self._with_room(nearest, clicks_mm)

    def _with_room(self, spacing: float, clicks_mm: NDArray[np.float64]) -> float:
        """It, or the finest coarser one whose crop holds all clicks well inside; the coarsest if none does."""
        span = float(np.ptp(clicks_mm, axis=0).max())
        able = [s for s in self.ladder if s >= spacing and s * self.side * ROOM >= span]
        return able[0] if able else self.ladder[-1]


def clicked_extent(pieces: Sequence[Piece], clicks_mm: Sequence[Sequence[float]]) -> tuple[float, float]:
    """How large and how sure the parts of the mask are that have clicks in them; (0, 0) if there is none.

    The first is the diameter, in voxels of the model grid, of a ball of their volume. A part that fills its crop counts
    as larger than it is seen: a face of the crop that it reaches adds a half. The second is their mean probability.
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

"""Which voxel size a lesion asks for: so large that it is about a third of the crop across, chosen by looking.

The first look is at a middle spacing. What its mask measures asks for another spacing, or for none; a few looks decide.
Spacings come from a ladder, so that clicks nearby, and later ones, find their crops encoded.
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
KEPT_ACROSS = (13 / 64, 36 / 64)  # within which a spacing is kept
STEP = 1.3  # from one spacing of the ladder to the next, at most
MAX_LOOKS = 3
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

    def first(self, clicks_mm: NDArray[np.float64], current: Sequence[Window]) -> float:
        """The spacing of the windows so far, else the ladder's middle; coarser if the clicks (N, 3) need more room."""
        if current:
            known = float(current[0].model_grid.spacing_mm.max())
            start = min(self.ladder, key=lambda s: abs(np.log(s / known)))
        else:
            start = self.ladder[len(self.ladder) // 2]
        return self._with_room(start, clicks_mm)

    def next(self, spacing: float, across: float, clicks_mm: NDArray[np.float64]) -> float:
        """The spacing that a mask of so many voxels `across`, seen at `spacing`, asks for: often the same.

        0 across: the click is not in its mask, as when the lesion is smaller than voxels can show: half the spacing.
        """
        part = across / self.side
        if KEPT_ACROSS[0] <= part <= KEPT_ACROSS[1]:
            return spacing
        wanted = spacing * part / ACROSS if across else spacing / 2
        nearest = min(self.ladder, key=lambda s: abs(np.log(s / wanted)))
        return self._with_room(nearest, clicks_mm)

    def _with_room(self, spacing: float, clicks_mm: NDArray[np.float64]) -> float:
        """It, or the finest coarser one whose crop holds all clicks well inside; the coarsest if none does."""
        span = float(np.ptp(clicks_mm, axis=0).max())
        able = [s for s in self.ladder if s >= spacing and s * self.side * ROOM >= span]
        return able[0] if able else self.ladder[-1]


def voxels_across(pieces: Sequence[Piece], clicks_mm: Sequence[Sequence[float]]) -> float:
    """The diameter, in voxels of the model grid, of a ball as large as the parts of the mask that have clicks in them.

    A part that fills its crop counts as larger than it is seen: a face of the crop that it reaches adds a half.
    """
    volume, factor = 0, 1.0
    for window, probability in pieces:
        parts = np.zeros(probability.shape, dtype=np.int32)
        scipy.ndimage.label(probability > THRESHOLD, output=parts)
        at = np.rint(window.model_grid.world_to_index(clicks_mm) - window.start).astype(int)
        inside = ((at >= 0) & (at < window.shape)).all(1)
        numbers = {int(parts[tuple(place)]) for place in at[inside]} - {0}
        clicked = np.isin(parts, list(numbers))
        volume += int(clicked.sum())
        ends = [np.moveaxis(clicked, axis, 0)[[0, -1]].any(axis=(1, 2)) for axis in range(3)]
        factor = max(factor, 1 + 0.5 * float(np.sum(ends)))
    return float(np.cbrt(6 * volume * factor / np.pi))

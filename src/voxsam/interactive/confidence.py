"""Confidence: how good a mask probably is, calibrated, from what the prediction and the crop look like.

Signals are measured in the crop of the first click, on the components of the mask that were clicked. The calibration
in the model's card turns them into an expected Dice, an interval of the volume, and a warning where what was clicked
may be no lesion at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.interactive.crops import THRESHOLD, Encoded, Piece
from voxsam.network.calibration import Calibration
from voxsam.prompts import Point

SHELL, FAR = 2, 4  # widths in voxels: of the mask's surroundings, and of the wider shell around these
VAGUE = (0.1, 0.9)  # probabilities between these are vague
FEW = 1e-3
SIGNALS = 25
COUNTS = slice(15, 17)  # those that count positive and negative clicks


@dataclass(frozen=True)
class Confidence:
    """How good a mask probably is, calibrated on validation lesions, for a model with a calibration in its card."""

    dice: float  # expected, 0 to 1
    volume_ml: tuple[float, float]  # holds the lesion's true volume in 80 % of cases
    doubtful: bool  # what was clicked may be no lesion

    def __str__(self) -> str:
        low, high = self.volume_ml
        return f"expected Dice {self.dice:.2f}, volume {low:.3g} to {high:.3g} mL (80 %)"

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON: `dice`, the ends of `volume_ml`, `doubtful`."""
        low, high = self.volume_ml
        return {"dice": round(self.dice, 3), "volume_ml": [round(low, 4), round(high, 4)], "doubtful": self.doubtful}


def confidence(
    calibration: Calibration, pieces: Sequence[Piece], clicks: Sequence[Point], encoded: Encoded, volume_ml: float
) -> Confidence:
    """The confidence in a mask of `volume_ml` made from `pieces`, the first of which is the crop `encoded`."""
    found = calibration.judge(signals(pieces, clicks, encoded))
    low, high = found.ratios
    doubtful = found.lesion < calibration.warn_below
    return Confidence(found.dice, (low * volume_ml, high * volume_ml), doubtful)


def signals(pieces: Sequence[Piece], clicks: Sequence[Point], encoded: Encoded) -> NDArray[np.float64]:
    """(SIGNALS,) what tells a good mask from a bad one: how sure it is, its size, shape and surroundings."""
    window, probability = pieces[0]
    places = window.model_grid.world_to_index([click.world_mm for click in clicks]) - window.start
    positive = np.array([click.positive for click in clicks], dtype=bool)
    at = np.rint(places).astype(int)
    inside_crop = np.logical_and(at >= 0, at < np.array(window.shape)).all(1)
    here = at[np.logical_and(positive, inside_crop)]
    mask = probability > THRESHOLD
    parts = np.zeros(mask.shape, dtype=np.int32)
    scipy.ndimage.label(mask, output=parts)
    numbers = np.setdiff1d(parts[tuple(here.T)], [0])
    clicked = np.isin(parts, numbers) if len(numbers) else mask
    voxels = int(clicked.sum())
    across = np.cbrt(6 * voxels / np.pi)
    surface = voxels - int(scipy.ndimage.binary_erosion(clicked, border_value=1).sum())
    faces = sum(bool(np.moveaxis(clicked, axis, 0)[end].any()) for axis in range(3) for end in (0, -1))
    core = clicked if voxels else _marked(clicked.shape, here)
    inside, around, far = _zones(encoded.crop[0, 0].float().cpu().numpy(), core)
    sd_in, sd_out = inside.std() + FEW, around.std() + FEW
    spread, full = _shape(core)
    low, high = inside.mean() - sd_in, inside.mean() + sd_in
    measured = [
        float(probability[clicked].mean()) if voxels else 0.0,
        np.log1p(int(((probability > VAGUE[0]) & (probability < VAGUE[1])).sum()) / (voxels + 1)),
        float(probability[tuple(here.T)].mean()) if len(here) else 0.0,
        float(len(numbers) == 0),
        np.log1p(across),
        np.log((across + 1) * float(window.model_grid.spacing_mm.max())),
        surface / (voxels ** (2 / 3) + 1),
        abs(inside.mean() - around.mean()) / np.hypot(sd_in, sd_out),
        np.clip(inside.mean() - around.mean(), -3, 3),
        np.log(sd_in),
        np.log(sd_out),
        np.clip(inside.mean(), -4, 4),
        np.clip(around.mean(), -4, 4),
        1 - voxels / max(1, int(mask.sum())),
        faces / 6,
        np.log(max(1, int(positive.sum()))),
        np.log1p(int((~positive).sum())),
        spread,
        full,
        *((zone > high).mean() for zone in (around, far)),
        *((zone < low).mean() for zone in (around, far)),
        np.log(far.std() + FEW),
        np.clip(far.mean(), -4, 4),
    ]
    return np.array(measured, dtype=np.float64)


def _marked(shape: tuple[int, ...], here: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Mask of these voxels of a crop, or of its middle one if there are none: stands in for an empty mask."""
    marked = np.zeros(shape, dtype=bool)
    marked[tuple(here.T) if len(here) else tuple(n // 2 for n in shape)] = True
    return marked


def _zones(image: NDArray[np.float32], core: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
    """The crop's values in a mask, a shell around it, and a wider one around that; an empty shell repeats the last."""
    zones, within = [image[core]], core
    for width in (SHELL, FAR):
        grown = scipy.ndimage.binary_dilation(within, iterations=width)
        shell = np.logical_and(grown, ~within)
        zones.append(image[shell] if shell.any() else zones[-1])
        within = grown
    return zones


def _shape(core: NDArray[np.bool_]) -> tuple[float, float]:
    """Log of a mask's radius of gyration over that of an equal ball, and the fraction of its box that it fills."""
    places = np.argwhere(core)
    radius = np.cbrt(3 * len(places) / (4 * np.pi))
    spread = np.sqrt((places.var(0) + 1 / 12).sum())  # a voxel is a cube, not a point
    return float(np.log(spread / (np.sqrt(3 / 5) * radius))), len(places) / float(np.prod(np.ptp(places, axis=0) + 1))

"""Confidence: a calibrated number beside a mask, from what the prediction and the crop look like.

Signals are measured in the crop that the first click chose, on the mask's components that were clicked. The
calibration in the model's card turns them into an expected Dice, an interval of the volume, and a doubt whether what
was clicked is a lesion at all.
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

SHELL = 2  # voxels round the mask that are its surroundings
VAGUE = (0.1, 0.9)  # probabilities between these are vague
FEW = 1e-3
SIGNALS = 17  # and the features of the tokens under the mask


@dataclass(frozen=True)
class Confidence:
    """How good a mask probably is, as calibrated on validation lesions: for a model that says so in its card."""

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
    """Of a mask of `volume_ml`, made from `pieces`, the first of which is the crop `encoded`."""
    found = calibration.judge(signals(pieces, clicks, encoded))
    low, high = found.ratios
    doubtful = found.lesion < calibration.warn_below
    return Confidence(found.dice, (low * volume_ml, high * volume_ml), doubtful)


def signals(pieces: Sequence[Piece], clicks: Sequence[Point], encoded: Encoded) -> NDArray[np.float64]:
    """(SIGNALS + C,) what tells a good mask from a bad one; C is the width of the tokens' features."""
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
    image = encoded.crop[0, 0].float().cpu().numpy()
    inside, around = _either_side(image, clicked, here)
    spacing = float(window.model_grid.spacing_mm.max())
    across = np.cbrt(6 * voxels / np.pi)
    surface = voxels - int(scipy.ndimage.binary_erosion(clicked, border_value=1).sum())
    faces = sum(bool(np.moveaxis(clicked, axis, 0)[end].any()) for axis in range(3) for end in (0, -1))
    sd_in, sd_out = inside.std() + FEW, around.std() + FEW
    measured = [
        float(probability[clicked].mean()) if voxels else 0.0,
        np.log1p(int(((probability > VAGUE[0]) & (probability < VAGUE[1])).sum()) / (voxels + 1)),
        float(probability[tuple(here.T)].mean()) if len(here) else 0.0,
        float(len(numbers) == 0),
        np.log1p(across),
        np.log((across + 1) * spacing),
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
    ]
    return np.concatenate([measured, features_under(encoded.features[-1][0].float().cpu().numpy(), clicked)])


def _either_side(
    image: NDArray[np.float32], clicked: NDArray[np.bool_], here: NDArray[np.int_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The crop's values in the mask and in a shell round it; round the click where there is no mask."""
    if not clicked.any():
        clicked = np.zeros(image.shape, dtype=bool)
        clicked[tuple(here.T) if len(here) else tuple(n // 2 for n in image.shape)] = True
    shell = np.logical_and(scipy.ndimage.binary_dilation(clicked, iterations=SHELL), ~clicked)
    return image[clicked], image[shell] if shell.any() else image[clicked]


def features_under(tokens: NDArray[np.floating], mask: NDArray) -> NDArray[np.float64]:
    """(C,) the mean of a crop's features (C, g, h, w) under a mask (D, H, W) of it; of all of it if that is empty."""
    side = [n // g for n, g in zip(mask.shape, tokens.shape[1:], strict=True)]
    g, h, w = tokens.shape[1:]
    weights = mask[: g * side[0], : h * side[1], : w * side[2]]
    weights = weights.reshape(g, side[0], h, side[1], w, side[2]).mean((1, 3, 5)) + 1e-6
    return (tokens * weights).sum((1, 2, 3)).astype(np.float64) / weights.sum()

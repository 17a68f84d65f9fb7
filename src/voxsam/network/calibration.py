"""Calibration: from a prediction's signals to a confidence; fitted on validation lesions, kept in the card."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

MAX_RATIO = 20.0  # between a volume and the ends of its interval, at most
OUTPUTS = 4  # logit of Dice, logit of "a lesion was clicked", log of the interval's ends over the mask's volume


class Judged(NamedTuple):
    """What a calibration says about one prediction."""

    dice: float  # expected, 0 to 1, if a lesion was clicked
    lesion: float  # 0 to 1: how likely a lesion was clicked
    ratios: tuple[float, float]  # of the lesion's volume to the mask's: the ends of an 80 % interval


class Layer(BaseModel):
    """One affine map; rows of `weights` are outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


class Calibration(BaseModel):
    """A small network of tanh layers on standardised signals, and the probability of a lesion below which it warns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    layers: tuple[Layer, ...]
    warn_below: float
    fitted_on: str = ""  # lesions, for people

    @model_validator(mode="after")
    def _fits(self) -> Calibration:
        width = len(self.centre)
        if len(self.spread) != width or not all(self.spread):
            raise ValueError("a spread other than 0 for each centre is expected")
        for layer in self.layers:
            if len(layer.weights) != len(layer.bias) or any(len(row) != width for row in layer.weights):
                raise ValueError(f"layers that follow one another are expected, {width} numbers wide here")
            width = len(layer.bias)
        if width != OUTPUTS:
            raise ValueError(f"{OUTPUTS} numbers out of the last layer are expected")
        return self

    def judge(self, signals: NDArray[np.floating]) -> Judged:
        """Judge a prediction by its signals (n,)."""
        x = (np.asarray(signals, dtype=np.float64) - self.centre) / self.spread
        for layer in self.layers[:-1]:
            x = np.tanh(np.array(layer.weights) @ x + layer.bias)
        dice, lesion, low, high = np.array(self.layers[-1].weights) @ x + self.layers[-1].bias
        end = np.log(MAX_RATIO)
        low, high = np.clip([min(low, high), max(low, high)], -end, end)
        return Judged(_sigmoid(dice), _sigmoid(lesion), (float(np.exp(low)), float(np.exp(high))))


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))

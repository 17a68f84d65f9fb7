"""Classes: the kinds of structure that a model was trained on, distinguished by the features under a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator


class Classes(BaseModel):
    """For each class its name, its label in the data, and the mean of its training structures' features.

    A structure belongs to the class whose mean is nearest, each feature divided by its spread within the classes:
    linear discriminant analysis with a diagonal covariance and equal priors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    labels: tuple[int, ...]
    means: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]  # standard deviation of each feature within a class

    @model_validator(mode="after")
    def _fits(self) -> Classes:
        if not len(self.names) == len(self.labels) == len(self.means) or len(set(self.names)) < 2:
            raise ValueError("two or more classes are expected, each with its own name, a label and means")
        if any(len(row) != len(self.spread) for row in self.means) or min(self.spread, default=0) <= 0:
            raise ValueError("a spread above 0 for each mean is expected")
        return self

    @classmethod
    def fit(cls, names: Sequence[str], labels: Sequence[int], features: Sequence[NDArray[np.floating]]) -> Classes:
        """Fit to each class's features (n, C) of n structures. Raises ValueError (pydantic's) for fewer than two."""
        means = [rows.mean(0) for rows in features]
        apart = np.concatenate([rows - mean for rows, mean in zip(features, means, strict=True)])
        overall = np.concatenate(features).std(0)
        spread = np.maximum(apart.std(0), 0.05 * overall + 1e-6)  # with one structure per class it is 0
        rows = tuple(tuple(map(float, mean.round(5))) for mean in means)
        return cls(names=tuple(names), labels=tuple(labels), means=rows, spread=tuple(map(float, spread)))

    def name(self, features: NDArray[np.floating]) -> str:
        """The class of a structure with these features (C,)."""
        apart = (np.array(self.means) - features) / self.spread
        return self.names[int((apart**2).sum(1).argmin())]


def features_under(tokens: NDArray[np.floating], mask: NDArray) -> NDArray[np.float64]:
    """(C,) mean of a crop's features (C, g, h, w) under its mask (D, H, W), or of all of them if the mask is empty."""
    side = [n // g for n, g in zip(mask.shape, tokens.shape[1:], strict=True)]
    g, h, w = tokens.shape[1:]
    weights = mask[: g * side[0], : h * side[1], : w * side[2]]
    weights = weights.reshape(g, side[0], h, side[1], w, side[2]).mean((1, 3, 5)) + 1e-6
    return (tokens * weights).sum((1, 2, 3)).astype(np.float64) / weights.sum()

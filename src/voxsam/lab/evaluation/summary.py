"""From rows to numbers for a table: means over cases with bootstrap confidence intervals.

Every case weighs the same: its trials and lesions are averaged first, and intervals are drawn over cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from voxsam.lab.evaluation.protocol import AUTOMATIC, PER_SLICE, RANDOM, Evaluation, ScoredMask

RESAMPLES, LEVEL = 2000, 0.95
MEANS = ("dice", "nsd", "volume_error", "volume_error_abs", "found", "false_lesions")


@dataclass(frozen=True)
class Estimate:
    """A number over cases and its confidence interval; nan where there is none (one case has no interval)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """All numbers of one kind of trial with one number of clicks."""

    kind: str
    clicks: int
    cases: int
    masks: int
    empty_masks: int
    seconds: float  # mean of a mask
    numbers: dict[str, Estimate]  # the names of MEANS, and hd95_mm (a median)

    @property
    def label(self) -> str:
        """How the paper's Table 1 calls it: "3 pts/volume", "3 pts/slice"."""
        per = "slice" if self.kind == PER_SLICE else "volume"
        return self._named(f"{self.clicks} pt{'s' * (self.clicks != 1)}/{per}")

    @property
    def title(self) -> str:
        """How other tables and figures call it: "3 clicks", "3 clicks per slice"."""
        per = " per slice" if self.kind == PER_SLICE else ""
        return self._named(f"{self.clicks} click{'s' * (self.clicks != 1)}{per}")

    def _named(self, clicks: str) -> str:
        if self.kind == AUTOMATIC:
            return self.kind
        return clicks if self.kind in (RANDOM, PER_SLICE) else f"{clicks}, {self.kind}"


def summarise(evaluation: Evaluation) -> list[Line]:
    """One line for each kind and number of clicks, in the order of the rows' first appearance by kind and count."""
    kinds = list(dict.fromkeys(row.kind for row in evaluation.rows))
    groups = sorted({(kinds.index(row.kind), row.clicks) for row in evaluation.rows})
    return [_line(evaluation, kinds[kind], clicks) for kind, clicks in groups]


def rows_of(evaluation: Evaluation, kind: str, clicks: int) -> list[ScoredMask]:
    """The rows of one line."""
    return [row for row in evaluation.rows if (row.kind, row.clicks) == (kind, clicks)]


def number(row: ScoredMask, name: str) -> float:
    """One number of a row: a field of its scores, or `found` (fraction of the lesions) or `volume_error_abs`."""
    scores = row.scores
    if name == "found":
        return scores.lesions_found / scores.lesions if scores.lesions else math.nan
    if name == "volume_error_abs":
        return abs(scores.volume_error)
    return float(getattr(scores, name))


def by_case(rows: Sequence[ScoredMask], name: str) -> dict[str, float]:
    """For each case the mean of a number over its rows that have one (of HD95 the median, which may be infinite)."""
    middle = _median if name == "hd95_mm" else _mean
    return {case: float(middle(np.array([number(row, name) for row in own]))) for case, own in grouped(rows).items()}


def grouped(rows: Sequence[ScoredMask]) -> dict[str, list[ScoredMask]]:
    """The rows of each case, cases in the order of their first row."""
    groups: dict[str, list[ScoredMask]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    return groups


def estimate(values: Sequence[float], seed: int, median: bool = False) -> Estimate:
    """Mean (or median) over cases that have a number, with a 95 % percentile bootstrap interval over those cases."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan)
    middle = partial(_median if median else _mean, axis=-1)
    value = float(middle(known))
    if len(known) == 1:
        return Estimate(value, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    fraction = (1 - LEVEL) / 2
    ordered = np.sort(middle(known[drawn]))
    low, high = (float(ordered[round(q * (RESAMPLES - 1))]) for q in (fraction, 1 - fraction))
    return Estimate(value, low, high)


def _line(evaluation: Evaluation, kind: str, clicks: int) -> Line:
    rows, seed = rows_of(evaluation, kind, clicks), evaluation.settings.seed
    numbers = {name: estimate(list(by_case(rows, name).values()), seed) for name in MEANS}
    numbers["hd95_mm"] = estimate(list(by_case(rows, "hd95_mm").values()), seed, median=True)
    empty = sum(row.scores.mask_ml == 0 for row in rows)
    seconds = float(np.mean([row.seconds for row in rows]))
    return Line(kind, clicks, len({row.case for row in rows}), len(rows), empty, seconds, numbers)


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def _median(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """The middle value, the greater one of two: infinite values count as the largest, and are never averaged."""
    ordered = np.sort(values, axis=axis)
    return np.take(ordered, values.shape[axis] // 2, axis=axis)

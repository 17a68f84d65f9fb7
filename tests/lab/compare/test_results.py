"""The statistics of a comparison against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from voxsam.lab.compare.tables import Found, counterpart, p_value
from voxsam.lab.evaluation.protocol import Evaluation, EvaluationSettings, ScoredMask
from voxsam.lab.evaluation.scores import Scores


def row(case: str, dice: float, kind: str = "random", clicks: int = 1, trial: int = 0) -> ScoredMask:
    scores = Scores(dice, dice, 1.0, 1.0, 1.0, 0.0, 1, 1, 0)
    return ScoredMask(case, 0, kind, trial, clicks, scores, (), 0.1)


def found(*rows: ScoredMask) -> Found:
    evaluation = Evaluation("a", "b", EvaluationSettings(), rows, {})
    return Found(evaluation, (), (evaluation,))


def test_wilcoxon_by_hand() -> None:
    """Six cases, all better: of 2^6 signs two are as far out, p = 2 / 64. Four of five better by more: 2 * 2 / 32."""
    better = {f"c{n}": 0.5 + 0.01 * n for n in range(1, 7)}
    base = dict.fromkeys(better, 0.5)
    assert p_value(better, base) == pytest.approx(2 / 64)
    assert p_value(base, better) == pytest.approx(2 / 64)
    mixed = {"c1": 0.49, "c2": 0.52, "c3": 0.53, "c4": 0.54, "c5": 0.55}  # the smallest difference is the wrong way
    assert p_value(mixed, base) == pytest.approx(4 / 32)


def test_wilcoxon_of_cases_that_do_not_differ() -> None:
    """Ten of fifteen cases without a difference say nothing: p is that of the five others, 2 / 2^5."""
    base = {f"c{n}": 0.0 for n in range(15)}
    assert p_value({**base, **{f"c{n}": 0.1 * (n + 1) for n in range(5)}}, base) == pytest.approx(2 / 32)


def test_wilcoxon_without_enough() -> None:
    assert p_value({"a": 1.0}, {"a": 0.5}) is None
    assert p_value({"a": 1.0, "b": 1.0}, {"c": 0.5}) is None
    assert p_value({"a": 1.0, "b": math.nan}, {"a": 0.5, "b": 0.5}) is None
    assert p_value({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}) == 1.0


def test_a_line_meets_as_many_clicks() -> None:
    reference = found(row("a", 0.5), row("a", 0.6, clicks=3), row("a", 0.7, "corrective", 3))
    three, automatic = found(row("a", 0.1, clicks=3)).lines()[0], found(row("a", 0.1, "automatic", 0)).lines()[0]
    assert (counterpart(three, reference).kind, counterpart(three, reference).clicks) == ("random", 3)
    assert (counterpart(automatic, reference).kind, counterpart(automatic, reference).clicks) == ("random", 1)


def test_spread_over_seeds() -> None:
    one, two = (Evaluation("a", "b", EvaluationSettings(), (row("x", d), row("y", d + 0.2)), {}) for d in (0.4, 0.6))
    both = Found(Evaluation("a", "b", EvaluationSettings(), (*one.rows, *two.rows), {}), (), (one, two))
    assert both.spread(both.lines()[0], "dice") == pytest.approx(math.sqrt(0.02))  # of 0.5 and 0.7
    assert math.isnan(found(row("x", 0.4)).spread(both.lines()[0], "dice"))

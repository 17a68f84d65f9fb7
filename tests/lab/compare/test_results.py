"""The statistics of a comparison against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from voxsam.lab.compare.plan import Plan
from voxsam.lab.compare.tables import Found, RowResult, best_of, counterpart, p_value
from voxsam.lab.evaluation.protocol import Evaluation, EvaluationSettings, ScoredMask
from voxsam.lab.evaluation.scores import Scores


def row(case: str, dice: float, kind: str = "random", clicks: int = 1, trial: int = 0) -> ScoredMask:
    scores = Scores(dice, dice, 1.0, 1.0, 1.0, 0.0, 1, 1, 0)
    return ScoredMask(case, 0, kind, trial, clicks, scores, (), 0.1)


def found(*rows: ScoredMask) -> Found:
    evaluation = Evaluation("a", "b", EvaluationSettings(), rows, {})
    return Found(evaluation, (), (evaluation,))


def test_wilcoxon_by_hand() -> None:
    """Six cases, all better: 2 of 2^6 sign patterns are as extreme, p = 2 / 64. Four of five, by more: 2 * 2 / 32."""
    better = {f"c{n}": 0.5 + 0.01 * n for n in range(1, 7)}
    base = dict.fromkeys(better, 0.5)
    assert p_value(better, base) == pytest.approx(2 / 64)
    assert p_value(base, better) == pytest.approx(2 / 64)
    mixed = {"c1": 0.49, "c2": 0.52, "c3": 0.53, "c4": 0.54, "c5": 0.55}  # the smallest difference is the wrong way
    assert p_value(mixed, base) == pytest.approx(4 / 32)


def test_wilcoxon_of_cases_that_do_not_differ() -> None:
    """Ten of fifteen cases have no difference and do not count: p is that of the five others, 2 / 2^5."""
    base = {f"c{n}": 0.0 for n in range(15)}
    assert p_value({**base, **{f"c{n}": 0.1 * (n + 1) for n in range(5)}}, base) == pytest.approx(2 / 32)


def test_wilcoxon_without_enough() -> None:
    assert p_value({"a": 1.0}, {"a": 0.5}) is None
    assert p_value({"a": 1.0, "b": 1.0}, {"c": 0.5}) is None
    assert p_value({"a": 1.0, "b": math.nan}, {"a": 0.5, "b": 0.5}) is None
    assert p_value({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}) == 1.0


def test_a_line_meets_as_many_clicks() -> None:
    reference = found(row("a", 0.5), row("a", 0.6, clicks=3), row("a", 0.7, "corrective", 3))
    three, automatic = found(row("a", 0.1, clicks=3)).lines[0], found(row("a", 0.1, "automatic", 0)).lines[0]
    assert (counterpart(three, reference).kind, counterpart(three, reference).clicks) == ("random", 3)
    assert (counterpart(automatic, reference).kind, counterpart(automatic, reference).clicks) == ("random", 1)


def test_spread_over_seeds() -> None:
    one, two = (Evaluation("a", "b", EvaluationSettings(), (row("x", d), row("y", d + 0.2)), {}) for d in (0.4, 0.6))
    both = Found(Evaluation("a", "b", EvaluationSettings(), (*one.rows, *two.rows), {}), (), (one, two))
    assert both.spread(both.lines[0], "dice") == pytest.approx(math.sqrt(0.02))  # of 0.5 and 0.7
    assert math.isnan(found(row("x", 0.4)).spread(both.lines[0], "dice"))


def plan_of(*rows: RowResult) -> Plan:
    systems = [{"system": "voxsam", "row": one.row} for one in rows]
    fields = {"name": "p", "title": "t", "reference": rows[0].row, "data": [{"name": "d"}], "systems": systems}
    return Plan.model_validate(fields)


def named(name: str, dice: list[float], clicks: int = 1, overlap: bool = False) -> RowResult:
    one = found(*(row(f"c{n}", value, clicks=clicks) for n, value in enumerate(dice)))
    if overlap:
        seen = replace(one.evaluation, overlap={"c0": "trained on it"})
        one = Found(seen, (), (seen,))
    return RowResult(name, name, "", {"d": one})


def test_bold_is_what_the_paired_test_sets_apart_from_the_best_other_row() -> None:
    rising = [0.01 * n for n in range(1, 7)]
    base = named("base", [0.5] * 6)
    better = named("better", [0.5 + n for n in rising])  # all six: p = 2 / 64
    worst = named("worst", [0.1] * 6)
    rows = (base, worst, better)
    assert best_of(plan_of(*rows), rows) == {"d Dice ↑": 2, "d NSD ↑": 2}
    near = (base, worst, named("better", [0.5 + n for n in [-0.011, *rising[1:]]]))  # one of six the other way
    assert best_of(plan_of(*near), near) == {}
    few = (named("base", [0.5] * 5), named("better", [0.5 + n for n in rising[:5]]))  # five cannot have p below 0.05
    assert best_of(plan_of(*few), few) == {}


def test_the_same_row_with_other_clicks_is_no_rival_and_a_row_that_knows_the_cases_is_none_either() -> None:
    values = [0.5 + 0.01 * n for n in range(1, 7)]
    both = found(*(row(f"c{n}", v, clicks=k) for n, v in enumerate(values) for k in (1, 3)))
    ours = RowResult("ours", "ours", "", {"d": both})
    rows = (named("base", [0.5] * 6), ours, named("cheat", [0.9] * 6, overlap=True))
    assert best_of(plan_of(*rows), rows) == {"d Dice ↑": 1, "d NSD ↑": 1}
    assert best_of(plan_of(ours), (ours,)) == {}


def test_a_row_with_jobs_still_to_run_is_not_bold_and_keeps_no_other_row_from_being_so() -> None:
    rising = [0.01 * n for n in range(1, 7)]
    base, better = named("base", [0.5] * 6), named("better", [0.5 + n for n in rising])
    half = replace(named("half", [0.9] * 6), waiting={"d": 1})
    for rows in ((base, better, half), (half, base, better)):
        assert best_of(plan_of(*rows), rows) == dict.fromkeys(("d Dice ↑", "d NSD ↑"), rows.index(better))
    assert best_of(plan_of(base, half), (base, half)) == {}

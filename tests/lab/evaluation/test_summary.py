"""Means, medians and intervals over cases, and their tables, from rows with simple numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voxsam.lab.evaluation.protocol import Evaluation, EvaluationSettings, ScoredMask
from voxsam.lab.evaluation.scores import Scores
from voxsam.lab.evaluation.tables import (
    additional_rows,
    by_case,
    case_rows,
    describe,
    estimate,
    number,
    paper_rows,
    shown,
    summarise,
    write_tables,
)

KNOWN = {"a": (0.5, 0.7), "b": (0.9, 0.9)}  # Dice of two trials


def row(case: str, trial: int, dice: float, clicks: int = 1, kind: str = "random", **other: float) -> ScoredMask:
    numbers = {"nsd": dice / 2, "hd95_mm": 10 * trial + 1, "truth_ml": 8.0, "mask_ml": 10.0, "volume_error": 0.25}
    counts = {"lesions": 2, "lesions_found": 1, "false_lesions": 3}
    return ScoredMask(case, 0, kind, trial, clicks, Scores(dice, **{**numbers, **counts, **other}), (), 2.0)


def evaluation(rows: list[ScoredMask], name: str = "model", data: str = "set", **settings: object) -> Evaluation:
    return Evaluation(name, data, EvaluationSettings(**settings), tuple(rows), {}, 25_460_000)


TWO_CASES = [row(case, trial, dice) for case, found in KNOWN.items() for trial, dice in enumerate(found)]


def test_every_case_weighs_the_same():
    rows = [*TWO_CASES, row("b", 2, 0.9), row("b", 3, 0.9)]
    assert by_case(rows, "dice") == pytest.approx({"a": 0.6, "b": 0.9})
    (line,) = summarise(evaluation(rows))
    assert line.numbers["dice"].value == pytest.approx(0.75)
    assert (line.cases, line.masks, line.empty_masks, line.seconds) == (2, 6, 0, 2.0)


def test_numbers_of_a_row():
    one = row("a", 0, 0.5, volume_error=-0.3)
    assert (number(one, "found"), number(one, "volume_error_abs"), number(one, "nsd")) == (0.5, 0.3, 0.25)
    assert math.isnan(number(row("a", 0, 0.5, lesions=0), "found"))


def test_an_infinite_distance_ranks_last():
    rows = [row("a", trial, 0, hd95_mm=hd95) for trial, hd95 in enumerate((math.inf, 3.0, 5.0))]
    assert by_case(rows, "hd95_mm") == {"a": 5.0}
    assert by_case(rows[:2], "hd95_mm") == {"a": math.inf}  # of two the greater
    assert estimate([1, 2, math.inf], 0, median=True).value == 2


def test_the_distance_of_a_line_is_the_median_of_the_cases():
    rows = [row(case, 0, 0, hd95_mm=hd95) for case, hd95 in (("a", 1.0), ("b", 2.0), ("c", 30.0))]
    assert summarise(evaluation(rows))[0].numbers["hd95_mm"].value == 2


def test_a_number_that_is_none_is_left_out():
    rows = [
        row("a", 0, 0, volume_error=math.nan),
        row("a", 1, 0, volume_error=0.5),
        row("b", 0, 0, volume_error=math.nan),
    ]
    values = by_case(rows, "volume_error")
    assert values["a"] == 0.5 and math.isnan(values["b"])
    assert estimate(list(values.values()), 0).value == 0.5
    assert math.isnan(estimate([math.nan], 0).value)


def test_the_interval_of_a_mean():
    values = np.random.default_rng(0).normal(0.7, 0.1, 200).tolist()
    found = estimate(values, 3)
    assert found == estimate(values, 3) != estimate(values, 4)
    half = 1.96 * np.std(values) / np.sqrt(200)  # of a normal distribution
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.2 * half)


def test_equal_cases_have_an_interval_of_no_width_and_one_case_has_none():
    assert estimate([0.5, 0.5, 0.5], 0).low == estimate([0.5, 0.5, 0.5], 0).high == 0.5
    assert math.isnan(estimate([0.5], 0).low)


def test_lines_are_ordered_by_kind_then_clicks():
    rows = [row("a", 0, 0.5, 10), row("a", 0, 0.5, 1), row("a", 0, 0.5, 2, "corrective"), row("a", 0, 0.5, 3)]
    lines = summarise(evaluation(rows))
    assert [line.title for line in lines] == ["1 click", "3 clicks", "10 clicks", "2 clicks, corrective"]
    assert [line.label for line in lines][:2] == ["1 pt/volume", "3 pts/volume"]
    assert summarise(evaluation([row("a", 0, 0.5, 0, "automatic")]))[0].label == "automatic"


def test_table_1_has_methods_down_and_data_sets_across():
    kidney, colon = (
        evaluation([row("a", 0, dice)], data=data) for dice, data in ((0.7378, "Kidney"), (0.4835, "Colon"))
    )
    other = evaluation([row("a", 0, 0.5)], "other", "Colon")
    first, second = paper_rows([kidney, colon, other])
    assert first == {
        "Method": "model (1 pt/volume)",
        "Kidney Dice ↑": "73.78",
        "Kidney NSD ↑": "36.89",
        "parameters": "25.46M",
        "Colon Dice ↑": "48.35",
        "Colon NSD ↑": "24.18",
    }
    assert second["Colon Dice ↑"] == "50.00" and "Kidney Dice ↑" not in second


def test_intervals_stand_in_brackets_and_missing_numbers_are_dashes():
    assert shown(estimate([0.5, 0.5], 0), percent=True) == "50.00 [50.00, 50.00]"
    assert shown(estimate([math.nan], 0)) == "–"
    assert shown(estimate([math.inf, math.inf], 0, median=True), decimals=1) == "∞ [∞, ∞]"


def test_the_table_of_cases():
    a, b, mean = case_rows(evaluation(TWO_CASES))
    assert a == {
        "case": "a", "mL": "8.0", "Dice, 1 click": "0.600", "worst trial": "0.500", "NSD": "0.300", "HD95 mm": "11.0"
    }  # fmt: skip
    assert (b["Dice, 1 click"], mean["case"], mean["Dice, 1 click"], mean["NSD"]) == ("0.900", "mean", "0.750", "0.375")


def test_the_further_numbers():
    (line,) = additional_rows(evaluation([row("a", 0, 0.5, mask_ml=0.0)]))
    assert line["volume error %"] == "25.0" and line["lesions found % ↑"] == "50.0"
    assert line["empty masks"] == "1 of 1" and line["false lesions ↓"] == "3.00"


def test_the_protocol_in_words():
    text = describe(evaluation(TWO_CASES, trials=2, noise=0.25, region="margin", corrective=5, seed=7))
    for words in ("2 cases, NSD at 5 mm, seed 7", "2 trials", "'margin' of the largest lesion", "25%", "Corrective"):
        assert words in text
    assert "Automatic: no clicks" in describe(evaluation([row("a", 0, 1, 0, "automatic")]))


def test_all_tables_in_one_text():
    result = evaluation(TWO_CASES)
    result.skipped["c"] = "its label is empty"
    text = write_tables(result)
    assert "| model (1 pt/volume) | 75.00 [60.00, 90.00] | 37.50 [30.00, 45.00] | 25.46M |" in text
    assert "Skipped: c: its label is empty." in text and "| mean | 8.0 | 0.750 |" in text

"""The measurement of training steps: the names of cases, and the same loss whatever the memory options."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import training


def test_cases_by_name() -> None:
    assert training._cases("vit_b:128,tiny:64:kept") == [("vit_b", 128, True), ("tiny", 64, False)]
    assert training._cases(training.CASES)


@pytest.mark.parametrize("text", ["", "vit_b", "vit_x:64", "tiny:64:kep", "tiny:6.4", "tiny:64,"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected SIZE:CROP"):
        training._cases(text)


@pytest.mark.slow
def test_both_ways_of_a_step() -> None:
    again, kept = training.measure([("tiny", 32, True), ("tiny", 32, False), ("tiny", 32, True)], threads=1)[:2]
    assert (again["recompute"], kept["recompute"]) == (True, False)
    assert again["loss"] == pytest.approx(kept["loss"], rel=1e-5)
    table = training.report([again, kept, {**kept, "crop": 64, "failed": "no room"}])
    assert "| tiny | 32³ | computed again | CPU, float32 |" in table
    assert "no GPU" in table or "GPU, bfloat16" in table


def test_a_case_that_fails_says_why() -> None:
    (failed,) = training.measure([("tiny", 30, True)], threads=1)[:1]
    assert "crop" in failed["failed"]

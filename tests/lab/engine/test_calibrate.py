"""Fitting a calibration, on synthetic cases for which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_model import KnownModel, block_scan, upright
from torch import nn

from voxsam.interactive.confidence import COUNTS, SIGNALS
from voxsam.lab.engine import calibrate
from voxsam.lab.engine.calibrate import (
    WIDTH,
    Case,
    Healthy,
    _mean_of,
    as_often_clicked,
    fit,
    healthy_cases,
    lesion_cases,
)
from voxsam.lab.engine.painting import FAT, SOFT
from voxsam.lab.engine.scans import Scan
from voxsam.lab.engine.validation import Lesion
from voxsam.network.calibration import OUTPUTS
from voxsam.volume import Volume


def made_up(count: int, seed: int) -> list[Case]:
    """Cases whose Dice and volume follow the first signals, with noise; clicks beside lesions differ in the third."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        x = rng.standard_normal(6)
        if number % 3 == 0:
            x[2] += 4
            cases.append(Case(f"scan{number % 9} healthy {number}", 1, x, 0.0, 0.0))
            continue
        dice = 1 / (1 + np.exp(-(x[0] + 0.5 + 0.2 * rng.standard_normal())))
        ratio = float(np.exp(0.5 * x[1] + 0.3 * rng.standard_normal()))
        cases.append(Case(f"scan{number % 9} lesion {number // 2}", 1 + number % 2, x, float(dice), ratio))
    return cases


def test_it_learns_dice_volume_and_what_is_no_lesion() -> None:
    found, scores = fit(made_up(300, 0))
    assert scores["dice_error"] < 0.08 and scores["dice_correlation"] > 0.9
    assert scores["interval"] == pytest.approx(0.8, abs=0.03)
    assert scores["warned_lesion"] <= 0.1 and scores["warned_healthy"] >= 0.9
    others = made_up(300, 1)  # of which the fit has seen none
    lesions = [case for case in others if case.ratio]
    judged = [found.judge(case.signals) for case in lesions]
    held = [low <= case.ratio <= high for case, (_, _, (low, high)) in zip(lesions, judged, strict=True)]
    assert 0.7 <= np.mean(held) <= 0.9
    assert np.mean([abs(one.dice - case.dice) for case, one in zip(lesions, judged, strict=True)]) < 0.08
    warned = [found.judge(case.signals).lesion < found.warn_below for case in others if not case.ratio]
    assert np.mean(warned) >= 0.9


def test_a_scan_is_judged_by_what_was_fitted_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals that tell scans apart, and nothing else: scored within a scan, they would tell lesions from the rest."""
    monkeypatch.setattr(calibrate, "MEMBERS", 1)
    rng = np.random.default_rng(3)
    cases = []
    for number in range(24):
        of_scan, is_lesion = 3 * rng.standard_normal(8), number % 2 == 0
        kind, dice = ("lesion", 0.8) if is_lesion else ("healthy", 0.0)
        cases += [
            Case(f"scan{number} {kind} {n}", 1, of_scan + 0.1 * rng.standard_normal(8), dice, float(is_lesion))
            for n in range(6)
        ]
    assert fit(cases)[1]["warned_healthy"] < 0.6


def test_the_same_cases_give_the_same_calibration() -> None:
    assert fit(made_up(60, 2))[0] == fit(made_up(60, 2))[0]


def test_of_several_networks_the_mean_counts() -> None:
    members = [nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUTPUTS)) for _ in range(3)]
    x = torch.randn(7, 5)
    torch.testing.assert_close(_mean_of(members)(x), torch.stack([member(x) for member in members]).mean(0))


def test_a_lesion_is_clicked_and_corrected() -> None:
    """The model finds one of a lesion's two cubes, and is corrected with a click on the other."""
    volume = block_scan(upright(40, 40, 40), ((10, 14),) * 3, ((18, 22),) * 3)
    mask = Volume((volume.array > 0).astype(np.uint8), volume.grid, "SEG")
    cases = list(lesion_cases(KnownModel(), iter([Lesion("two", "made", volume, mask)])))
    assert [case.clicks for case in cases] == [1, 2]
    assert cases[0].dice == pytest.approx(2 / 3) and cases[0].ratio == 2
    assert cases[1].dice == 1 and cases[1].ratio == 1


def test_healthy_clicks_keep_away_from_what_is_labelled() -> None:
    volume = block_scan(upright(40, 40, 40), ((10, 14),) * 3)
    places = np.random.default_rng(0).uniform(0, 40, (400, 3))
    scan = Scan("half", (), {SOFT: places, FAT: places[:2]})
    healthy = np.zeros(volume.array.shape, dtype=bool)
    healthy[20:] = True
    cases = list(healthy_cases(KnownModel(), [Healthy(scan, volume, healthy, 0.2)]))
    at = [tuple(map(int, case.lesion.partition("[")[2].rstrip("]").split())) for case in cases]
    assert all(healthy[index] for index in at) and len({*at}) >= 9
    kinds = [case.lesion.split()[:3] for case in cases]
    assert kinds.count(["half", "healthy", str(SOFT)]) == 9 and kinds.count(["half", "healthy", str(FAT)]) <= 2
    assert all(case.ratio == 0 and case.scan == "half" for case in cases)


def test_how_often_was_clicked_tells_no_lesion() -> None:
    x = np.zeros((8, SIGNALS))
    lesion = np.arange(8) < 4
    x[lesion, COUNTS] = [[0, 0], [0, 1], [1, 1], [2, 0]]
    x[~lesion, 0] = 5.0
    given = as_often_clicked(x, lesion, 0)
    assert {tuple(row) for row in given[~lesion, COUNTS]} <= {tuple(row) for row in x[lesion, COUNTS]}
    assert given[~lesion, COUNTS].any() and (given[~lesion, 0] == 5).all() and (given[lesion] == x[lesion]).all()

"""A fair comparison: equal minutes, one rule for the learning rate, folds, seeds, marked rows, kept results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.lab.evaluation.known_systems import LESION, SMALL, write_cases
from voxsam.cli import main
from voxsam.errors import InputError
from voxsam.lab.compare.order import Outcome, Training
from voxsam.lab.compare.output import notes
from voxsam.lab.compare.plan import Plan, read_plan
from voxsam.lab.compare.results import CaseScore, Result, plan_digest, read_results, save_results
from voxsam.lab.compare.tables import best_of, collect, markdown
from voxsam.lab.data.store import open_store
from voxsam.lab.systems.compared import Budget, Trained, train_within
from voxsam.lab.training import Curve

RISING = [0.1 * n for n in range(1, 10)]
FLAT = [0.1, 0.5, 0.8, 0.8, 0.8, 0.8, 0.81, 0.8, 0.8]
FOLDS = [
    {"test": ["case_0", "case_1"], "validation": ["case_2"]},
    {"test": ["case_2", "case_3"], "validation": ["case_4"]},
]
ROWS: list[Any] = [
    {"system": "box", "options": {"scores": FLAT}},
    {"system": "box", "row": "young", "title": "Young", "options": {"scores": RISING, "reach": 1}, "seeds": [0]},
    {"system": "box", "row": "long", "title": "Long", "options": {"scores": FLAT, "reach": 2}, "minutes": 9},
    {"system": "random-walker", "seeds": [0]},
]


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair")
    write_cases(folder / "scans", **{f"case_{n}": [LESION, SMALL][: 1 + n % 2] for n in range(6)})
    plan = {
        "title": "Fair boxes",
        "reference": "box",
        "seeds": [0, 1],
        "data": [{"name": "boxes", "title": "Boxes", "spacing_mm": [3, 3, 3], "folds": FOLDS, "patient": "(case_.)"}],
        "budget": {"minutes": 3, "rate_factors": [1, 3, 10], "trial": 0.2},
        "systems": ROWS,
        "modules": ["tests.lab.compare.boxes"],
        "evaluation": {"trials": 2, "clicks": [1]},
        "examples": 1,
        "job_cores": 1,
        "job_gb": 0.5,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


@pytest.mark.slow
def test_a_fair_comparison_is_run_kept_and_made_again_from_what_was_kept(
    plan_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, kept = f"boxes={plan_path.parent / 'scans'}", tmp_path / "kept"
    words = ["compare", str(plan_path), "--trust", "--results", str(kept)]
    assert main([*words, "-o", str(tmp_path / "out"), "--data", data]) == 0
    shown = capfd.readouterr().out
    runs = next((tmp_path / "out" / "jobs" / "boxes").glob("box-fold0-0-*/runs")).read_text().splitlines()
    assert runs == ["1 0.6", "3 0.6", "10 0.6", "3 1.8"]  # trials of a fifth; 3 is the best and has the rest
    test = open_store(tmp_path / "out" / "data" / "boxes" / "prepared-1").split
    assert test == {"train": ("case_0", "case_1", "case_5"), "validation": ("case_4",), "test": ("case_2", "case_3")}
    assert main([*words, "--tables"]) == 0
    again = capfd.readouterr().out
    assert re.sub(r"- The whole plan: .*\n", "", shown) == again
    assert (kept / "table.md").read_text().endswith(again)
    # Another machine, which has only what was kept: what is there is not run again.
    (kept / "boxes" / "box-fold0-0.json").unlink()
    assert main([*words, "-o", str(tmp_path / "elsewhere"), "--data", data]) == 0
    ran = [path.name for path in (tmp_path / "elsewhere" / "jobs" / "boxes").iterdir()]
    assert len(ran) == 1 and ran[0].startswith("box-fold0-0-")
    assert (kept / "boxes" / "box-fold0-0.json").is_file()
    one = json.loads((kept / "boxes" / "box-fold0-0.json").read_text())
    assert len(one["log_sha256"]) == 64 and {score["case"] for score in one["scores"]} == {"case_0", "case_1"}


def outcome(title: str, curve: Curve, start: str = "random weights") -> Outcome:
    trained = Trained(minutes=curve[-1][0], learning_rate=0.003, curve=curve) if curve else None
    return Outcome(
        training=Training(seconds=60, done=True, trained=trained),
        peak_gb=1,
        tuned=1,
        tuned_encoder=None,
        total=1,
        scan_seconds=1,
        machine="a machine, 1 thread",
        title=title,
        note="",
        start=start,
    )


def curve(scores: list[float]) -> Curve:
    return tuple((3.0 * (n + 1) / 9, score) for n, score in enumerate(scores))


def plan_of(rows: dict[str, dict[str, Any]], cases: int = 7) -> Plan:
    names = [f"c{n}" for n in range(cases)]
    return Plan.model_validate(
        {
            "name": "p",
            "title": "t",
            "reference": next(iter(rows)),
            "data": [{"name": "d", "folds": [{"test": names[:3]}, {"test": names[3:]}]}],
            "budget": {"minutes": 3},
            "systems": [{"system": "voxsam", "row": row, "title": row, **keys} for row, keys in rows.items()],
        }
    )


def results(plan: Plan, dice: dict[str, float], curves: dict[str, list[float]]) -> list[Result]:
    found = []
    for row in plan.systems:
        for fold, part in enumerate(plan.data[0].folds):
            for seed in plan.seeds_of(row):
                scores = tuple(
                    CaseScore(case=case, kind="random", clicks=1, dice=dice[row.row] + n / 100, nsd=0.5, seconds=1)
                    for n, case in enumerate(part.test)
                )
                found.append(
                    Result(
                        row=row.row,
                        data="d",
                        fold=fold,
                        seed=seed,
                        plan_digest=plan_digest(plan, row, plan.data[0], fold, seed),
                        outcome=outcome(row.row, curve(curves[row.row])),
                        scores=scores,
                        checked=True,
                    )
                )
    return found


def table(plan: Plan, kept: list[Result]) -> str:
    rows = collect(plan, kept)
    return markdown(plan, rows, notes(plan, rows))


def test_a_row_that_still_rises_is_marked_and_never_bold() -> None:
    plan = plan_of({"old": {}, "young": {}})
    better = {"old": 0.5, "young": 0.6}
    grown = collect(plan, results(plan, better, {"old": FLAT, "young": FLAT}))
    assert best_of(plan, grown) == {"d Dice ↑": 1}
    kept = results(plan, better, {"old": FLAT, "young": RISING})
    assert best_of(plan, collect(plan, kept)) == {}  # nor is the second best: it is not the best
    text = table(plan, kept)
    assert "| young ‡ (1 pt/volume) |" in text and "| old (1 pt/volume) |" in text and "**" not in text
    assert "It rose by: old 0.010, young 0.300." in text


def test_a_row_with_minutes_of_its_own_is_marked_and_stands_beside_the_comparison() -> None:
    plan = plan_of({"base": {}, "ours": {}, "long": {"minutes": 12}})
    kept = results(plan, {"base": 0.4, "ours": 0.5, "long": 0.9}, dict.fromkeys(("base", "ours", "long"), FLAT))
    assert best_of(plan, collect(plan, kept)) == {"d Dice ↑": 1}
    text = table(plan, kept)
    assert "| long § (1 pt/volume) |" in text
    assert "§ long: 12 minutes instead; it stands beside the comparison and is never bold." in text


def test_the_caption_answers_what_a_reviewer_asks() -> None:
    plan = plan_of({"ours": {"seeds": [0, 1]}, "other": {}})
    text = table(plan, results(plan, {"ours": 0.6, "other": 0.5}, {"ours": FLAT, "other": FLAT}))
    for words in (
        "d: 7 test cases, each in one of 2 folds that the plan names",
        "Training begins with random weights: ours, other.",
        "Each training may take 3 minutes of processor time",
        "0.3, 1 and 3 times its usual one run for 20 % of the minutes each",
        "‡ has not converged, and is never bold",
        "Seeds 0, 1: ours; 0: other.",
        "nobody of the test part is in the training or validation part",
        "were not found: ours, other.",
        "two-sided paired Wilcoxon test of Dice against ours",
        "All trainings together: 0.3 hours of processor time.",
    ):
        assert words in text
    assert re.search(r"\| ours \| 1 \| 1\.0 \| 3\.0 \| 0\.003 \| .* \| 2 \|", text)
    assert re.search(r"\| other \| 1 \| 1\.0 \| 3\.0 \| 0\.003 \| .* \| 1 \|", text)


def test_results_of_another_plan_are_not_taken(tmp_path: Path) -> None:
    plan = plan_of({"ours": {}, "other": {}})
    save_results(results(plan, {"ours": 0.6, "other": 0.5}, {"ours": FLAT, "other": FLAT}), tmp_path)
    assert all(one.outcome is not None for one in read_results(plan, tmp_path))
    other = plan.model_copy(update={"budget": Budget(minutes=4)})
    assert all(one.outcome is None for one in read_results(other, tmp_path))
    assert "ours on d: 2 not run yet" in table(other, read_results(other, tmp_path))
    (tmp_path / "d" / "ours-fold1-0.json").unlink()
    assert "ours on d: 1 not run yet" in table(plan, read_results(plan, tmp_path))


def test_a_rate_is_chosen_once_and_trials_are_not_repeated(tmp_path: Path) -> None:
    """It is killed in the training with the chosen rate; the next attempt runs only that one."""
    budget, asked = Budget(minutes=30, rate_factors=(0.3, 1, 3), trial=0.2), []

    def run(rate: float, pause: float | None) -> Curve:
        asked.append((round(rate, 6), pause))
        if pause is None and len(asked) == 4:
            raise KeyboardInterrupt
        return ((pause or budget.own_minutes, {0.003: 0.2, 0.01: 0.7, 0.03: 0.6}[round(rate, 6)]),)

    with pytest.raises(KeyboardInterrupt):
        train_within(budget, 0.01, tmp_path, run)
    trained = train_within(budget, 0.01, tmp_path, run)
    assert asked == [(0.003, 6.0), (0.01, 6.0), (0.03, 6.0), (0.01, None), (0.01, None)]
    assert budget.own_minutes == pytest.approx(18)
    assert (trained.minutes, trained.learning_rate) == (pytest.approx(30), 0.01)
    assert [score for _, score in trained.tried] == [0.2, 0.7, 0.6]


def test_a_trial_without_a_validation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learning rates to choose from, and no validation"):
        train_within(Budget(minutes=1), 0.01, tmp_path, lambda rate, pause: ())
    alone = train_within(Budget(minutes=1, rate_factors=(1,)), 0.01, tmp_path, lambda rate, pause: ())
    assert (alone.minutes, alone.tried, alone.late_gain) == (1, (), None)


@pytest.mark.parametrize(
    ("scores", "gain"), [(FLAT, 0.01), (RISING, 0.3), ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 0.0), ([0.1, 0.2, 0.3], None)]
)
def test_the_late_gain(scores: list[float], gain: float | None) -> None:
    """The last three of nine validations are late, two of six, one of three: too few."""
    minutes = tuple((float(n + 1), score) for n, score in enumerate(scores))
    found = Trained(minutes=1, learning_rate=1, curve=minutes).late_gain
    assert found == (None if gain is None else pytest.approx(gain))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"minutes": 1, "trial": 0.5}}, "3 trials of 0.5 of the minutes are more than all"),
        ({"budget": None}, "minutes of long: the plan has no budget"),
        ({"data": [{"name": "boxes", "folder": ".", "folds": [FOLDS[0], FOLDS[0]]}]}, "case_0 is tested twice"),
        ({"data": [{"name": "boxes", "folder": ".", "folds": "nowhere.json"}]}, "nowhere.json"),
    ],
)
def test_unfair_plans(plan_path: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    plan = {**yaml.safe_load(plan_path.read_text()), **changes}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises((InputError, ValidationError), match=re.escape(words)):
        read_plan(tmp_path / "bad.yaml", data_needed=False)


def test_tables_without_results_say_where_they_would_be(plan_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(plan_path), "--trust", "--tables"]) == 2
    assert str(plan_path.parent / "results" / "plan") in capfd.readouterr().err

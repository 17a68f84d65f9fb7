"""The simulated user: works through scans, learns, resumes where it was stopped; and its sums, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.learning import Simulation, curve, fewer, interval, left_out_report, report
from tests.lab.learning.small import body, start_model, write_scans
from voxsam.io import write_mask
from voxsam.lab.data.cases import Case
from voxsam.lab.evaluation import clicks
from voxsam.project import Project
from voxsam.weights.file import read_card


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    """Six small scans, learned from after the fifth, by trainings of one step."""
    write_scans(tmp_path / "scans", 6)
    cases = []
    for seed in range(6):
        write_mask(body(seed)[1], tmp_path / f"label{seed}.nii.gz")
        cases.append(Case(f"case{seed}", (tmp_path / "scans" / f"s{seed}.nii.gz",), tmp_path / f"label{seed}.nii.gz"))
    return Simulation(cases, str(start_model(tmp_path / "first.safetensors")), every=5, last=1, steps=1)


@pytest.mark.slow
def test_a_simulated_user_works_and_goes_on_where_it_was_stopped(simulation, tmp_path, monkeypatch):
    monkeypatch.setattr(clicks, "MAX_CLICKS", 2)  # clicks of a network that knows nothing
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(learning, "learn", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        simulation.run(out, 1)
    assert len(json.loads((out / "seed-1.json").read_text())["clicks"]) == 5
    result = simulation.run(out, 1)
    project = Project(out / "seed-1")
    assert sorted(result["clicks"]) == [f"case{n}" for n in range(6)] and result["learned"] == [5]
    assert list(project.done_cases()) == [scan.name for scan in project.scans] == list(result["clicks"])
    assert len(project.models()) == 1 and list(result["start"]) == [project.scans[-1].name]
    assert all(1 <= count <= 2 for count in result["clicks"].values())
    assert simulation.run(out, 1) == result
    (last,) = result["start"]
    assert result["models"] or result["start"][last] == result["clicks"][last], "the start model was in use"
    assert "| 1 |" in report({1: result}, 5)


@pytest.mark.slow
def test_each_scan_is_left_out_of_a_training_on_the_others(simulation, tmp_path, monkeypatch):
    monkeypatch.setattr(clicks, "MAX_CLICKS", 2)
    three = replace(simulation, cases=simulation.cases[:3])
    counts = three.leave_one_out(tmp_path, [0, 1])
    assert list(counts) == ["case0", "case1", "case2"] and all(len(c["start"]) == 2 for c in counts.values())
    for name in counts:
        seen = read_card(tmp_path / f"without-{name}" / "model.safetensors").trained_on["left-out"]
        assert set(seen) == set(counts) - {name}
    monkeypatch.setattr(learning, "train", None)  # all is there: nothing is trained again
    assert three.leave_one_out(tmp_path, [0, 1]) == counts


def test_the_curve_shows_each_seed_their_mean_and_the_start_model():
    results = {
        0: {"clicks": {"a": 9, "b": 7, "c": 4}, "start": {"c": 8}},
        1: {"clicks": {"c": 5, "a": 3, "b": 2}, "start": {"b": 6}},
    }
    axes = curve(results, 2).axes[0]
    first, second, mean, start = (list(line.get_ydata()) for line in axes.lines)
    assert (first, second, mean, start) == ([8, 4], [4, 2], [6, 3], [7])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1-2", "3-3"]


def test_clicks_of_scans_left_out_are_told_scan_by_scan():
    text = left_out_report({"a": {"start": [4, 6], "learned": [2, 3]}, "b": {"start": [9, 9], "learned": [9, 9]}})
    assert "| a | 5.00 | 2.50 |" in text and "| b | 9.00 | 9.00 |" in text
    assert text.endswith("Fewer clicks than the start model: 18%.")


def test_what_was_saved_is_a_fraction_of_the_start_models_clicks():
    results = [
        {"clicks": {"a": 9, "b": 2, "c": 4}, "start": {"b": 4, "c": 8}, "models": ["m"]},
        {"clicks": {"a": 9, "b": 3, "c": 6}, "start": {"b": 6, "c": 6}, "models": []},
    ]
    assert fewer(results) == pytest.approx([0.5, 0.25])
    mean, low, high = interval([0.5, 0.25])
    assert (
        mean == 0.375 and low == pytest.approx(0.375 - 12.706 * 0.125, abs=1e-3) and low + high == pytest.approx(0.75)
    )
    text = report(dict(enumerate(results)), 2)
    assert "| 0 | 5.50 | 4.00 | 6.00 | 1 |" in text
    assert "Fewer clicks than the start model on the last scans: 38% (95 % interval -121% to 196%)." in text
    assert report({0: results[0]}, 2).endswith("50% (one seed: no interval).")


@pytest.mark.slow
def test_real_sarcomas_from_a_model_that_never_saw_one(shared_data: Path, tmp_path: Path, capsys):
    words = ["--scans", "6", "--every", "5", "--last", "1", "--steps", "3", "--seeds", "0,1", "--no-painted"]
    learning.main([str(shared_data), "-o", str(tmp_path / "out"), *words, "--jobs", "2"])
    said = capsys.readouterr().out
    assert "| 0 |" in said and "| 1 |" in said and "95 % interval" in said
    assert all(len(Project(tmp_path / "out" / f"seed-{seed}").models()) == 1 for seed in (0, 1))

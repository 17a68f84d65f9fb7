"""Training with a budget of minutes: it ends by the clock, pauses, and resumes with the time that is left."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.lab.training.minuscule import losses, recipe, write
from voxsam.cli import main
from voxsam.lab.training import budget, run
from voxsam.lab.training.budget import read_curve, used_seconds
from voxsam.lab.training.keep import steps_done
from voxsam.lab.training.run import train
from voxsam.lab.training.task import SegmentationTask, schedule

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The processor time in seconds: 6 per step, and none for anything else."""
    now, step = [100.0], SegmentationTask.training_step

    def timed(self: SegmentationTask, batch: dict, number: int) -> torch.Tensor:
        now[0] += 6.0
        return step(self, batch, number)

    monkeypatch.setattr(budget, "used_seconds", lambda children, device: now[0])
    monkeypatch.setattr(SegmentationTask, "training_step", timed)
    scores = iter(np.arange(1, 100) / 100)
    monkeypatch.setattr(SegmentationTask, "first_dice", lambda self, batch: torch.tensor(next(scores)))
    monkeypatch.setattr(run, "make_validation", lambda *_: [{"number": np.array(0), "crop": np.zeros(1)}])
    return now


def minutes(**changes: object) -> dict[str, object]:
    return {
        "steps": None,
        "minutes": 1.0,
        "validation": ["known"],
        "validate_every": 4,
        "checkpoint_every": 100,
        "warmup": 0,
        **changes,
    }


def test_it_ends_by_the_clock_and_validates_before_the_first_step_and_at_the_end(
    tmp_path: Path, clock: list[float]
) -> None:
    """One minute is ten steps of 6 s."""
    model = train(recipe(**minutes()), None, tmp_path)
    assert model.is_file() and steps_done(tmp_path / "last.ckpt") == 10
    expected = [(0.0, 0.01), (0.4, 0.02), (0.8, 0.03), (1.0, 0.04)]
    np.testing.assert_allclose(read_curve(tmp_path), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_paused_run_goes_on_with_the_minutes_that_are_left(tmp_path: Path, clock: list[float]) -> None:
    changed = recipe(**minutes())
    train(changed, None, tmp_path / "cut", pause=0.5)
    assert steps_done(tmp_path / "cut" / "last.ckpt") == 5 and not (tmp_path / "cut" / "model.safetensors").exists()
    assert read_curve(tmp_path / "cut")[-1] == pytest.approx((0.5, 0.03))
    clock[0] = 5000.0  # another day
    assert train(changed, None, tmp_path / "cut").is_file()
    train(changed, None, tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 10
    assert read_curve(tmp_path / "cut")[-1][0] == pytest.approx(1.0)


def test_the_learning_rate_follows_the_time() -> None:
    """In the last three of ten minutes the rate falls, whatever the step."""
    planned = recipe(**minutes(minutes=10.0, decay=0.3)).planned(1)
    assert [schedule(step, planned, at) for step, at in ((5, 0.5), (5, 0.7), (9000, 0.85), (9, 1.0))] == pytest.approx(
        [1, 1, 0.5, 0]
    )
    assert schedule(5, recipe(**minutes(decay=0.0)).planned(1), 0.99) == 1


def test_the_time_of_children_counts_if_asked(tmp_path: Path) -> None:
    before, own = used_seconds(True, CPU), used_seconds(False, CPU)
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert used_seconds(True, CPU) - before > 0.4 > used_seconds(False, CPU) - own


def test_sleep_is_no_processor_time() -> None:
    before = used_seconds(False, CPU)
    time.sleep(0.3)
    assert used_seconds(False, CPU) - before < 0.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 1.0}, "steps, epochs or minutes: one of them, and only one"),
        ({"steps": None}, "steps, epochs or minutes"),
        ({"steps": None, "minutes": 1.0, "phantom_fraction": 0.5}, "phantom_fraction_end must be phantom_fraction"),
    ],
)
def test_lengths_that_make_no_sense(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(**changes)


def test_minutes_from_the_command_line_take_the_place_of_steps(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With real processor time: a twentieth of a second is one step, or a few."""
    path = write(tmp_path / "recipe.yaml")
    assert main(["train", str(path), "-o", str(tmp_path / "out"), "--minutes", "0.001"]) == 0
    assert steps_done(tmp_path / "out" / "last.ckpt") >= 1 and (tmp_path / "out" / "model.safetensors").is_file()

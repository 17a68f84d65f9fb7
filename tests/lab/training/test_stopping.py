"""A run that is killed, or asked to stop, resumes as if nothing had happened: the same losses to the last digit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lab.training.minuscule import losses, recipe, rows, write
from voxsam.cli import main
from voxsam.errors import FileError
from voxsam.lab.training import run
from voxsam.lab.training.callbacks import StopOnSignal
from voxsam.lab.training.keep import ContinuedLog, WholeCheckpoints, steps_done
from voxsam.lab.training.run import make_stream, train
from voxsam.lab.training.task import SegmentationTask
from voxsam.weights.checkpoint import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers

STEPS, EVERY = 9, 2
NO_CASES = {"validation": ()}
KILLED = """
import os, signal, sys
from voxsam.cli import main
from voxsam.lab.training.task import SegmentationTask
step = SegmentationTask.training_step
def killed(self, batch, number):
    if self.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, number)
SegmentationTask.training_step = killed
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_has_the_loss_curve_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """It runs in another process and gets SIGKILL at a step drawn with seed 7; at most EVERY - 1 steps are repeated."""
    fatal = int(np.random.default_rng(7).integers(3, STEPS))
    path = write(tmp_path / "recipe.yaml", steps=STEPS, checkpoint_every=EVERY)
    words = ["train", str(path), "-o", str(tmp_path / "cut")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(fatal), *words], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode("utf-8", "replace")[-2000:]
    done = steps_done(tmp_path / "cut" / "last.ckpt")
    assert fatal - EVERY < done <= fatal
    assert [step for step, _ in losses(tmp_path / "cut")] == list(range(fatal))
    assert main(words) == 0
    whole = train(recipe(steps=STEPS, checkpoint_every=EVERY), None, tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "cut")] == list(range(STEPS))
    first, second = load_model(whole, "cpu").state_dict(), load_model(tmp_path / "cut/model.safetensors").state_dict()
    assert all(torch.equal(first[name], second[name].cpu()) for name in first)


@pytest.mark.slow
def test_a_run_that_goes_on_knows_how_good_its_best_validation_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second validation is the best, the last checkpoint is of its step, and the third is worse."""
    scores = iter([0.125, 0.25, 0.75, 0.5, 0.625])  # the first before any step
    monkeypatch.setattr(SegmentationTask, "first_dice", lambda self, batch: torch.tensor(next(scores)))
    monkeypatch.setattr(run, "make_validation", lambda *_: [{"number": np.array(0), "crop": np.zeros(1)}])
    given = {"validation": ["known"], "validate_every": 1, "patience": 3}
    step = SegmentationTask.training_step

    def fail_at_third(self, batch, number):
        if self.global_step == 2:
            raise RuntimeError("the machine went away")
        return step(self, batch, number)

    monkeypatch.setattr(run, "make_stream", lambda recipe, _: make_stream(recipe.model_copy(update=NO_CASES), None))
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", fail_at_third)
        with pytest.raises(RuntimeError, match="went away"):
            train(recipe(steps=4, **given), None, tmp_path)
    train(recipe(steps=4, **given), None, tmp_path)
    assert [float(row["validation dice"]) for row in rows(tmp_path) if row["validation dice"]] == [
        0.125,
        0.25,
        0.75,
        0.5,
        0.625,
    ]
    assert steps_done(tmp_path / "best.ckpt") == 2
    assert steps_done(tmp_path / "last.ckpt") == 4


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_the_step_under_way_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: signal.Signals
) -> None:
    step = SegmentationTask.training_step

    def interrupted(self, batch, number):
        if self.global_step == 1:
            signal.raise_signal(asked)
        return step(self, batch, number)

    path = write(tmp_path / "recipe.yaml", steps=3, checkpoint_every=100)
    words = ["train", str(path), "-o", str(tmp_path / "out")]
    before = signal.getsignal(asked)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", interrupted)
        assert main(words) == 130
    last = tmp_path / "out" / "last.ckpt"
    assert f"stopped after step 2; the same command goes on from {last}" in capsys.readouterr().err
    assert steps_done(last) == 2
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert signal.getsignal(asked) == before
    assert main(words) == 0
    assert [step for step, _ in losses(tmp_path / "out")] == [0, 1, 2]


@pytest.mark.parametrize("saved", [1, 100], ids=["checkpoints", "no checkpoint yet"])
def test_gradients_that_are_no_numbers_end_a_run_before_any_weight_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saved: int
) -> None:
    """The loss of the third step is a number, its gradient is not; without it the run goes on."""
    step = SegmentationTask.training_step

    def broken(self, batch, number):
        loss = step(self, batch, number)
        return loss + (0 * loss).sqrt() if self.global_step == 2 else loss  # d sqrt(0) is infinite

    path = write(tmp_path / "recipe.yaml", steps=4, checkpoint_every=saved)
    words = ["train", str(path), "-o", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", broken)
        assert main(words) == 2
    last = tmp_path / "out" / "last.ckpt"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no numbers" in line]
    assert "step 3 of a training whose loss or gradients are no numbers (nan); expected finite ones" in line
    assert (f"the same command goes on from {last}" if saved == 1 else "begin again") in line
    assert steps_done(last) == (2 if saved == 1 else 0)
    assert main(words) == 0
    assert [step for step, _ in losses(tmp_path / "out")] == [0, 1, 2, 3]
    assert np.isfinite([loss for _, loss in losses(tmp_path / "out")]).all()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    stop = StopOnSignal(tmp_path / "last.ckpt")
    stop._ask(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._ask(signal.SIGINT, None)


def test_a_checkpoint_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"global_step": 4}, path)

    class Breaks:
        def __reduce__(self):
            raise RuntimeError("the machine went away")

    with pytest.raises(RuntimeError, match="went away"):
        WholeCheckpoints().save_checkpoint({"global_step": 5, "broken": Breaks()}, path)
    assert steps_done(path) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_under_a_checkpoint_is_told_in_one_line_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own writer reports it by a RuntimeError that names a place in its sources."""
    path, save = tmp_path / "last.ckpt", torch.save
    WholeCheckpoints().save_checkpoint({"global_step": 4}, path)
    monkeypatch.setattr(torch, "save", lambda what, _: save(what, "/dev/full"))
    with pytest.raises(
        FileError, match=r"last.ckpt could not be written \(the disk takes no more\); expected a folder"
    ):
        WholeCheckpoints().save_checkpoint({"global_step": 5, "weights": torch.zeros(100_000)}, path)
    assert steps_done(path) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file")]
)
def test_a_disk_that_takes_no_log_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, says: str
) -> None:
    def full(self, metrics, step=None):
        raise OSError(number, os.strerror(number), "metrics.csv")

    monkeypatch.setattr(ContinuedLog, "log_metrics", full)
    assert main(["train", str(write(tmp_path / "recipe.yaml", steps=1)), "-o", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"voxsam: error: metrics.csv could not be written ({says}")
    assert line.endswith("; expected a disk that takes files; free some space, or choose another")


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    first = ContinuedLog(tmp_path, 0)
    for step in range(5):
        first.log_metrics({"loss": step / 4}, step)
    second = ContinuedLog(tmp_path, 3)
    second.log_metrics({"loss": 9.0, "dice": 0.5}, 3)
    assert [(row["step"], row["loss"], row["dice"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""),
        ("1", "0.25", ""),
        ("2", "0.5", ""),
        ("3", "9.0", "0.5"),
    ]

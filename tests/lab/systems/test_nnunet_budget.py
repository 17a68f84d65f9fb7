"""nnU-Net's loop ended by the clock, with a stand-in trainer whose epochs take 6 s of processor time each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from voxsam.lab.systems.nnunet_stages import Folders, NnUNetSettings, _run_within
from voxsam.lab.training import budget


class Trainer:
    """Counts its epochs, and notes the learning rate of each by nnU-Net's schedule."""

    def __init__(self, folders: Folders, settings: NnUNetSettings, clock: list[float], epoch: int = 0) -> None:
        self.folders, self.settings, self.clock, self.current_epoch = folders, settings, clock, epoch
        self.device, self.lr_scheduler, self.rates, self.ended = torch.device("cpu"), SimpleNamespace(), [], 0
        self.logger: Any = SimpleNamespace(get_value=lambda key, step: 0.1 * self.current_epoch)

    def on_epoch_start(self) -> None:
        self.rates.append(1 - self.current_epoch / self.lr_scheduler.max_steps)

    def on_epoch_end(self) -> None:
        self.current_epoch += 1

    def run_training(self) -> None:
        self.clock[0] += 100  # setting up
        for _ in range(self.current_epoch, 1000):
            self.on_epoch_start()
            self.clock[0] += 6
            self.on_epoch_end()

    def on_train_end(self) -> None:
        path = self.folders.checkpoint(self.settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(self.current_epoch))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(budget, "used_seconds", lambda children, device: now[0])
    return now


def test_it_ends_by_the_clock_and_its_rate_falls_with_the_time(tmp_path: Path, clock: list[float]) -> None:
    folders, settings = Folders(tmp_path), NnUNetSettings(minutes=1, results="results-0.01")
    (tmp_path / "results-0.01").mkdir()
    trainer = Trainer(folders, settings, clock)
    _run_within(trainer, folders, settings, 1)
    assert trainer.current_epoch == 10 and folders.checkpoint(settings).is_file()
    assert trainer.rates == pytest.approx([1 - n / 10 for n in range(10)])
    assert [minute for minute, _ in folders.curve(settings)] == pytest.approx([(n + 1) / 10 for n in range(10)])


def test_a_pause_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, clock: list[float]) -> None:
    folders, paused = Folders(tmp_path), NnUNetSettings(minutes=1, pause=0.25, results="results-0.01")
    (tmp_path / "results-0.01").mkdir()
    _run_within(Trainer(folders, paused, clock), folders, paused, 1)
    assert not folders.checkpoint(paused).exists() and len(folders.curve(paused)) == 3
    latest = folders.checkpoint(paused, "checkpoint_latest.pth")
    clock[0] = 90_000.0  # another day
    settings = paused.model_copy(update={"pause": None})
    trainer = Trainer(folders, settings, clock, epoch=int(latest.read_text()))
    _run_within(trainer, folders, settings, 1)
    assert trainer.current_epoch == 10 and trainer.rates == pytest.approx([1 - n / 10 for n in range(3, 10)])
    assert len(folders.curve(settings)) == 10


def test_epochs_after_the_checkpoint_are_forgotten(tmp_path: Path, clock: list[float]) -> None:
    """Killed after the fifth epoch, with a checkpoint of the second."""
    folders, settings = Folders(tmp_path), NnUNetSettings(minutes=1, pause=0.5, results="results-0.01")
    (tmp_path / "results-0.01").mkdir()
    _run_within(Trainer(folders, settings, clock), folders, settings, 1)
    assert len(folders.curve(settings)) == 5
    settings = settings.model_copy(update={"pause": None})
    trainer = Trainer(folders, settings, clock, epoch=2)
    _run_within(trainer, folders, settings, 1)
    assert trainer.current_epoch == 10 and [round(m, 6) for m, _ in folders.curve(settings)][:4] == [0.1, 0.2, 0.3, 0.4]

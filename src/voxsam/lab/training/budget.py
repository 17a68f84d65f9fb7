"""A budget of processor time: counts what a training uses over all its starts, and ends it when the budget is spent."""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import psutil
import torch
from lightning.pytorch.callbacks import Callback

from voxsam.lab.training import Curve
from voxsam.lab.training.task import VALIDATION

MINUTES = "minutes"  # a column of metrics.csv, as is VALIDATION


def used_seconds(children: bool, device: torch.device) -> float:
    """Processor time in seconds of this process, and with `children` of its children; on a GPU wall-clock time.

    Only differences are meaningful.
    """
    if device.type != "cpu":
        return time.perf_counter()
    if not children:
        return time.process_time()
    process = psutil.Process()
    seconds = sum(process.cpu_times()[:4])  # its own and that of finished children
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            seconds += sum(child.cpu_times()[:2])
    return seconds


class Budget(Callback):
    """Ends a training after `minutes`, or at `pause` if that is earlier, with a validation and a checkpoint.

    A checkpoint holds the time that led to it: steps lost when a run is killed do not count towards the budget.
    Validation counts, setup does not. Must come before the callback that averages weights.
    """

    def __init__(self, minutes: float, pause: float | None, checkpoint: Path, children: bool) -> None:
        self.seconds, self.end = 60 * minutes, 60 * min(minutes, minutes if pause is None else pause)
        self.checkpoint, self.children = checkpoint, children
        self._before, self._start, self._device = 0.0, None, torch.device("cpu")

    @property
    def used(self) -> float:
        """Seconds used so far."""
        now = 0.0 if self._start is None else used_seconds(self.children, self._device) - self._start
        return self._before + now

    def fraction(self) -> float:
        """The fraction of the whole budget used, 0 to 1; the learning rate follows it."""
        return min(1.0, self.used / self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Called by Lightning when it writes a checkpoint."""
        return {"seconds": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning with the state in a checkpoint."""
        self._before = float(state_dict["seconds"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._device = pl_module.device
        self._start = used_seconds(self.children, self._device)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object, **__: object
    ) -> None:
        """Stop after a whole step if the time is up; Lightning then validates once more."""
        whole = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if whole and trainer.strategy.reduce_boolean_decision(self.used >= self.end, all=False):
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the time of the validation beside its score."""
        pl_module.log(MINUTES, self.used / 60)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep a checkpoint that knows of the last validation, before the averages take the place of the weights."""
        trainer.save_checkpoint(self.checkpoint)


def read_curve(out: Path) -> Curve:
    """The validations of the run in `out`, from that before its first step on; without `minutes` only that one."""
    path = out / "log" / "metrics.csv"
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(VALIDATION) and row.get(MINUTES)]
    return tuple((float(row[MINUTES]), float(row[VALIDATION])) for row in rows)

"""A budget of processor time: what a training has used over all its starts, and its end when that is spent."""

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

MINUTES = "minutes"  # the column of metrics.csv beside VALIDATION


def used_seconds(children: bool, device: torch.device) -> float:
    """Processor time in seconds of this process, and of its children if asked; on a GPU the time of the clock.

    Only differences mean something.
    """
    if device.type != "cpu":
        return time.perf_counter()
    if not children:
        return time.process_time()
    process = psutil.Process()
    seconds = sum(process.cpu_times()[:4])  # its own and that of children that have ended
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            seconds += sum(child.cpu_times()[:2])
    return seconds


class Budget(Callback):
    """Ends a training after `minutes`, or at `pause` if that comes first; validates then, and keeps the checkpoint.

    A checkpoint holds the time that led to it: what is lost when a run is killed, is lost from the time as well.
    Validations count, setting up does not. Stands before the callback that averages weights.
    """

    def __init__(self, minutes: float, pause: float | None, checkpoint: Path, children: bool) -> None:
        self.seconds, self.end = 60 * minutes, 60 * min(minutes, minutes if pause is None else pause)
        self.checkpoint, self.children = checkpoint, children
        self._before, self._start, self._device = 0.0, None, torch.device("cpu")

    @property
    def used(self) -> float:
        """Seconds so far."""
        now = 0.0 if self._start is None else used_seconds(self.children, self._device) - self._start
        return self._before + now

    def fraction(self) -> float:
        """Of the whole budget, 0 to 1; the learning rate follows it."""
        return min(1.0, self.used / self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Called by Lightning for a checkpoint."""
        return {"seconds": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning with what a checkpoint holds."""
        self._before = float(state_dict["seconds"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The time begins."""
        self._device = pl_module.device
        self._start = used_seconds(self.children, self._device)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object, **__: object
    ) -> None:
        """After a whole step: stop, if the time is up. Lightning validates once more then."""
        whole = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if whole and trainer.strategy.reduce_boolean_decision(self.used >= self.end, all=False):
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """When it was, beside how good it was."""
        pl_module.log(MINUTES, self.used / 60)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """With all that the last validation found; the averages are not in the place of the weights yet."""
        trainer.save_checkpoint(self.checkpoint)


def read_curve(out: Path) -> Curve:
    """The validations of a run in `out`, from that before its first step on; a run without minutes has that alone."""
    path = out / "log" / "metrics.csv"
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(VALIDATION) and row.get(MINUTES)]
    return tuple((float(row[MINUTES]), float(row[VALIDATION])) for row in rows)

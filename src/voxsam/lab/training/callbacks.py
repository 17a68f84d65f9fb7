"""How a run is doing, and how it stops: progress, Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from voxsam.lab.training import Stopped
from voxsam.lab.training.memory import used_bytes

RECENT = 50  # batches whose time makes the rate
LINE_EVERY_S = 30.0  # where there is no terminal
SHOWN = ("loss", "dice", "validation dice")


class LiveProgress(TQDMProgressBar):
    """Also logs "samples/s" (of all processes) and "memory GB" (of this one) with the loss."""

    def __init__(self, crops_per_batch: int) -> None:
        super().__init__(leave=True)
        self.crops_per_batch = crops_per_batch  # of all processes
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        self._line = 0.0
        self._terminal = sys.stderr.isatty()

    def init_train_tqdm(self) -> Tqdm:
        """The bar, on stderr as all progress."""
        return self._bar("training")

    def init_validation_tqdm(self) -> Tqdm:
        """A second bar while validating, gone afterwards."""
        return self._bar("validation", leave=False)

    def _bar(self, what: str, leave: bool = True) -> Tqdm:
        hidden = self.is_disabled or not self._terminal
        return Tqdm(
            desc=what, disable=hidden, leave=leave, dynamic_ncols=True, file=sys.stderr, bar_format=self.BAR_FORMAT
        )

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Lightning's single epoch is the whole run."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description("training")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *rest: Any, **named: Any
    ) -> None:
        """Measure, log and show."""
        now = time.perf_counter()
        self._ends.append(now)
        if len(self._ends) > 1:
            rate = (len(self._ends) - 1) * self.crops_per_batch / (self._ends[-1] - self._ends[0])
            pl_module.log("samples/s", rate)
        pl_module.log("memory GB", used_bytes(pl_module.device) / 1e9)
        super().on_train_batch_end(trainer, pl_module, *rest, **named)
        if not self._terminal and not self.is_disabled and now - self._line >= LINE_EVERY_S:
            self._line = now
            steps = f"step {trainer.global_step} of {trainer.max_steps}"
            sys.stderr.write(f"{steps}: {describe(self.get_metrics(trainer, pl_module))}\n")
            sys.stderr.flush()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The time that validating takes is not the samples'."""
        self._ends.clear()
        super().on_validation_start(trainer, pl_module)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """What the bar shows, in words."""
        logged = {**trainer.callback_metrics, **trainer.progress_bar_metrics}
        shown = {name: f"{float(logged[name]):.3f}" for name in SHOWN if name in logged}
        if "samples/s" in logged:
            shown["samples/s"] = f"{float(logged['samples/s']):.3g}"
        shown["memory"] = f"{float(logged.get('memory GB', 0)):.2f} GB"
        return shown


def describe(metrics: dict[str, Any]) -> str:
    """`loss 0.412, dice 0.713, ...`."""
    return ", ".join(f"{name} {value}" for name, value in metrics.items())


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Raises Stopped after the step in which a signal came; a second signal is a KeyboardInterrupt at once.

    Stands after the callback that averages weights: the checkpoint is to hold the step's averages.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.asked, self._stops = checkpoint, False, False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen; only a program's main thread may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object, **__: object
    ) -> None:
        """After a step, in all processes after the same one: keep it."""
        whole = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if whole and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.save_checkpoint(self.checkpoint)
            self._stops = True

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object, **__: object) -> None:
        """Stop before the next step: by now the last one is logged, which comes after its end."""
        if self._stops:
            raise Stopped(trainer.global_step, self.checkpoint)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Signals mean again what they meant before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

"""Ctrl-C and SIGTERM: the step under way is finished, a checkpoint is written, and the run can go on from there."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from voxsam.errors import VoxSAMError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(VoxSAMError):
    """The run was asked to stop after `step` steps; `checkpoint` holds all of them."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        self.step, self.checkpoint = step, checkpoint
        super().__init__(f"stopped after step {step}; the same command goes on from {checkpoint}")


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

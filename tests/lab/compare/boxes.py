"""Systems for the tests of comparisons: registered by a plan's `modules`, fast, with masks known in advance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from voxsam.errors import UnsupportedError
from voxsam.lab.evaluation.systems import Opened, System
from voxsam.lab.systems.compared import About, ComparedSystem, Job, Log, Trained, register, train_within
from voxsam.lab.training import Curve
from voxsam.prompts import Point
from voxsam.volume import Volume

ABOUT = About("Box", "nobody, 2026", "https://example.org", "CC0", "the tests", note="it knows nothing")


class Box:
    """A box of `reach` voxels around every click or, with `auto`, the whole scan."""

    takes_negative, parameters = False, 2_500_000

    def __init__(self, reach: int, auto: bool = False) -> None:
        self.name, self.reach, self.takes_clicks = "box", reach, not auto

    def open(self, volume: Volume) -> Opened:
        self.volume = volume
        return self

    def segment(self, points: Sequence[Point]) -> Volume:
        mask = np.full(self.volume.grid.shape, not self.takes_clicks, np.uint8)
        for point in points:
            at = np.rint(self.volume.grid.world_to_index(point.world_mm)).astype(int)
            mask[tuple(slice(max(0, i - self.reach), i + self.reach + 1) for i in at)] = 1
        return self.volume.with_array(mask, "SEG")


@register("box")
class BoxSystem(ComparedSystem):
    name, about = "box", ABOUT
    options: ClassVar = {
        "reach": "voxels",
        "auto": "without clicks",
        "fault": "what goes wrong",
        "scores": "of the validations",
    }

    def check(self, job: Job) -> None:
        super().check(job)
        if job.options.get("fault") == "library":
            raise UnsupportedError("no boxlib", "boxlib 2", "pip install boxlib")

    def train(self, job: Job, log: Log) -> Trained | None:
        with (job.out / "trained").open("a") as file:
            file.write(f"{job.seed}\n")
        fault = job.options.get("fault")
        if fault == "crash":
            raise RuntimeError("the box\nfell")
        if fault == "memory":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "child":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(job.out)])
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "slow":
            time.sleep(600)
        if fault == "once" and len((job.out / "trained").read_text().splitlines()) == 1:
            raise RuntimeError("the first time")
        log("trained")
        if job.budget is None:
            return None
        scores = job.options.get("scores", [0.5] * 9)

        def run(rate: float, pause: float | None) -> Curve:
            """A run is the better the nearer its rate is to 3; a training of this plan has nine validations."""
            end = pause or job.budget.own_minutes
            with (job.out / "runs").open("a") as file:
                file.write(f"{rate:g} {end:g}\n")
            if fault == "later" and pause is None and len((job.out / "trained").read_text().splitlines()) == 1:
                raise RuntimeError("the first time")
            return tuple((end * (n + 1) / 9, score - abs(rate - 3) / 10) for n, score in enumerate(scores))

        return train_within(job.budget, 1.0, job.out, run)

    def load(self, job: Job) -> System:
        return Box(job.options.get("reach", 3), job.options.get("auto", False))

    def tuned_parameters(self, job: Job) -> int:
        return 1_234_567

    def tuned_encoder_parameters(self, job: Job) -> int | None:
        return 12_345

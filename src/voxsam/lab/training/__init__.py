"""Training: recipes, the Lightning task, and runs that resume where they stopped."""

from __future__ import annotations

from pathlib import Path

from voxsam.errors import VoxSAMError

Curve = tuple[tuple[float, float], ...]  # (minutes, Dice on the validation cases)


class Stopped(VoxSAMError):
    """The run was asked to stop after `step` steps; `checkpoint` has everything up to there."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        self.step, self.checkpoint = step, checkpoint
        super().__init__(f"stopped after step {step}; the same command goes on from {checkpoint}")

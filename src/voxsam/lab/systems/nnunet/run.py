"""One run of nnU-Net: its settings, where its files lie, and the environment that it reads them from.

nnU-Net's own process reads this: nothing heavy is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, field_validator

DATASET = "Dataset001_voxsam"


class NnUNetSettings(BaseModel):
    """One run of nnU-Net; the keys are those of OPTIONS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configuration: str = "3d_fullres"
    planner: str = "ExperimentPlanner"
    epochs: PositiveInt = 1000
    iterations: PositiveInt = 250
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    batch: PositiveInt | None = None
    features: PositiveInt | None = None
    processes: int = 0
    mirroring: bool = True
    seed: int = 0
    device: str = "cpu"

    @field_validator("configuration")
    @classmethod
    def _known(cls, configuration: str) -> str:
        if configuration not in ("2d", "3d_fullres", "3d_lowres"):
            raise ValueError("one of 3d_fullres, 2d, 3d_lowres")
        return configuration


class Folders:
    """Where a run's files lie, all in the job's own folder."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.raw, self.preprocessed, self.results = (self.out / part for part in ("raw", "preprocessed", "results"))
        self.settings = self.out / "settings.json"
        self.planned = self.out / "planned"  # holds the name of the plans once all is preprocessed

    @property
    def plans(self) -> str | None:
        """The name of the finished plans, e.g. nnUNetPlans; None before."""
        return self.planned.read_text(encoding="utf-8").strip() if self.planned.is_file() else None

    def model(self, settings: NnUNetSettings) -> Path:
        """The folder of the trained model, as nnU-Net names it."""
        return self.results / DATASET / f"nnUNetTrainer__{self.plans}__{settings.configuration}"

    def checkpoint(self, settings: NnUNetSettings, name: str = "checkpoint_final.pth") -> Path:
        """A checkpoint of the only fold."""
        return self.model(settings) / "fold_0" / name

    def environment(self, stage: str, settings: NnUNetSettings) -> dict[str, str]:
        """This process's environment, and what a stage of nnU-Net reads of it."""
        processes = max(1, settings.processes)  # the planner takes no 0
        return {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": str(settings.processes if stage == "train" else processes),
            "nnUNet_def_n_proc": str(processes),
            "MPLBACKEND": "Agg",
        }

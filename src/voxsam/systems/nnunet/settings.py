"""What a comparison may choose of nnU-Net, where its files lie, and the environment that it reads them from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, field_validator

from voxsam.data.parallel import available_cores
from voxsam.errors import InputError
from voxsam.systems.compared import Job

DATASET = "Dataset001_voxsam"
TINY: dict[str, Any] = {  # a run that shows all stages in a minute and a half on one core
    "patch": (32, 32, 32),
    "batch": 2,
    "features": 8,
    "epochs": 4,
    "iterations": 25,
    "processes": 0,
    "mirroring": False,
}
OPTIONS: Mapping[str, str] = {
    "tiny": "true: small patches, a narrow network, 100 iterations, to show all stages on a laptop",
    "configuration": "3d_fullres (default), 2d or 3d_lowres",
    "planner": "ExperimentPlanner (default), or nnUNetPlannerResEncM, -L, -XL: the residual encoders",
    "epochs": "default: the recipe's steps divided by the iterations; 1000 without steps",
    "iterations": "of an epoch; default 250",
    "spacing_mm": "of 3d_fullres along S, A, R; default: nnU-Net's own choice",
    "patch": "at most so many voxels along S, A, R; default: what nnU-Net's memory target allows",
    "batch": "default: nnU-Net's own choice",
    "features": "width of the first stage; default 32",
    "processes": "that make crops, and that preprocess; 0: the training process itself; default: the cores, at most 8",
    "mirroring": "false: no mirrored passes when predicting, eight times as fast; default true",
}


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


def settings_of(job: Job, device: str = "cpu") -> NnUNetSettings:
    """The settings of a job: its options over those of `tiny`, over what its recipe says of the budget.

    Raises InputError for an option that makes no sense.
    """
    options = dict(job.options)
    fields: dict[str, Any] = {"processes": available_cores(), **(TINY if options.pop("tiny", False) else {})}
    steps = job.recipe.get("steps")
    if steps and "epochs" not in {**fields, **options}:
        fields["iterations"] = min(int(options.get("iterations", 250)), int(steps))
        fields["epochs"] = math.ceil(int(steps) / fields["iterations"])
    try:
        return NnUNetSettings(**{**fields, **options, "seed": job.seed, "device": device})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where} of nnunet: {first['msg']}", "one of its options", "change the plan") from error


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

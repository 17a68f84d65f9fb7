"""nnU-Net's stages, each in its own process: python -P stages.py prepare|train FOLDER; and the layout of their files.

FOLDER holds settings.json and the raw data set; environment variables name nnU-Net's folders. Output is the log.
nnU-Net starts many processes that all import this file, so heavy imports are inside the functions.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, field_validator

from voxsam.lab.training import Curve

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
    learning_rate: PositiveFloat = 0.01  # nnU-Net's own
    results: str = "results"  # the folder of this training
    minutes: PositiveFloat | None = None  # of processor time, instead of `epochs`
    pause: PositiveFloat | None = None  # minutes after which to wait for another start

    @field_validator("configuration")
    @classmethod
    def _known(cls, configuration: str) -> str:
        if configuration not in ("2d", "3d_fullres", "3d_lowres"):
            raise ValueError("one of 3d_fullres, 2d, 3d_lowres")
        return configuration


class Folders:
    """The paths of a run's files, all in the job's own folder."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.raw, self.preprocessed = self.out / "raw", self.out / "preprocessed"
        self.settings = self.out / "settings.json"
        self.planned = self.out / "planned"  # holds the name of the plans once all is preprocessed

    @property
    def plans(self) -> str | None:
        """The name of the plans, e.g. nnUNetPlans; None before preprocessing is finished."""
        return self.planned.read_text(encoding="utf-8").strip() if self.planned.is_file() else None

    def model(self, settings: NnUNetSettings) -> Path:
        """The folder of the trained model, as nnU-Net names it."""
        return self.out / settings.results / DATASET / f"nnUNetTrainer__{self.plans}__{settings.configuration}"

    def checkpoint(self, settings: NnUNetSettings, name: str = "checkpoint_final.pth") -> Path:
        """A checkpoint of the only fold."""
        return self.model(settings) / "fold_0" / name

    def curve(self, settings: NnUNetSettings) -> Curve:
        """The validations so far of a training within a budget."""
        path = self.out / settings.results / "curve.json"
        if not path.is_file():
            return ()
        return tuple((float(minute), float(dice)) for minute, dice in json.loads(path.read_text(encoding="utf-8")))

    def environment(self, stage: str, settings: NnUNetSettings) -> dict[str, str]:
        """This process's environment with the variables that a stage of nnU-Net reads."""
        processes = max(1, settings.processes)  # the planner does not take 0
        return {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.out / settings.results),
            "nnUNet_n_proc_DA": str(settings.processes if stage == "train" else processes),
            "nnUNet_def_n_proc": str(processes),
            "MPLBACKEND": "Agg",
        }


NUMBER = 1  # nnU-Net's id of the data set
SMALLEST = 4  # voxels a side that nnU-Net leaves at the bottom of its network
SAVE_EVERY = 5  # epochs, if the time ends a training
ALMOST = 1 - 1e-6  # of the minutes, at most: the schedule needs some time left
WIDEST_2D, WIDEST_3D = 512, 320  # nnU-Net's most features of a stage


def prepare(folders: Folders, settings: NnUNetSettings) -> None:
    """Extract the fingerprint, plan and preprocess; a file then marks this as done."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    from voxsam.atomic import atomic_path

    processes = max(1, settings.processes)
    extract_fingerprints([NUMBER], num_processes=processes, clean=False, show_progress_bar=False)
    name = plan_experiments(
        [NUMBER],
        settings.planner,
        overwrite_target_spacing=settings.spacing_mm,
    )
    assert name is not None
    path = folders.preprocessed / DATASET / f"{name}.json"
    plans = capped(json.loads(path.read_text(encoding="utf-8")), settings)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plans, indent=4), encoding="utf-8")
    preprocess([NUMBER], name, (settings.configuration,), [processes], show_progress_bar=False)
    with atomic_path(folders.planned) as temporary:
        temporary.write_text(name, encoding="utf-8")


def capped(plans: dict[str, Any], settings: NnUNetSettings) -> dict[str, Any]:
    """nnU-Net's plans with the settings' patch limit (and the depth that fits it), batch size and width."""
    import numpy as np
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    own = plans["configurations"][settings.configuration]
    network, spacing = own["architecture"]["arch_kwargs"], own["spacing"]
    if settings.batch is not None:
        own["batch_size"] = settings.batch
    if settings.patch is not None:
        most = np.array(settings.patch)[plans["transpose_forward"]][-len(spacing) :]
        patch = np.minimum(own["patch_size"], most)
        _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch, SMALLEST, 999999)
        own["patch_size"] = [int(n) for n in patch]
        network.update(n_stages=len(strides), strides=strides, kernel_sizes=kernels)
        for key in ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage"):
            if key in network:
                network[key] = network[key][: len(strides)]
        network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: len(strides) - 1]
    if settings.features is not None:
        widest = WIDEST_2D if len(spacing) == 2 else WIDEST_3D
        network["features_per_stage"] = [min(widest, settings.features * 2**n) for n in range(network["n_stages"])]
    return plans


def train(folders: Folders, settings: NnUNetSettings) -> None:
    """Run nnU-Net's own trainer for the settings' epochs and iterations, or minutes, from its last checkpoint if any.

    Its validation on whole scans is left out: nothing here reads it.
    """
    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    kept = ("final", "latest", "best")
    goes_on = any(folders.checkpoint(settings, f"checkpoint_{which}.pth").is_file() for which in kept)
    plans, device = folders.plans, torch.device(settings.device)
    assert plans is not None
    trainer = get_trainer_from_args(DATASET, settings.configuration, 0, "nnUNetTrainer", plans, goes_on, device)
    trainer.initial_lr = settings.learning_rate
    trainer.num_epochs = settings.epochs
    trainer.num_iterations_per_epoch = settings.iterations
    trainer.num_val_iterations_per_epoch = max(1, settings.iterations // 5)  # nnU-Net's own fraction
    trainer.save_every = max(1, min(trainer.save_every, settings.epochs // 20))
    maybe_load_checkpoint(trainer, goes_on, False)
    if settings.minutes is None:
        trainer.run_training()
    else:
        _run_within(trainer, folders, settings, settings.minutes)


class _Spent(Exception):
    """The minutes are used up."""


def _run_within(trainer: Any, folders: Folders, settings: NnUNetSettings, minutes: float) -> None:
    """Run nnU-Net's loop until the time is up after an epoch; its polynomial rate decays with time instead of epochs.

    The curve has (minutes, pseudo Dice) for each epoch, and so the time that led to a checkpoint.
    """
    from voxsam.atomic import atomic_path
    from voxsam.lab.training.budget import used_seconds

    begin_epoch, end_epoch = trainer.on_epoch_start, trainer.on_epoch_end
    curve = list(folders.curve(settings))[: trainer.current_epoch]
    before, end = curve[-1][0] if curve else 0.0, min(minutes, settings.pause or minutes)
    start: list[float] = []  # of the first epoch: setup does not count
    trainer.save_every = SAVE_EVERY
    trainer.logger.plot_progress_png = lambda folder: None  # takes seconds per epoch, and is not used

    def used() -> float:
        return before + (used_seconds(True, trainer.device) - start[0]) / 60

    def on_epoch_start() -> None:
        if not start:
            start.append(used_seconds(True, trainer.device))
        elapsed = min(used() / minutes, ALMOST)
        trainer.lr_scheduler.max_steps = trainer.current_epoch / elapsed if trainer.current_epoch else math.inf
        begin_epoch()

    def on_epoch_end() -> None:
        end_epoch()
        dice = float(trainer.logger.get_value("mean_fg_dice", step=-1))
        curve.append((used(), 0.0 if math.isnan(dice) else dice))
        path = folders.out / settings.results / "curve.json"
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(curve), encoding="utf-8")
        if curve[-1][0] >= end:
            raise _Spent

    trainer.on_epoch_start, trainer.on_epoch_end = on_epoch_start, on_epoch_end
    with suppress(_Spent):
        trainer.run_training()
    trainer.on_train_end()
    if end < minutes:
        os.replace(folders.checkpoint(settings), folders.checkpoint(settings, "checkpoint_latest.pth"))


def main(stage: str, folder: str) -> None:
    """Run one stage."""
    folders = Folders(Path(folder))
    settings = NnUNetSettings.model_validate_json(folders.settings.read_text(encoding="utf-8"))
    {"prepare": prepare, "train": train}[stage](folders, settings)


if __name__ == "__main__":
    main(*sys.argv[1:])

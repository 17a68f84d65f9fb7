"""What a comparison may choose of nnU-Net, and how little of it a laptop can bear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from voxsam.errors import InputError
from voxsam.lab.data.parallel import available_cores
from voxsam.lab.data.store import open_store
from voxsam.lab.systems.compared import Job
from voxsam.lab.systems.nnunet.run import NnUNetSettings

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
    "epochs": "of nnU-Net; default: the recipe's steps divided by the iterations, or 1000",
    "iterations": "of an epoch; default 250",
    "spacing_mm": "of 3d_fullres along S, A, R; default: nnU-Net's own choice",
    "patch": "at most so many voxels along S, A, R; default: what nnU-Net's memory target allows",
    "batch": "default: nnU-Net's own choice",
    "features": "width of the first stage; default 32",
    "processes": "that make crops, and that preprocess; 0: the training process itself; default: the cores, at most 8",
    "mirroring": "false: no mirrored passes when predicting, eight times as fast; default true",
}


def settings_of(job: Job, device: str = "cpu") -> NnUNetSettings:
    """The settings of a job: its options over those of `tiny`, over what its recipe says of the budget.

    Raises InputError for an option that makes no sense.
    """
    options = dict(job.options)
    fields: dict[str, Any] = {"processes": available_cores(), **(TINY if options.pop("tiny", False) else {})}
    steps = steps_of(job)
    if steps is not None and "epochs" not in {**fields, **options}:
        fields["iterations"] = min(int(options.get("iterations", 250)), steps)
        fields["epochs"] = math.ceil(steps / fields["iterations"])
    try:
        return NnUNetSettings(**{**fields, **options, "seed": job.seed, "device": device})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where} of nnunet: {first['msg']}", "one of its options", "change the plan") from error


def steps_of(job: Job) -> int | None:
    """The steps of the common loop: the recipe's, or its epochs times the training cases; None if it has neither."""
    recipe = job.recipe
    if recipe.get("steps"):
        return int(recipe["steps"])
    if not recipe.get("epochs"):
        return None
    crops = int(recipe.get("batch", 2)) * int(recipe.get("accumulate", 1)) * int(recipe.get("devices", 1))
    return int(recipe["epochs"]) * math.ceil(len(open_store(job.data).split["train"]) / crops)

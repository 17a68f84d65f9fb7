"""A training recipe: the whole of what decides a training run, read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from voxsam.data.augmentation import Augmentation
from voxsam.data.sampling import Prompts
from voxsam.errors import FileError, InputError
from voxsam.model.conditioning import Conditioning
from voxsam.model.sizes import ModelConfig
from voxsam.preprocess import Preprocessing

Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """`held_out` names the cases that training never sees. `steps` are optimiser steps of `batch` crops each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: ModelConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    conditioning: Conditioning | None = None  # of the finished model; training goes on without
    held_out: tuple[str, ...] = ()
    phantoms: NonNegativeInt = 0  # how many generated scans are mixed in
    phantom_share: Share = 0.0  # of the crops, falling linearly to `phantom_share_end`
    phantom_share_end: Share = 0.0
    phantom_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (72, 72, 72)
    prompts: Prompts = "clicks"
    corrections: NonNegativeInt = 4  # most simulated clicks after the first ones, in one step
    corrected: Share = 0.6  # of the steps, in which there are any
    unmarked: Share = 0.15  # of the steps, in which a model with marks is not told where the clicks are
    start_from: str | None = None  # a model whose tensors the training starts with: a name or a .safetensors file
    steps: PositiveInt
    batch: PositiveInt = 2
    learning_rate: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100  # steps
    decay: Share = 0.3  # last share of the steps, in which the learning rate falls linearly to 0
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema: Share = 0.95  # decay of the averaged weights, which are the ones kept
    seed: int = 0
    description: dict[str, str] = {}  # what the checkpoint says of itself: data set, licence, ...


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises FileError or InputError with the first fault in one line."""
    if not path.is_file():
        raise FileError(f"{path}: no such file", "a recipe in YAML", "see the folder recipes/")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {error}", "a recipe in YAML", "repair the file") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: {where}: {first['msg']}", "the keys of voxsam.training.recipe.Recipe", "mend it"
        ) from error

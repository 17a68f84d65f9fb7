"""A training recipe: all that decides a training run, read from YAML; dotted options change single keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsError

from voxsam.data.augmentation import Augmentation
from voxsam.data.sampling import Prompts
from voxsam.errors import FileError, InputError
from voxsam.model.conditioning import Conditioning
from voxsam.model.sizes import SIZES, ModelConfig
from voxsam.preprocess import Preprocessing

Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """Everything that decides a training run.

    `model` is a configuration, or the name of a size. `steps` are optimiser steps of `batch * accumulate` crops on each
    of the processes that `devices` and `nodes` make.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: str = "voxsam"  # which network: another is one of voxsam.systems, and reads of `model` its crop only
    model: ModelConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    conditioning: Conditioning | None = None  # of the finished model; training goes on without
    start_from: str | None = None  # a model whose tensors the training starts with: a name or a .safetensors file
    tune: Literal["all", "adapters"] = "all"  # "adapters": what the paper tunes; SAM's tensors stay as they are
    # data
    held_out: tuple[str, ...] = ()  # cases that training never sees
    validation: tuple[str, ...] = ()  # cases that choose the best checkpoint, and are not trained on
    phantoms: NonNegativeInt = 0  # how many generated scans are mixed in
    phantom_share: Share = 0.0  # of the crops, falling linearly to `phantom_share_end`
    phantom_share_end: Share = 0.0
    phantom_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (72, 72, 72)
    phantom_wide: Share = 0.0  # of the phantoms: a body with all that lies around it, for shapes of 300 mm and more
    phantom_small: Share = 0.0  # of the phantoms: a lesion of 1 to 60 mL
    # prompts
    prompts: Prompts = "clicks"
    corrections: NonNegativeInt = 4  # most simulated clicks after the first ones, in one step
    corrected: Share = 0.6  # of the steps, in which there are any
    unmarked: Share = 0.15  # of the steps, in which a model with marks is not told where the clicks are
    # optimisation
    steps: PositiveInt
    batch: PositiveInt = 2
    accumulate: PositiveInt = 1  # batches whose gradients make one step
    learning_rate: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100  # steps
    decay: Share = 0.3  # last share of the steps, in which the learning rate falls linearly to 0
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema: Share = 0.95  # decay of the averaged weights, which are the ones kept
    seed: int = 0
    # the run
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    recompute: bool = False  # keep the inputs of blocks only: a third of the memory, a third more time
    checkpoint_every: PositiveInt = 100  # steps
    log_every: PositiveInt = 10  # steps
    validate_every: PositiveInt = 200  # steps
    patience: PositiveInt | None = None  # validations without a better one, after which training stops
    workers: NonNegativeInt = 0  # processes that make samples; 0: the training process itself
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    strategy: str = "auto"  # of Lightning: "ddp", "fsdp", ...
    description: dict[str, str] = {}  # what the checkpoint says of itself: data set, licence, ...

    @field_validator("model", mode="before")
    @classmethod
    def _named_size(cls, model: Any) -> Any:
        return SIZES.get(model, model) if isinstance(model, str) else model


def read_recipe(path: Path, options: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, its keys changed by `options` such as "--augmentation.flip=0".

    `defaults` are the keys that the file may leave out: what a prepared data set says of itself. Raises FileError or
    InputError with the first fault in one line.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such file", "a recipe in YAML", "see the folder recipes/")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {error}", "a recipe in YAML", "repair the file") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: no keys", "a recipe in YAML", "see the folder recipes/")
    try:
        return _validated({**(defaults or {}), **fields}, options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: {where}: {first['msg']}", "the keys of voxsam.training.recipe.Recipe", "mend it"
        ) from error
    except SettingsError as error:
        what = str(error).removeprefix("error parsing CLI: ")
        raise InputError(
            what, "options as --steps 500 or --augmentation.flip 0", "see the keys in the recipe"
        ) from error


class _Settings(Recipe, BaseSettings):
    """A recipe whose keys are options of a command line, and nothing of the environment."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _validated(fields: dict[str, Any], options: Sequence[str]) -> Recipe:
    """The recipe of these fields, which the options change. Raises ValidationError or SettingsError."""
    if not options:
        return Recipe.model_validate(fields)
    source = CliSettingsSource(_Settings, cli_parse_args=list(options), cli_exit_on_error=False, cli_avoid_json=True)
    changed = _Settings(_cli_settings_source=source, **fields)  # type: ignore[call-arg]
    return Recipe.model_validate(changed.model_dump())

"""A training recipe: all that decides a training run, read from YAML; dotted options change single keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsError

from voxsam.errors import FileError, InputError
from voxsam.lab.data.augmentation import AUGMENTATIONS, Augmentation
from voxsam.lab.data.sampling import Prompts
from voxsam.lab.engine.settings import EngineSettings
from voxsam.network.conditioning import Conditioning
from voxsam.network.sizes import PROFILES, SIZES, ModelConfig
from voxsam.preprocess import Preprocessing
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model

Fields = dict[str, Any]
NAMED: dict[str, Iterable[str]] = {  # the options that take such a name
    "model": SIZES,
    "model.size": SIZES,
    "model.profile": PROFILES,
    "augmentation": AUGMENTATIONS,
}


def with_names(fields: Mapping[str, Any]) -> Fields:
    """The fields of a recipe with the names of sizes and profiles replaced by what they stand for."""
    fields = dict(fields)
    model, augmentation = fields.get("model"), fields.get("augmentation")
    if isinstance(model, str):
        model = {"size": model}
    if isinstance(model, dict):
        own = dict(model)
        profile = own.pop("profile", None)
        size = SIZES.get(own.get("size", ""))
        if size is not None:
            own = {**size.model_dump(), **PROFILES.get(str(profile), {}), **own}
        fields["model"] = own if profile in (None, *PROFILES) else {**own, "profile": profile}  # refused by its name
    if isinstance(augmentation, str) and augmentation in AUGMENTATIONS:
        fields["augmentation"] = AUGMENTATIONS[augmentation].model_dump()
    return fields


def overridden(fields: Mapping[str, Any], more: Mapping[str, Any]) -> Fields:
    """`fields` with those of `more` in their place, key by key in nested ones; a name stands for its keys."""
    out = dict(fields)
    for key, value in more.items():
        before = {"size": out[key]} if key == "model" and isinstance(out.get(key), str) else out.get(key)
        out[key] = overridden(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return out


def named_options(fields: Mapping[str, Any], options: Sequence[str]) -> tuple[Fields, list[str]]:
    """The fields as the options with names change them ("--model tiny", "--model.size=vit_b"), and the other options.

    Raises InputError for a name that is not known.
    """
    fields, left = dict(fields), []
    words = iter(options)
    chosen: dict[str, str] = {}
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if key not in NAMED or value.startswith("{"):
            left.append(word)
            continue
        value = value if equals else next(words, "")
        if value not in NAMED[key]:
            given = f"--{key} {value}".rstrip()
            raise InputError(given, f"one of {', '.join(NAMED[key])}", "name one of them, or change the recipe")
        chosen[key] = value
    for key in ("augmentation", "model"):
        if key in chosen:
            fields[key] = chosen[key]
    if "model.size" in chosen:
        fields["model"] = _resized(fields.get("model"), chosen["model.size"])
    if "model.profile" in chosen:
        model = overridden({"model": fields.get("model", {})}, {"model": {"profile": chosen["model.profile"]}})["model"]
        fields["model"] = {key: value for key, value in model.items() if key not in PROFILES[chosen["model.profile"]]}
    return fields, left


def _with_model(fields: Fields, options: Sequence[str]) -> Fields:
    """The fields with the model that the recipe, or its options, start from, where they name no other size.

    Raises as `voxsam.weights.file.read_card` for a start that cannot be read.
    """
    words = [word for option in options for word in option.removeprefix("--").split("=", 1)]
    starts = [value for word, value in pairwise(words) if word == "start_from"]
    start = starts[-1] if starts else fields.get("start_from")
    own = fields.get("model", {})
    if start is None or "model" in words or not isinstance(own, dict) or "size" in own:
        return fields
    before = {
        **read_card(find_model(start)).config.model_dump(mode="json"),
        **PROFILES.get(str(own.get("profile")), {}),
    }
    return {**fields, "model": {**before, **own}}


def _resized(model: Any, size: str) -> Fields:
    """A model's keys for another size: of the old one only what the recipe had otherwise than that size has it."""
    keys = model if isinstance(model, dict) else {"size": model}
    old = SIZES.get(str(keys.get("size")))
    if old is None:  # a size of the recipe's own: nobody can say which of its keys are not the size
        return {"size": size, **{key: keys[key] for key in ("channels", "profile") if key in keys}}
    usual = old.model_dump(mode="json")
    kept = {key: value for key, value in keys.items() if key not in usual or value != usual[key]}
    return {**kept, "size": size}


Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
PRESETS = Path(__file__).parent / "presets"
CHECKPOINT_EVERY, VALIDATE_EVERY = 100, 200  # steps
ENDLESS = 10**9  # steps of a run that its minutes end
LENGTHS = {"steps", "epochs", "minutes"}  # a recipe has one of them


class Recipe(BaseModel):
    """Everything that decides a training run.

    `model` is the name of a size, or a configuration; one with a known `size` needs no more than what differs from it,
    and `profile: paper` gives it the arithmetic of the paper's text. Of a recipe with `start_from` it is that model's,
    but for what it names. `augmentation` may be a profile's name, too.

    A step takes `batch * accumulate` crops on each of the processes that `devices` and `nodes` make. A run has so many
    `steps`, or so many `epochs`: passes over the scans, in each of which every scan gives one crop; or so many
    `minutes` of processor time (on a GPU: of the clock), all its starts together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: str = "voxsam"  # which network: another is one of voxsam.lab.systems, and reads of `model` its crop only
    options: dict[str, JsonValue] = {}  # what such a network is built with: widths, say
    model: ModelConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    conditioning: Conditioning | None = None  # of the finished model; training goes on without
    start_from: str | None = None  # a model whose tensors the training starts with: a name or a .safetensors file
    start_part: Literal["all", "sam"] = "all"  # "sam": of the start, or of SAM's own file, only what is SAM's
    blend: Fraction = 0.0  # of the start's weights in the finished model, which then keeps what the start was good at
    tune: Literal["all", "adapters"] = "all"  # "adapters": what the paper tunes; SAM's tensors stay as they are
    # data
    held_out: tuple[str, ...] = ()  # cases that training never sees
    validation: tuple[str, ...] = ()  # cases that choose the best checkpoint, and are not trained on
    phantoms: NonNegativeInt = 0  # how many generated scans are mixed in
    # of the crops, falling linearly to `phantom_fraction_end`; recipes of 0.1: phantom_share
    phantom_fraction: Fraction = Field(default=0.0, validation_alias=AliasChoices("phantom_fraction", "phantom_share"))
    phantom_fraction_end: Fraction = Field(
        default=0.0, validation_alias=AliasChoices("phantom_fraction_end", "phantom_share_end")
    )
    phantom_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (72, 72, 72)
    phantom_wide: Fraction = 0.0  # of the phantoms: a body with all that lies around it, for shapes of 300 mm and more
    phantom_small: Fraction = 0.0  # of the phantoms: a lesion of 1 to 60 mL
    engine: EngineSettings | None = None  # samples come from the data engine: `data` is a folder like the shared one
    # prompts; with "none" the model is automatic: it has no prompt encoder, and what follows of clicks does not count
    prompts: Prompts = "clicks"
    corrections: NonNegativeInt = 4  # most simulated clicks after the first ones, in one step
    corrected: Fraction = 0.6  # of the steps, in which there are any
    previous: Fraction = 0.5  # of the corrected steps, in which a network with click maps is given its last mask
    unmarked: Fraction = 0.15  # of the steps, in which a model with click maps gets none
    # optimisation
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None  # instead of `steps`; the learning rate then changes once an epoch
    minutes: PositiveFloat | None = None  # instead of `steps`; the learning rate then follows the time
    batch: PositiveInt = 2
    accumulate: PositiveInt = 1  # batches whose gradients make one step
    learning_rate: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100  # steps
    decay: Fraction = 0.3  # last fraction of the steps, in which the learning rate falls linearly
    final_factor: Fraction = 0.0  # of the learning rate, to which it falls
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # AdamW's
    weight_decay: NonNegativeFloat = 0.05
    decay_vectors: bool = False  # whether biases and norms are decayed, too
    gradient_clip: NonNegativeFloat = 1.0  # largest norm; 0: none
    clip: Literal["whole", "parts"] = "whole"  # of all gradients, or of encoder, prompt encoder and decoder each
    ema: Fraction = 0.95  # decay of the averaged weights, which are the ones kept; 0: no averages
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # the run
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    recompute: bool = False  # keep the inputs of blocks only: a third of the memory, a third more time
    checkpoint_every: PositiveInt | None = None  # steps; else 100, or an epoch where the run has epochs
    log_every: PositiveInt = 10  # steps
    validate_every: PositiveInt | None = None  # steps; else 200, or an epoch; pictures are drawn as often
    pictures: NonNegativeInt = 4  # how many examples a picture shows; 0: none are drawn
    patience: PositiveInt | None = None  # validations without a better one, after which training stops
    workers: NonNegativeInt = 0  # processes that make samples; 0: the training process itself
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    strategy: str = "auto"  # of Lightning: "ddp", "fsdp", ...
    description: dict[str, str] = {}  # what the checkpoint says of itself: data set, licence, ...

    @model_validator(mode="before")
    @classmethod
    def _named(cls, fields: Any) -> Any:
        return with_names(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if sum(length is not None for length in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("steps, epochs or minutes: one of them, and only one")
        if self.minutes is not None and self.phantom_fraction != self.phantom_fraction_end:
            raise ValueError("minutes: phantom_fraction_end must be phantom_fraction, for nobody knows the last step")
        if self.preprocessing.channels != self.model.channels:
            raise ValueError(
                f"model.channels is {self.model.channels}, and preprocessing is for {self.preprocessing.channels}"
            )
        return self

    @property
    def automatic(self) -> bool:
        """Whether the model is trained without clicks, and will take none."""
        return self.prompts == "none"

    @property
    def crops_per_step(self) -> int:
        """On all processes together."""
        return self.batch * self.accumulate * self.devices * self.nodes

    def planned(self, scans: int) -> Recipe:
        """The same run with its `steps` and all intervals as numbers, for so many scans in an epoch."""
        epoch = max(1, math.ceil(scans / self.crops_per_step))
        steps, every = (self.steps or ENDLESS, None) if self.epochs is None else (self.epochs * epoch, epoch)
        update = {
            "steps": steps,
            "checkpoint_every": self.checkpoint_every or every or CHECKPOINT_EVERY,
            "validate_every": self.validate_every or every or VALIDATE_EVERY,
        }
        return self.model_copy(update=update)


def read_recipe(
    path: Path,
    options: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    presets: Sequence[Mapping[str, Any]] = (),
) -> Recipe:
    """The recipe in a YAML file, its keys changed by `presets`, then by `options` such as "--augmentation.flip=0".

    `defaults` are the keys that the file may leave out: what a prepared data set says of itself. Raises FileError or
    InputError with the first fault in one line.
    """
    fields = {**(defaults or {}), **read_keys(path)}
    for preset in presets:
        fields = overridden(fields, preset)
    options = [_underscored(option) for option in options]
    named = LENGTHS & {option.lstrip("-").partition("=")[0] for option in options}
    if len(named) == 1:  # the one that is asked for takes the place of the others
        fields = {key: value for key, value in fields.items() if key not in LENGTHS - named}
    fields, options = named_options(fields, options)
    fields = _with_model(fields, options)
    try:
        return _validated(with_names(fields), options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join([str(path), *([".".join(map(str, first["loc"]))] if first["loc"] else []), first["msg"]])
        raise InputError(where, "the keys of voxsam.lab.training.recipe.Recipe", "correct it") from error
    except ArithmeticError as error:  # of sizes that divide by one another
        raise InputError(f"{path}: model: {error}", "sizes above 0", "correct it") from error
    except SettingsError as error:
        what = str(error).removeprefix("error parsing CLI: ")
        raise InputError(
            what, "options as --steps 500 or --augmentation.flip 0", "see the keys in the recipe"
        ) from error


def _underscored(option: str) -> str:
    """An option as the recipe's key is written: `--validate-every=5` is `--validate_every=5`."""
    key, equals, value = option.partition("=")
    return f"--{key[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else option


def read_preset(name: str) -> dict[str, Any]:
    """The keys of a preset by its name, or in a YAML file: what a machine wants otherwise than a recipe has it.

    Raises FileError for neither.
    """
    path = PRESETS / f"{name}.yaml" if name in preset_names() else Path(name)
    if not path.is_file():
        raise FileError(f"the preset {name}", f"{', '.join(preset_names())}, or a YAML file", "choose one of them")
    return read_keys(path)


def preset_names() -> list[str]:
    """The presets that come with VoxSAM."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_named(path: Path, kind: str) -> Path:
    """The file of a recipe's or a plan's name, such as `fine-tune`; a path to a file is itself."""
    named = folder_of(kind) / f"{path}.yaml"
    return named if path.name == str(path) and not path.suffix and not path.is_file() and named.is_file() else path


def names_of(kind: str) -> list[str]:
    """The recipes or plans that come with VoxSAM."""
    return sorted(path.stem for path in folder_of(kind).glob("*.yaml"))


def folder_of(kind: str) -> Path:
    """Where recipes or plans lie: in the installed package, or beside the source that it runs from."""
    installed = Path(__file__).parents[1] / kind
    return installed if installed.is_dir() else Path(__file__).parents[4] / kind


def read_keys(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The keys of a YAML file, a recipe or a plan. Raises FileError or InputError if there are none."""
    path = find_named(path, f"{what}s")
    expected, remedy = f"a {what} in YAML", f"name a file, or one of {', '.join(names_of(f'{what}s'))}"
    if not path.is_file():
        raise FileError(f"{path}: no such file", expected, remedy)
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: {error}", expected, "repair the file") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: no keys", expected, remedy)
    return fields


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

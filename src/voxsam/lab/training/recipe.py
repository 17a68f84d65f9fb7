"""A training recipe: everything that determines a training run, read from YAML; dotted options change single keys."""

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

from voxsam.errors import FileError, InputError, first_fault
from voxsam.lab.data.augmentation import AUGMENTATIONS, Augmentation
from voxsam.lab.data.sampling import Prompts
from voxsam.lab.engine.crops import EngineSettings
from voxsam.network.conditioning import Conditioning
from voxsam.network.sizes import PROFILES, SIZES, ModelConfig
from voxsam.preprocess import Preprocessing
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model

Fields = dict[str, Any]
NAMED: dict[str, Iterable[str]] = {  # the options that take a name, and the names
    "model": SIZES,
    "model.size": SIZES,
    "model.profile": PROFILES,
    "augmentation": AUGMENTATIONS,
}


def with_names(fields: Mapping[str, Any]) -> Fields:
    """The fields of a recipe, with names of sizes and profiles replaced by the keys they stand for."""
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
        fields["model"] = own if profile in (None, *PROFILES) else {**own, "profile": profile}  # the error names it
    if isinstance(augmentation, str) and augmentation in AUGMENTATIONS:
        fields["augmentation"] = AUGMENTATIONS[augmentation].model_dump()
    return fields


def overridden(fields: Mapping[str, Any], more: Mapping[str, Any]) -> Fields:
    """`fields` overridden by `more`, key by key in nested mappings; a model's name counts as its `size`."""
    out = dict(fields)
    for key, value in more.items():
        before = {"size": out[key]} if key == "model" and isinstance(out.get(key), str) else out.get(key)
        out[key] = overridden(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return out


def named_options(fields: Mapping[str, Any], options: Sequence[str]) -> tuple[Fields, list[str]]:
    """Apply the options that take names ("--model tiny", "--model.size=vit_b"); return the fields and other options.

    Raises InputError for an unknown name.
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
    """The fields with the model configuration of `start_from`, unless the recipe or its options name a size.

    Raises as `voxsam.weights.file.read_card` for a start model that cannot be read.
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
    """A model's keys for another size, keeping only those of the recipe that differed from its old size."""
    keys = model if isinstance(model, dict) else {"size": model}
    old = SIZES.get(str(keys.get("size")))
    if old is None:  # a custom size: which of its keys belong to the size is unknown
        return {"size": size, **{key: keys[key] for key in ("channels", "profile") if key in keys}}
    usual = old.model_dump(mode="json")
    kept = {key: value for key, value in keys.items() if key not in usual or value != usual[key]}
    return {**kept, "size": size}


Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
PRESETS = Path(__file__).parent / "presets"
CHECKPOINT_EVERY, VALIDATE_EVERY = 100, 200  # steps
ENDLESS = 10**9  # steps of a run that `minutes` ends
LENGTHS = {"steps", "epochs", "minutes"}  # a recipe has exactly one of these


class Recipe(BaseModel):
    """Everything that determines a training run.

    `model` is the name of a size, or a configuration; one with a known `size` only needs the keys that differ from it,
    and `profile: paper` gives it the arithmetic of the paper's text. With `start_from` the configuration defaults to
    that model's. `augmentation` may be the name of a profile, too.

    A step takes `batch * accumulate` crops on each of the `devices * nodes` processes. The length of a run is given in
    `steps`; in `epochs`, passes over the scans with one crop of each; or in `minutes` of processor time (on a GPU:
    wall-clock time), summed over all its starts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: str = "voxsam"  # the network; others are in voxsam.lab.systems, and use only the crop of `model`
    options: dict[str, JsonValue] = {}  # of such a network, e.g. its widths
    model: ModelConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    conditioning: Conditioning | None = None  # of the finished model; not used in training
    mirrored: bool = False  # of the finished model: its answers are those of a crop and of its mirror image
    start_from: str | None = None  # a model to initialise the tensors from: a name or a .safetensors file
    start_part: Literal["all", "sam"] = "all"  # "sam": only SAM's tensors, of the start model or of SAM's own file
    blend: Fraction = 0.0  # of the initial weights in the finished model, to keep what the start model was good at
    tune: Literal["all", "adapters"] = "all"  # "adapters": what the paper tunes; SAM's tensors are frozen
    # data
    held_out: tuple[str, ...] = ()  # cases that training never sees
    validation: tuple[str, ...] = ()  # cases that select the best checkpoint, and are not trained on
    phantoms: NonNegativeInt = 0  # number of generated scans mixed in
    # of the crops, changing linearly to `phantom_fraction_end`; in recipes of version 0.1: phantom_share
    phantom_fraction: Fraction = Field(default=0.0, validation_alias=AliasChoices("phantom_fraction", "phantom_share"))
    phantom_fraction_end: Fraction = Field(
        default=0.0, validation_alias=AliasChoices("phantom_fraction_end", "phantom_share_end")
    )
    phantom_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (72, 72, 72)
    phantom_wide: Fraction = 0.0  # of the phantoms: a whole body and its surroundings, for shapes of 300 mm and more
    phantom_small: Fraction = 0.0  # of the phantoms: a lesion of 1 to 60 mL
    engine: EngineSettings | None = None  # samples come from the data engine: `data` is a folder like the shared one
    # prompts; with "none" the model is automatic: it has no prompt encoder, and the keys on clicks have no effect
    prompts: Prompts = "clicks"
    corrections: NonNegativeInt = 4  # most simulated clicks after the first ones, in one step
    corrected: Fraction = 0.6  # of the steps: with corrections
    previous: Fraction = 0.5  # of the steps: a network with click maps is given its last mask for corrections
    unmarked: Fraction = 0.15  # of the steps: a model with click maps gets none
    # optimisation
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None  # instead of `steps`; the learning rate then changes once an epoch
    minutes: PositiveFloat | None = None  # instead of `steps`; the learning rate then follows the time
    batch: PositiveInt = 2
    accumulate: PositiveInt = 1  # batches whose gradients are accumulated into one step
    learning_rate: PositiveFloat = 1e-3
    warmup: NonNegativeInt = 100  # steps
    decay: Fraction = 0.3  # last fraction of the steps, in which the learning rate falls linearly
    final_factor: Fraction = 0.0  # factor of the learning rate to which it falls
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # AdamW's
    weight_decay: NonNegativeFloat = 0.05
    decay_vectors: bool = False  # whether biases and norms are decayed, too
    gradient_clip: NonNegativeFloat = 1.0  # largest norm; 0: no clipping
    clip: Literal["whole", "parts"] = "whole"  # norm over all gradients, or each of encoder, prompt encoder and decoder
    ema: Fraction = 0.95  # decay of the averaged weights, which are the ones kept; 0: no averaging
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # the run
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    recompute: bool = False  # keep only the inputs of blocks: a third of the memory, a third more time
    checkpoint_every: PositiveInt | None = None  # steps; None: 100, or an epoch if the run has epochs
    log_every: PositiveInt = 10  # steps
    validate_every: PositiveInt | None = None  # steps; None: 200, or an epoch; pictures are drawn as often
    pictures: NonNegativeInt = 4  # number of examples in a picture; 0: no pictures
    patience: PositiveInt | None = None  # validations without improvement after which training stops
    workers: NonNegativeInt = 0  # processes that make samples; 0: the training process itself
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    strategy: str = "auto"  # of Lightning: "ddp", "fsdp", ...
    description: dict[str, str] = {}  # for the model's card: data set, licence, ...

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
        """Whether the model is trained without clicks and takes none."""
        return self.prompts == "none"

    @property
    def crops_per_step(self) -> int:
        """The number of crops in a step, over all processes."""
        return self.batch * self.accumulate * self.devices * self.nodes

    def planned(self, scans: int) -> Recipe:
        """The recipe with `steps` and all intervals filled in, for epochs of this many scans."""
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
    """Read a recipe from YAML; `presets` change its keys, then `options` such as "--augmentation.flip=0".

    `defaults` are keys that the file may leave out, taken from a prepared data set. Raises FileError or InputError
    with the first fault in one line.
    """
    fields = {**(defaults or {}), **read_keys(path)}
    for preset in presets:
        fields = overridden(fields, preset)
    options = [_underscored(option) for option in options]
    named = LENGTHS & {option.lstrip("-").partition("=")[0] for option in options}
    if len(named) == 1:  # the one given as an option replaces the others
        fields = {key: value for key, value in fields.items() if key not in LENGTHS - named}
    fields, options = named_options(fields, options)
    fields = _with_model(fields, options)
    try:
        return _validated(with_names(fields), options)
    except ValidationError as error:
        given = f"{path}: {first_fault(error)}"
        raise InputError(given, "the keys of voxsam.lab.training.recipe.Recipe", "correct it") from error
    except ArithmeticError as error:  # from sizes that are divided by one another
        raise InputError(f"{path}: model: {error}", "sizes above 0", "correct it") from error
    except SettingsError as error:
        what = str(error).removeprefix("error parsing CLI: ")
        raise InputError(
            what, "options as --steps 500 or --augmentation.flip 0", "see the keys in the recipe"
        ) from error


def _underscored(option: str) -> str:
    """An option in the spelling of the recipe's key: `--validate-every=5` becomes `--validate_every=5`."""
    key, equals, value = option.partition("=")
    return f"--{key[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else option


def read_preset(name: str) -> dict[str, Any]:
    """The keys of a preset, given by name or as a YAML file: what a machine changes in a recipe.

    Raises FileError if it is neither.
    """
    path = PRESETS / f"{name}.yaml" if name in preset_names() else Path(name)
    if not path.is_file():
        raise FileError(f"the preset {name}", f"{', '.join(preset_names())}, or a YAML file", "choose one of them")
    return read_keys(path)


def preset_names() -> list[str]:
    """The names of the presets that come with VoxSAM."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_named(path: Path, kind: str) -> Path:
    """The file of a recipe or plan given by name, such as `fine-tune`; other paths are returned unchanged."""
    named = folder_of(kind) / f"{path}.yaml"
    return named if path.name == str(path) and not path.suffix and not path.is_file() and named.is_file() else path


def names_of(kind: str) -> list[str]:
    """The names of the recipes or plans that come with VoxSAM."""
    return sorted(path.stem for path in folder_of(kind).glob("*.yaml"))


def folder_of(kind: str) -> Path:
    """The folder of recipes or plans: in the installed package, or in the source tree it runs from."""
    installed = Path(__file__).parents[1] / kind
    return installed if installed.is_dir() else Path(__file__).parents[4] / kind


def read_keys(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Read the keys of a recipe or plan from YAML. Raises FileError or InputError if there are none."""
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
    """A recipe whose keys are command-line options; environment variables are ignored."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _validated(fields: dict[str, Any], options: Sequence[str]) -> Recipe:
    """The recipe of these fields, changed by the options. Raises ValidationError or SettingsError."""
    if not options:
        return Recipe.model_validate(fields)
    source = CliSettingsSource(_Settings, cli_parse_args=list(options), cli_exit_on_error=False, cli_avoid_json=True)
    changed = _Settings(_cli_settings_source=source, **fields)  # type: ignore[call-arg]
    return Recipe.model_validate(changed.model_dump())

"""Systems trained from a recipe by VoxSAM's own loop: VoxSAM, its variants, and all networks without clicks.

So they see the same scans, crops, augmentation and loss, for the same number of steps. rows.yaml lists them;
`compared_system` also finds the systems that train in their own way.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import ValidationError

import voxsam.lab.systems.classical
import voxsam.lab.systems.nnunet_system
import voxsam.lab.systems.prism
import voxsam.lab.systems.remote
import voxsam.lab.systems.sam_slices  # noqa: F401, these register themselves
from voxsam.errors import InputError, UnsupportedError, first_fault
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.systems import AutomaticSystem, SessionSystem, System
from voxsam.lab.systems.compared import (
    COMPARED,
    RANDOM_WEIGHTS,
    About,
    ComparedSystem,
    Job,
    Log,
    Trained,
    register,
    train_within,
)
from voxsam.lab.systems.networks import network_kind
from voxsam.lab.training import Curve
from voxsam.lab.training.recipe import LENGTHS, Recipe, overridden, with_names
from voxsam.lab.training.start import make_network
from voxsam.network.network import VoxSAMNetwork
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model


class CommonLoop(ComparedSystem):
    """A recipe's `system`, trained by voxsam.lab.training.run; `fixed` are the recipe keys that define the row."""

    def __init__(self, name: str, about: About, fixed: dict[str, Any], options: dict[str, str] | None = None) -> None:
        self.name, self.about, self.fixed = name, about, fixed
        self.options = options or {}

    def recipe(self, job: Job) -> Recipe:
        """The recipe that the job trains: this row's keys over the plan's over those of the data set.

        Raises InputError for keys that do not form a recipe.
        """
        store = open_store(job.data)
        given = {"name": self.name, "model": "tiny", "validation": store.split["validation"]}
        given["preprocessing"] = store.preprocessing.model_dump()
        fields = {**overridden(overridden(given, job.recipe), self.fixed), "seed": job.seed}
        if job.budget is not None:
            fields = {key: value for key, value in fields.items() if key not in LENGTHS}
            fields["minutes"] = job.budget.own_minutes
        if job.options:
            fields["options"] = {**fields.get("options", {}), **job.options}
        try:
            return Recipe.model_validate(with_names(fields))
        except ValidationError as error:
            given = f"recipe: {first_fault(error)}"
            raise InputError(given, "the keys of voxsam.lab.training.recipe.Recipe", "change the plan") from error

    def check(self, job: Job) -> None:
        """Check as for every system, and that the keys form a recipe."""
        super().check(job)
        self.recipe(job)

    def train(self, job: Job, log: Log) -> Trained | None:
        """Run the recipe in job.out/run, or with a budget in job.out/run-RATE; a finished run is left as it is."""
        from voxsam.lab.training.budget import read_curve
        from voxsam.lab.training.run import train

        recipe = self.recipe(job)
        if job.budget is None:
            if not self._model(job).is_file():
                train(recipe, job.data, job.out / "run", log=log)
            return None

        def run(rate: float, pause: float | None) -> Curve:
            out = job.out / f"run-{rate:g}"
            curve = read_curve(out)
            if not (out / "model.safetensors").is_file() and (pause is None or not curve or curve[-1][0] < pause):
                log(f"learning rate {rate:g}: to minute {pause or recipe.minutes:g}")
                train(recipe.model_copy(update={"learning_rate": rate}), job.data, out, log=log, pause=pause)
            return read_curve(out)

        return train_within(job.budget, recipe.learning_rate, job.out, run)

    def load(self, job: Job) -> System:
        """The model as in practice: clicked in a session, or by sliding window if it was trained without clicks."""
        import voxsam.lab.systems  # noqa: F401, registers the networks of model files
        from voxsam.weights import load_model

        model = load_model(self._model(job), job.device)
        return AutomaticSystem(model) if model.card.automatic else SessionSystem(model)

    def begins_with(self, job: Job) -> str:
        """The recipe's start model and its training data by its card, or the file of a network's option `weights`."""
        recipe = self.recipe(job)
        if recipe.start_from is None:
            weights = job.options.get("weights")
            return RANDOM_WEIGHTS if weights is None else f"weights of {Path(str(weights)).name}"
        part = "what is of SAM in " if recipe.start_part == "sam" else ""
        name = Path(recipe.start_from).name if recipe.start_from.endswith(".safetensors") else recipe.start_from
        try:
            data = read_card(find_model(recipe.start_from)).description.get("data", "")
        except InputError:  # not a VoxSAM model
            data = ""
        return f"{part}{name}{f', trained on {data.rstrip(chr(46))}' if data else ''}"

    def tuned_parameters(self, job: Job) -> int | None:
        """The number of parameters with gradients when the run begins."""
        return sum(p.numel() for p in make_network(self.recipe(job)).parameters() if p.requires_grad)

    def _model(self, job: Job) -> Path:
        return next(job.out.glob("run-*/model.safetensors"), job.out / "run" / "model.safetensors")


class AutomaticLoop(CommonLoop):
    """A network that takes no clicks."""

    def __init__(self, name: str, about: About, fixed: dict[str, Any]) -> None:
        super().__init__(name, about, {"system": name, "prompts": "none", **fixed}, network_kind(name).options.lines())

    def check(self, job: Job) -> None:
        """Check as for every system, and that the network can be built: options, crop, libraries, weights."""
        super().check(job)
        make_network(self.recipe(job))


class TunedEncoder(CommonLoop):
    """A way of tuning the encoder, from SAM's weights and without clicks."""

    def __init__(self, name: str, about: About, fixed: dict[str, Any]) -> None:
        super().__init__(name, about, {"prompts": "none", "start_part": "sam", **fixed})

    def tuned_parameters(self, job: Job) -> int:
        """The number of all trained parameters, including the decoder's."""
        return tuned(self.recipe(job)).trained

    def tuned_encoder_parameters(self, job: Job) -> int:
        """The number of those in the image encoder, as Table 2 counts them."""
        return tuned(self.recipe(job)).paper


class Tuned(NamedTuple):
    """Numbers of trained parameters."""

    paper: int  # in the image encoder, as Table 2 counts them
    trained: int  # everywhere


def tuned(recipe: Recipe) -> Tuned:
    """Count both for the network that a recipe trains; nothing is computed and no file is read.

    The paper counts the image encoder. For adapters on SAM's 2D encoder it leaves out the neck, though it is trained;
    for its own encoder it counts the necks, more than half of the 15.21 M, and for full fine-tuning everything. Raises
    UnsupportedError for a system that is not VoxSAM's own network.
    """
    with torch.device("meta"):
        network = make_network(recipe.model_copy(update={"start_from": None}))
    if not isinstance(network, VoxSAMNetwork):
        raise UnsupportedError(f"the tuned encoder of {recipe.system}", "voxsam", "count its parameters")
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    left_out = "image_encoder.necks." if recipe.tune == "adapters" and recipe.model.tokens == "slices" else "-"
    counted = (n for name, n in sizes.items() if name.startswith("image_encoder.") and not name.startswith(left_out))
    return Tuned(sum(counted), sum(sizes.values()))


# All systems by name

KINDS = {"loop": CommonLoop, "automatic": AutomaticLoop, "tuned": TunedEncoder}


def _register_rows() -> None:
    groups = yaml.safe_load((Path(__file__).parent / "rows.yaml").read_text(encoding="utf-8"))
    for group, kind in KINDS.items():
        for name, row in groups[group].items():
            recipe, differences = row.pop("recipe", {}), "; ".join(row.pop("differences", []))
            register(name)(partial(kind, name, About(**row, differences=differences), recipe))


_register_rows()


def compared_system(name: str) -> ComparedSystem:
    """The system with that name. Raises InputError for an unknown one."""
    if name not in COMPARED:
        raise InputError(f"the system {name}", f"one of {', '.join(sorted(COMPARED))}", "see `voxsam compare --list`")
    return COMPARED[name]()

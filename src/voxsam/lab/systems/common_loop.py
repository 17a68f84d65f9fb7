"""Systems that VoxSAM's own loop trains from a recipe: VoxSAM and its variants, and every network without clicks.

So they see the same scans, crops, augmentation and loss, for as many steps. rows.yaml has them all; with those that
have a way of their own `compared_system` knows every system by its name.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import ValidationError

import voxsam.lab.systems.nnunet_system
import voxsam.lab.systems.remote
import voxsam.lab.systems.sam_slices  # noqa: F401, which register themselves
from voxsam.errors import InputError, UnsupportedError
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.systems import AutomaticSystem, SessionSystem, System
from voxsam.lab.systems.compared import COMPARED, About, ComparedSystem, Job, Log, register
from voxsam.lab.systems.networks import network_kind
from voxsam.lab.training.recipe import Recipe, overridden, with_names
from voxsam.lab.training.start import make_network
from voxsam.network.network import VoxSAMNetwork


class CommonLoop(ComparedSystem):
    """A recipe's `system`, trained by voxsam.lab.training.run; `fixed` are keys that make the row what it is."""

    def __init__(self, name: str, about: About, fixed: dict[str, Any], options: dict[str, str] | None = None) -> None:
        self.name, self.about, self.fixed = name, about, fixed
        self.options = options or {}

    def recipe(self, job: Job) -> Recipe:
        """The recipe that the job trains: the plan's keys, then this row's own, then those of the data set.

        Raises InputError for keys that make no recipe.
        """
        store = open_store(job.data)
        given = {"name": self.name, "model": "tiny", "validation": store.split["validation"]}
        given["preprocessing"] = store.preprocessing.model_dump()
        fields = {**overridden(overridden(given, job.recipe), self.fixed), "seed": job.seed}
        if job.options:
            fields["options"] = {**fields.get("options", {}), **job.options}
        try:
            return Recipe.model_validate(with_names(fields))
        except ValidationError as error:
            first = error.errors()[0]
            given = f"recipe: {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
            raise InputError(given, "the keys of voxsam.lab.training.recipe.Recipe", "change the plan") from error

    def check(self, job: Job) -> None:
        """As for every system, and that the keys make a recipe."""
        super().check(job)
        self.recipe(job)

    def train(self, job: Job, log: Log) -> None:
        """Run the recipe in job.out/run; a finished run is left as it is."""
        from voxsam.lab.training.run import train

        if not self._model(job).is_file():
            train(self.recipe(job), job.data, job.out / "run", log=log)

    def load(self, job: Job) -> System:
        """The model as a person uses it: clicked in a session, or by sliding window if it was trained without."""
        import voxsam.lab.systems  # noqa: F401, which makes the networks of model files known
        from voxsam.weights import load_model

        model = load_model(self._model(job), job.device)
        return AutomaticSystem(model) if model.card.automatic else SessionSystem(model)

    def tuned_parameters(self, job: Job) -> int | None:
        """The parameters that have gradients when the run begins."""
        return sum(p.numel() for p in make_network(self.recipe(job)).parameters() if p.requires_grad)

    def _model(self, job: Job) -> Path:
        return job.out / "run" / "model.safetensors"


class AutomaticLoop(CommonLoop):
    """A network that takes no clicks."""

    def __init__(self, name: str, about: About, fixed: dict[str, Any]) -> None:
        super().__init__(name, about, {"system": name, "prompts": "none", **fixed}, network_kind(name).options.lines())

    def check(self, job: Job) -> None:
        """As for every system, and that the network can be built: values of options, crop, libraries, weights."""
        super().check(job)
        make_network(self.recipe(job))


class TunedEncoder(CommonLoop):
    """A way of tuning the encoder, from SAM's weights and without clicks."""

    def __init__(self, name: str, about: About, fixed: dict[str, Any]) -> None:
        super().__init__(name, about, {"prompts": "none", "start_part": "sam", **fixed})

    def tuned_parameters(self, job: Job) -> int:
        """All that is trained, the decoder included."""
        return tuned(self.recipe(job)).trained

    def tuned_encoder_parameters(self, job: Job) -> int:
        """In the image encoder, as Table 2 counts them."""
        return tuned(self.recipe(job)).paper


class Tuned(NamedTuple):
    """Numbers that training changes."""

    paper: int  # in the image encoder, as Table 2 counts them
    trained: int  # everywhere


def tuned(recipe: Recipe) -> Tuned:
    """Both numbers of the network that a recipe trains; nothing is computed and no file is read.

    The paper counts the image encoder. Of adapters on SAM's 2D encoder it leaves out the neck, though it is trained;
    of its own it counts the necks, which are more than half of its 15.21 M, and of full fine-tuning everything. Raises
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


# Every system by its name

KINDS = {"loop": CommonLoop, "automatic": AutomaticLoop, "tuned": TunedEncoder}


def _register_rows() -> None:
    groups = yaml.safe_load((Path(__file__).parent / "rows.yaml").read_text(encoding="utf-8"))
    for group, kind in KINDS.items():
        for name, row in groups[group].items():
            recipe, differences = row.pop("recipe", {}), "; ".join(row.pop("differences", []))
            register(name)(partial(kind, name, About(**row, differences=differences), recipe))


_register_rows()


def compared_system(name: str) -> ComparedSystem:
    """The system of that name. Raises InputError for one that is not known."""
    if name not in COMPARED:
        raise InputError(f"the system {name}", f"one of {', '.join(sorted(COMPARED))}", "see `voxsam compare --list`")
    return COMPARED[name]()

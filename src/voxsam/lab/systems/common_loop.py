"""Systems that are trained by VoxSAM's own loop from a recipe: VoxSAM and its variants, and every plain network.

So they see the same scans, crops, augmentation and loss, for as many steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from voxsam.errors import InputError
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.systems import AutomaticSystem, SessionSystem, System
from voxsam.lab.systems.compared import About, ComparedSystem, Job, Log, register
from voxsam.lab.training.recipe import Recipe, overridden, with_names


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
        from voxsam.lab.training.start import make_network

        return sum(p.numel() for p in make_network(self.recipe(job)).parameters() if p.requires_grad)

    def _model(self, job: Job) -> Path:
        return job.out / "run" / "model.safetensors"


@register("voxsam")
def _voxsam() -> ComparedSystem:
    about = About(
        title="VoxSAM",
        paper="Gong et al., 3DSAM-adapter, Medical Image Analysis 2024",
        source="https://github.com/med-air/3DSAM-adapter",
        licence="none stated",
        library="VoxSAM",
        differences="prompts with polarity and marks where the model configuration has them (docs/released.md)",
    )
    return CommonLoop("voxsam", about, {})


@register("click-unet")
def _click_unet() -> ComparedSystem:
    about = About(
        title="U-Net with click channels",
        paper="Xu et al., Deep Interactive Object Selection, CVPR 2016; Isensee et al., nnU-Net, Nature Methods 2021",
        source="https://github.com/Project-MONAI/MONAI",
        licence="Apache-2.0",
        library="MONAI (DynUNet)",
        differences="not in the paper: the usual design of interactive segmentation, clicks as two image channels",
    )
    return CommonLoop("click-unet", about, {"system": "click-unet", "unmarked": 0.0})

"""A recipe whose runs take seconds, for the tests of training: a minuscule network on two phantoms of 18 cm."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import yaml

from voxsam.io import write_mask, write_volume
from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.run import make_stream
from voxsam.lab.training.task import SegmentationTask
from voxsam.phantoms import make_phantom
from voxsam.testing import stub_network


def recipe(**changes: object) -> Recipe:
    """The recipe with some keys changed."""
    fields = {
        "name": "minuscule",
        "model": stub_network().config,
        "preprocessing": {"spacing_mm": (6, 6, 6), "clip": (-120, 200), "mean": 35, "sd": 40, "interpolation": "area"},
        "phantoms": 2,
        "phantom_shape": (30, 30, 30),
        "steps": 3,
        "checkpoint_every": 1,
        "log_every": 1,
        "warmup": 1,
        "seed": 1,
        "pictures": 0,
        "description": {"data": "phantoms"},
    }
    if "epochs" in changes:
        del fields["steps"]
    return Recipe.model_validate({**fields, **changes})


def write(path: Path, **changes: object) -> Path:
    """Write the recipe as a file."""
    path.write_text(yaml.safe_dump(recipe(**changes).model_dump(mode="json", exclude_none=True)))
    return path


def rows(out: Path) -> list[dict[str, str]]:
    """The log of a run."""
    with (out / "log" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of every logged step."""
    return [(int(row["step"]), float(row["loss"])) for row in rows(out) if row["loss"]]


def losses_on_one_batch(task: SegmentationTask, steps: int) -> list[float]:
    """The loss before each step on the first two samples; the gradients of the last step stay."""
    task.log_dict = task.log = lambda *_, **__: None  # type: ignore[method-assign]
    stream = make_stream(task.recipe, None)
    batch = torch.utils.data.default_collate([stream[n] for n in range(2)])
    optimiser = task.configure_optimizers()["optimizer"]
    seen = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        seen.append(float(loss))
    return seen


def write_cases(folder: Path, **seeds: int) -> Path:
    """Write phantoms, by case names, into a folder, which may already have others."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text("{}")
    for name, seed in seeds.items():
        phantom = make_phantom(seed, (30, 30, 30), (6, 6, 6))
        write_volume(phantom.scan, folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(phantom.label, folder / "labelsTr" / f"{name}.nii.gz")
    return folder

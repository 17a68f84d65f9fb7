"""A recipe whose runs take seconds: a minuscule network on two phantoms of 18 cm; for the tests of training."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from voxsam.lab.training.recipe import Recipe
from voxsam.testing import stub_network


def recipe(**changes: object) -> Recipe:
    """The recipe, with some keys changed."""
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
    """The same as a file."""
    path.write_text(yaml.safe_dump(recipe(**changes).model_dump(mode="json", exclude_none=True)))
    return path


def rows(out: Path) -> list[dict[str, str]]:
    """The log of a run."""
    with (out / "log" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of every logged step."""
    return [(int(row["step"]), float(row["loss"])) for row in rows(out) if row["loss"]]

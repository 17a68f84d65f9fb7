"""Write the model of an unfinished run: its averaged weights so far, in half precision, and its training cases.

`python -m voxsam.lab.engine.milestone RUN DATA MODEL.safetensors`: RUN is the folder of `voxsam train`, DATA its data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from voxsam.errors import InputError
from voxsam.lab.engine.check import read_any
from voxsam.lab.engine.load import load_sources
from voxsam.lab.training.keep import LAST, steps_done
from voxsam.lab.training.recipe import Recipe
from voxsam.weights.checkpoint import save_model


def write_milestone(run: Path, data: Path, target: Path) -> int:
    """Write the model and return its number of steps. Raises InputError for a run without a data engine."""
    last = run / f"{LAST}.ckpt"
    network = read_any(str(last))
    recipe = Recipe.model_validate({**network.card.recipe, "description": network.card.description})
    if recipe.engine is None:
        raise InputError(
            f"{run}: a run without a data engine", "one with `engine` in its recipe", "see docs/training.md"
        )
    steps = steps_done(last)
    description = {**network.card.description, "training": f"{steps} of {recipe.steps} steps"}
    card = network.card.model_copy(update={"description": description})
    network.card = card.having_seen(load_sources(data, recipe.engine, recipe.preprocessing).seen)
    save_model(network.half(), target)
    return steps


if __name__ == "__main__":
    done = write_milestone(*map(Path, sys.argv[1:4]))
    sys.stdout.write(f"{sys.argv[3]}: {done} steps\n")

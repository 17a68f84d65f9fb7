"""Whose run a folder holds: OUT/run.json, the recipe and the data set's fingerprint, so that it answers for no other.

What decides only the length of a run, or only what its machine does, may change from one start to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import InputError
from voxsam.lab.data.stream import fingerprint
from voxsam.lab.training.recipe import Recipe

NAME = "run.json"
KEPT = ("last.ckpt", "best.ckpt", "model.safetensors", "best.safetensors")  # what would go on, or be written over
LENGTH = {"steps", "epochs"}
MACHINE = {
    *("precision", "recompute", "workers", "devices", "nodes", "strategy", "batch", "accumulate"),
    *("checkpoint_every", "log_every", "validate_every", "pictures"),
}
SHOWN = 60  # characters of a value in a message
Identity = dict[str, Any]


def identity(recipe: Recipe, data: Path | None) -> Identity:
    """What run.json holds: the whole recipe, and the fingerprint of the data, None without. Reads no voxel."""
    found = {"recipe": recipe.model_dump(mode="json"), "data": None if data is None else fingerprint(data)}
    return json.loads(json.dumps(found))


def check_identity(mine: Identity, out: Path) -> None:
    """Raises InputError, and changes nothing, if `out` holds a run of another recipe or another data set.

    A folder that has no run.json was begun before there was one, and is not checked.
    """
    path = out / NAME
    if not path.is_file() or not any((out / name).exists() for name in KEPT):
        return
    difference = _difference(_compared(_read(path)), _compared(mine))
    if difference is not None:
        key, before, now = difference
        given = f"{out} holds another run: its {key} is {_shown(before)}, and now {_shown(now)}"
        expected = "the same recipe and data, but for steps, epochs and what the machine decides"
        raise InputError(given, expected, "choose another folder with -o, or give what the run began with")


def write_identity(mine: Identity, out: Path) -> None:
    """Write run.json, whole or not at all."""
    make_folder(out)
    with atomic_path(out / NAME) as temporary:
        temporary.write_text(json.dumps(mine, indent=1), encoding="utf-8")


def _read(path: Path) -> Identity:
    """Of a file by an older VoxSAM the keys that came later have their defaults."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(found["recipe"]).model_dump(mode="json")
        return json.loads(json.dumps({"recipe": recipe, "data": found["data"]}))
    except (ValueError, KeyError, TypeError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        given = f"{path} cannot be read ({str(fault).splitlines()[0]})"
        raise InputError(given, "what `voxsam train` wrote there", "choose another folder with -o") from error


def _compared(one: Identity) -> Identity:
    """What has to be the same in every start of a run."""
    recipe = one["recipe"]
    crops = recipe["batch"] * recipe["accumulate"] * recipe["devices"] * recipe["nodes"]
    fields = {key: value for key, value in recipe.items() if key not in LENGTH | MACHINE}
    counted = "steps" if recipe["epochs"] is None else "epochs"
    return {**fields, "crops a step": crops, "length": f"counted in {counted}", "data": one["data"]}


def _difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, dotted, whose value differs, with both values."""
    if before == now:
        return None
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return key, before, now
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return _difference(before.get(names[0]), now.get(names[0]), f"{key}.{names[0]}".lstrip("."))


def _shown(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."

"""Every compared system by its name: those of rows.yaml, which VoxSAM's own loop trains, and those with their own way.

Heavy libraries are imported by their methods.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import yaml

import voxsam.lab.systems.nnunet.system
import voxsam.lab.systems.remote
import voxsam.lab.systems.sam_slices  # noqa: F401, which register themselves
from voxsam.errors import InputError
from voxsam.lab.systems.common_loop import CommonLoop, PlainLoop, TunedEncoder
from voxsam.lab.systems.compared import COMPARED, About, ComparedSystem, register

KINDS = {"loop": CommonLoop, "plain": PlainLoop, "tuned": TunedEncoder}


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

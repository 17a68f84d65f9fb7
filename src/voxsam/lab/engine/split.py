"""The fixed split: which patients a model may be trained on, and which it is validated on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from voxsam.errors import InputError

Part = Literal["train", "validation", "excluded"]
FILE = Path(__file__).with_name("split.yaml")


@cache
def read_split() -> dict[str, dict[Part, tuple[str, ...]]]:
    """The cases (for nodules: the patients) of each part, by source (a folder of the shared data)."""
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {source: {part: tuple(names) for part, names in parts.items()} for source, parts in found.items()}


def cases(source: str, part: Part) -> tuple[str, ...]:
    """The cases of a part of a source; empty if the split has none. Raises InputError for an unknown source."""
    split = read_split()
    if source not in split:
        raise InputError(f"the source {source}", f"one of {', '.join(split)}", f"see {FILE.name}")
    return split[source].get(part, ())


def nodule_part(case: str) -> Part:
    """The part of a case of nodules_lidc, by the patient in its name `LIDC-IDRI-PATIENT_R_NODULE`."""
    patient = case.removeprefix("LIDC-IDRI-").partition("_")[0]
    if patient in cases("nodules_lidc", "excluded"):
        return "excluded"
    return "validation" if patient in cases("nodules_lidc", "validation") else "train"

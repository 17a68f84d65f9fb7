"""Lists of folds: which cases validate and test in each, from a file or a plan; no patient stands on two sides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from voxsam.errors import FileError, InputError

EXPECTED = "a list of folds, each with `test` and `validation` (nnU-Net's `val`), and `train` if it is not all others"


class Fold(BaseModel):
    """The names of the cases of each part; without `train` all others are trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("validation", "val"))
    train: tuple[str, ...] | None = None

    def split(self, names: Iterable[str], patient: str = "(.*)") -> dict[str, tuple[str, ...]]:
        """The parts of the cases `names`, each sorted; cases in none of the three are left out.

        `patient` is a regular expression whose first group is the patient's part of a case's name. Raises InputError
        for a case that is not there or stands twice, for a patient on two sides, and for nothing to train on.
        """
        known = set(names)
        train = self.train
        if train is None:
            train = tuple(sorted(known - {*self.test, *self.validation}))
        parts = {"train": train, "validation": self.validation, "test": self.test}
        sides: dict[str, str] = {}
        for part, own in parts.items():
            for name in own:
                if name not in known:
                    given = f"the case {name} in the {part} part of a fold"
                    raise InputError(given, "a sound case with a tumour of the data set", "correct the list of folds")
                who = _patient(name, patient)
                if sides.setdefault(who, part) != part:
                    given = f"{who} in the parts {sides[who]} and {part} of a fold"
                    raise InputError(given, "each patient in one of them", "correct the list of folds")
        if not train:
            raise InputError("a fold without training cases", "at least one", "correct the list of folds")
        return {part: tuple(sorted(own)) for part, own in parts.items()}


_FOLDS = TypeAdapter(tuple[Fold, ...])


def read_folds(path: Path) -> tuple[Fold, ...]:
    """The folds in a file, JSON or YAML: nnU-Net's splits_final.json, or a list of ours. Raises FileError."""
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = from_json(text) if path.suffix == ".json" else yaml.safe_load(text)
        folds = _FOLDS.validate_python(found)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error).splitlines()[0]
        raise FileError(f"{path}: {what}", EXPECTED, "correct the file") from error
    if not folds:
        raise FileError(f"{path}: no folds", EXPECTED, "correct the file")
    return folds


def check_disjoint(folds: Sequence[Fold]) -> None:
    """Raises ValueError for a case that is tested in two folds: its score would count twice."""
    tested = [name for fold in folds for name in fold.test]
    twice = sorted({name for name in tested if tested.count(name) > 1})
    if twice:
        raise ValueError(f"folds: {twice[0]} is tested twice")


def _patient(name: str, patient: str) -> str:
    found = re.match(patient, name)
    if found is None or not found.groups():
        given = f"the case {name} and the pattern {patient}"
        raise InputError(given, "a regular expression whose first group is the patient", "correct `patient`")
    return found[1]

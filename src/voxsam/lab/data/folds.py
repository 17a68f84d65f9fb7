"""Splits into training, validation and test cases: random, or folds from a file or plan; no patient is in two parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from voxsam.errors import FileError, InputError, first_fault

PARTS = ("train", "validation", "test")
FRACTIONS = (0.7, 0.1, 0.2)  # paper, Sec. 4.1
Split = dict[str, tuple[str, ...]]
EXPECTED = "a list of folds, each with `test` and `validation` (nnU-Net's `val`), and `train` if it is not all others"


def split_sizes(count: int, folds: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """The numbers of training, validation and test cases: `folds` if they add up to `count`, else 70, 10 and 20 %.

    Rounded; with three or more cases every part has at least one, with two or one there is none for validation.
    """
    if folds is not None and sum(folds) == count:
        return folds
    validation = max(1, round(FRACTIONS[1] * count)) if count > 2 else 0
    test = max(1, round(FRACTIONS[2] * count)) if count > 1 else 0
    return count - validation - test, validation, test


def split_cases(names: Iterable[str], seed: int, folds: tuple[int, int, int] | None = None) -> Split:
    """Random "train", "validation" and "test" parts, each sorted; independent of the order of `names`."""
    ordered = sorted(names)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
    sizes = split_sizes(len(ordered), folds)
    ends = np.cumsum(sizes)
    return {
        part: tuple(sorted(ordered[i] for i in order[end - size : end]))
        for part, size, end in zip(PARTS, sizes, ends, strict=True)
    }


class Fold(BaseModel):
    """The case names of each part; without `train`, all other cases are for training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("validation", "val"))
    train: tuple[str, ...] | None = None

    def split(self, names: Iterable[str], patient: str = "(.*)") -> Split:
        """The parts of the cases `names`, each sorted; cases in none of the three are left out.

        `patient` is a regular expression whose first group is the patient's part of a case's name. Raises InputError
        for an unknown case, for a patient (or a case) in two parts, and for a fold without training cases.
        """
        known = set(names)
        train = tuple(sorted(known - {*self.test, *self.validation})) if self.train is None else self.train
        parts = {"train": train, "validation": self.validation, "test": self.test}
        sides: dict[str, str] = {}
        for part, own in parts.items():
            for name in own:
                if name not in known:
                    given = f"the case {name} in the {part} part of a fold"
                    raise InputError(given, "a sound case with a tumour of the data set", "correct the list of folds")
                found = re.match(patient, name)
                if found is None or not found.groups():
                    given = f"the case {name} and the pattern {patient}"
                    expected = "a regular expression whose first group is the patient"
                    raise InputError(given, expected, "correct `patient`")
                if sides.setdefault(found[1], part) != part:
                    given = f"{found[1]} in the parts {sides[found[1]]} and {part} of a fold"
                    raise InputError(given, "each patient in one of them", "correct the list of folds")
        if not train:
            raise InputError("a fold without training cases", "at least one", "correct the list of folds")
        return {part: tuple(sorted(own)) for part, own in parts.items()}


_FOLDS = TypeAdapter(tuple[Fold, ...])


def read_folds(path: Path) -> tuple[Fold, ...]:
    """Read folds from JSON or YAML: nnU-Net's splits_final.json, or a list of `Fold`s. Raises FileError."""
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = from_json(text) if path.suffix == ".json" else yaml.safe_load(text)
        folds = _FOLDS.validate_python(found)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = first_fault(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise FileError(f"{path}: {what}", EXPECTED, "correct the file") from error
    if not folds:
        raise FileError(f"{path}: no folds", EXPECTED, "correct the file")
    return folds


def check_disjoint(folds: Sequence[Fold]) -> None:
    """Raise ValueError if a case is tested in two folds: its score would count twice."""
    tested = [name for fold in folds for name in fold.test]
    twice = sorted({name for name in tested if tested.count(name) > 1})
    if twice:
        raise ValueError(f"folds: {twice[0]} is tested twice")

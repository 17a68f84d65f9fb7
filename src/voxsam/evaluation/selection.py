"""Which cases of a folder are evaluated: all, some by name, or a split that the data set's own file names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from voxsam.data.cases import Case
from voxsam.errors import FileError, InputError


def choose_cases(cases: Sequence[Case], names: Sequence[str] | None) -> list[Case]:
    """The cases of these names, in the order of `cases`; None: all. Raises InputError for names that are not there."""
    if names is None:
        return list(cases)
    known = {case.name for case in cases}
    missing = sorted(set(names) - known)
    if missing or not names:
        given = f"no case {', '.join(missing)}" if missing else "no names of cases"
        raise InputError(given, f"names such as {cases[0].name} ({len(cases)} cases)", "check the names")
    return [case for case in cases if case.name in set(names)]


def split_names(folder: Path, split: str) -> list[str]:
    """The names under "split" in a folder's dataset.json: {"split": {"train": [...], "test": [...]}}.

    Raises FileError if it names no such split.
    """
    description = folder / "dataset.json"
    remedy = "add it, or name the cases with --cases or --held-out"
    try:
        splits = dict(json.loads(description.read_text(encoding="utf-8"))).get("split")
    except (OSError, ValueError, TypeError) as error:
        raise FileError(f"{description}: {error}", "a JSON object", "repair the file") from error
    names = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        there = f"only {', '.join(splits)}" if isinstance(splits, dict) and splits else "none"
        given = f"{description} without a split {split!r} (it has {there})"
        raise FileError(given, f'"split": {{"{split}": [names of cases]}}', remedy)
    return names

"""Which cases of a folder are evaluated: all, some by name, or a split that its dataset.json names."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from voxsam.errors import FileError, InputError
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.cases import Case, LabelChoice, find_cases, label_values, listed
from voxsam.lab.data.store import Description, find_description


def find_labelled(folder: Path) -> tuple[list[Case], tuple[int, ...]]:
    """The labelled cases of a folder, and the label values that are the tumour; no values: all above 0 not ignored.

    Of a folder of `voxsam prepare` they are the files that it was made of, for masks are scored on the scan's own grid.
    Raises FileError for a folder of another kind, and for sources that are not where they were.
    """
    description = find_description(folder)
    if description is None:
        return find_cases(folder), ()
    return [_source_of(name, description, folder) for name in sorted(description.cases)], description.labels or ()


def _source_of(name: str, description: Description, folder: Path) -> Case:
    if not description.root:
        given = f"{folder}: prepared by an earlier VoxSAM, which did not note the folder of the data set"
        raise FileError(given, "a folder that says where its scans are", "run `voxsam prepare` again; it is quick")
    *images, label = (Path(description.root) / source.path for source in description.cases[name].sources)
    gone = [path for path in (*images, label) if not path.exists()]
    if gone:
        given, expected = f"{gone[0]}, of which {folder} was prepared, is gone", "the data set where it was"
        raise FileError(given, expected, "put it back, or give the data set's new folder")
    choice = LabelChoice(description.labels, ignored=frozenset(description.ignored_labels))
    return Case(name, tuple(images), label, choice)


def check_labels(cases: Sequence[Case], labels: Collection[int]) -> None:
    """Raises InputError for a value that is in no label of the cases and that their data set does not name either.

    Labels are read only for values that it does not name, and only until all are found.
    """
    missing = set(labels).difference(*(case.choice.known or () for case in cases))
    present: set[int] = set()
    for case in cases:
        case.choice.of(labels)
        if missing - present:
            scan = read_channels(case.image)[0]
            present |= label_values(read_volume(case.label, labels=True, scan=scan).array)
    if missing - present:
        there = present.union(*(case.choice.known or () for case in cases)) - {0}
        given = f"--labels {','.join(map(str, labels))}: no label has the value {listed(missing - present)}"
        raise InputError(given, f"some of {listed(there)}" if there else "labels that are not empty", "correct it")


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

"""Pairs of images and labels that a CSV table lists, and what the cases are called."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from voxsam.errors import FileError
from voxsam.lab.data.cases import Case, Fault, RawData

CASE_NAME = re.compile(r"\w[\w.-]*")  # becomes the name of a folder


def read_csv(path: Path) -> RawData:
    """A table with a header: `image` (further channels `image_1`, `image_2`, ...), `label`, and if wanted `name`.

    Paths are relative to the table's folder. Without `name` a case is called as its label file; where several have one
    name, as the folder of its label file, or by as many folders as tell it apart.
    Raises FileError for a file that is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
            columns = list(rows[0]) if rows else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path} could not be read ({error})", "a CSV table in UTF-8", "export it again") from error
    channels = [c for c in columns if re.fullmatch(r"image(_\d+)?", c or "")]
    if "image" not in channels or "label" not in columns:
        given = f"{path} with the columns {', '.join(map(str, columns)) or 'of an empty table'}"
        raise FileError(given, "the columns image and label, and rows below them", "name them in the first line")
    channels.sort(key=lambda c: int(c.partition("_")[2] or 0))
    cases: dict[str, Case] = {}
    faults = []
    files = [_files(path, line, row, channels) for line, row in enumerate(rows, start=2)]
    names = _names(
        [((row.get("name") or "").strip(), label) for row, (*_, label) in zip(rows, files, strict=True)], path
    )
    for line, (name, (*images, label)) in enumerate(zip(names, files, strict=True), start=2):
        if not CASE_NAME.fullmatch(name):
            given = f"{path}, line {line}: the name {name!r}"
            raise FileError(given, "letters, digits, '_', '-' and '.'", "rename the case")
        case = Case(name, tuple(images), label)
        if case.name in cases:
            given = f"line {line}: a second case {case.name}"
            faults.append(Fault(case.name, "duplicate case", given, "each name once", "rename or remove one"))
        cases.setdefault(case.name, case)
    return RawData(path.parent, tuple(cases.values()), tuple(faults))


def _files(path: Path, line: int, row: dict[str, str | None], channels: list[str]) -> list[Path]:
    """The images of a line, and its label."""
    cells = [(row.get(column) or "").strip() for column in (*channels, "label")]
    if not all(cells):
        raise FileError(f"{path}, line {line}: an empty cell", "an image and a label in each line", "fill it in")
    return [path.parent / cell for cell in cells]


def _names(rows: Sequence[tuple[str, Path]], table: Path) -> list[str]:
    """The name of each line: its own, if it has one, else the first that no other line has of what its label suggests.

    Where lines share a name, those that have moved on furthest already move on.
    """
    choices = [[own] if own else _names_of(label, table.parent) for own, label in rows]
    levels = [0] * len(rows)
    while True:
        users: dict[str, list[int]] = {}
        for line, (names, level) in enumerate(zip(choices, levels, strict=True)):
            users.setdefault(names[level], []).append(line)
        moving = []
        for lines in users.values():
            movable = [n for n in lines if levels[n] + 1 < len(choices[n])]
            if len({tuple(choices[n]) for n in lines}) > 1 and movable:  # one file twice stays a duplicate
                furthest = max(levels[n] for n in movable)
                moving += [n for n in movable if levels[n] == furthest]
        if not moving:
            return [names[level] for names, level in zip(choices, levels, strict=True)]
        for line in moving:
            levels[line] += 1


def _names_of(label: Path, folder: Path) -> list[str]:
    """What a case may be called by its label file: its name, its folder's, both, and with ever more of the folders.

    Those are told from `folder` on, where it lies inside.
    """
    stem = re.sub(r"\.(nii\.gz|nii|nrrd|mha)$", "", label.name, flags=re.IGNORECASE)
    parts = (label.relative_to(folder) if label.is_relative_to(folder) else label).parts[:-1]
    folders = [re.sub(r"[^\w.-]+", "_", part) for part in parts if part.strip("./\\")]
    tails = ["_".join((*folders[-n:], stem)) for n in range(1, len(folders) + 1)]
    return [stem, *folders[-1:], *tails]

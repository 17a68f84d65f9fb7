"""The table of what was done, one line a scan: written as the run goes on, and read again to go on after a stop."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from voxsam.atomic import atomic_path
from voxsam.batch.listing import Job
from voxsam.batch.worker import Row, Settings
from voxsam.errors import FileError

TABLE = "cohort.csv"
COLUMNS = [field.name for field in fields(Row)]
NUMBERS = ("volume_ml", "diameter_mm", "reading_s", "segmenting_s", "writing_s")
KEY_DIGITS = 16


class Ledger:
    """The table in the folder `output`; a context. When it opens, it holds the rows `kept` and no others.

    A line is added as soon as a scan is finished. A line that a crash cut off is as if it had not been.
    """

    def __init__(self, output: Path, kept: Iterable[Row]) -> None:
        self.path = output / TABLE
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(asdict(row) for row in kept)

    def __enter__(self) -> Ledger:
        self._file: TextIO = open(self.path, "a", newline="", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        """Write a row, at once."""
        try:
            csv.DictWriter(self._file, COLUMNS).writerow(asdict(row))
            self._file.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileError(f"{self.path} ({reason})", "a disk with space", "make room, then run it again") from error


def read_table(output: Path) -> dict[str, Row]:
    """The rows that the folder's table has, by name; of several of one name, the last.

    Raises FileError for a file that is no such table: it may be a list of scans, and is not to be replaced.
    """
    try:
        with open(output / TABLE, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or COLUMNS):
                raise FileError(f"{output / TABLE} with other columns", "the table of a cohort", "move it away")
            return {row.name: row for row in _rows(reader)}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{output / TABLE} ({error})", "the table of a cohort", "move it away") from error


def _rows(reader: csv.DictReader[str]) -> Iterator[Row]:
    for cells in reader:
        if not cells["key"]:  # the last column: the line is not whole
            continue
        try:
            numbers = {name: float(cells[name]) if cells[name] else None for name in NUMBERS}
        except ValueError:  # a spreadsheet has written it, with numbers of its own
            continue
        yield replace(Row("", "", "done"), **{**{name: cells[name] for name in COLUMNS}, **numbers})


def key_of(job: Job, settings: Settings, model: str) -> str:
    """A short hash of all that a mask is made from: files (size, time of change), clicks, model, settings, release."""
    from voxsam import __version__

    made_from: dict[str, Any] = {
        "voxsam": __version__,
        "model": [model, settings.precision],
        "how": [settings.automatic, settings.follow, settings.overlap, settings.suffix],
        "images": [_stamp(path) for path in job.images],
        "clicks": [asdict(click) for click in job.clicks],
    }
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:KEY_DIGITS]


def _stamp(path: Path) -> list[Any]:
    """What changes with a file, or with any file of a folder; a path that is not there has a stamp, too."""
    try:
        found = [path, *path.rglob("*")] if path.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in sorted(found)]
    except OSError:
        return [str(path)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

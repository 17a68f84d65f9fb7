"""List a cohort: the scans of a folder, or of a CSV table with the clicks in its lines."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxsam.errors import FileError, PromptError
from voxsam.geometry import Grid
from voxsam.io import SCAN_SUFFIXES as SINGLE_FILES
from voxsam.prompts import Point

SCAN_SUFFIXES = (*SINGLE_FILES, ".zip")
INDEX, MILLIMETRES = ("i", "j", "k"), ("x_mm", "y_mm", "z_mm")
TRUTHS = {"": True, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class TableClick:
    """One click of a table: a voxel's index (i, j, k), or with `in_mm` a point in RAS+ mm."""

    place: tuple[float, float, float]
    positive: bool = True
    in_mm: bool = False

    def on(self, grid: Grid) -> Point:
        """The click on a scan's grid. Raises PromptError if it lies outside."""
        point = Point(self.place, self.positive) if self.in_mm else Point.at_index(grid, self.place, self.positive)
        point.points(grid)
        return point


@dataclass(frozen=True)
class ScanTask:
    """One scan: the name of its outputs (may contain folders: a/b), its image files, its clicks (none: automatic)."""

    name: str
    images: tuple[Path, ...]
    clicks: tuple[TableClick, ...] = ()


def list_cohort(source: Path, output: Path, clicks: bool) -> list[ScanTask]:
    """The scans of a folder (by name) or of a CSV table (in its order), with their clicks if `clicks` is set.

    Raises FileError for a source that is neither, is empty, or gives two scans one name; PromptError if clicks are
    missing, or present although none are expected. Files in the folder `output` are not taken for scans.
    """
    if source.is_file() and source.suffix.lower() == ".csv":
        jobs = read_table(source, clicks)
    elif not source.is_dir():
        given = f"{source}" if source.exists() else f"{source} does not exist"
        raise FileError(given, "a folder of scans, or a .csv table of them", "check the path")
    elif clicks:
        given, expected = f"the folder {source} without clicks", "a CSV table: scan,i,j,k or scan,x_mm,y_mm,z_mm"
        raise PromptError(given, expected, "list the scans with a click each, or take an automatic model with --auto")
    else:
        jobs = [ScanTask(_name(path, source), (path,)) for path in find_scans(source, output)]
    if not jobs:
        raise FileError(f"{source} without scans", f"{', '.join(SCAN_SUFFIXES)} or folders of DICOM", "check the path")
    _check_names(jobs)
    return jobs


def find_scans(folder: Path, leave_out: Path) -> Iterator[Path]:
    """Every scan in and below a folder, by name: files, and folders with a DICOM series; hidden ones are skipped."""
    if folder.resolve() == leave_out.resolve():
        return
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    others = (*SCAN_SUFFIXES, ".csv", ".json", ".txt")
    if unknown := [path for path in entries if path.is_file() and not path.name.lower().endswith(others)]:
        from voxsam.io.dicom import has_dicom

        if has_dicom(unknown):
            yield folder
            return
    for path in entries:
        if path.is_dir():
            yield from find_scans(path, leave_out)
        elif path.name.lower().endswith(SCAN_SUFFIXES):
            yield path


def read_table(path: Path, clicks: bool) -> list[ScanTask]:
    """Read a table with a header: `scan` (additional channels `scan_1`, ...), `i,j,k` or `x_mm,y_mm,z_mm`, optionally
    `positive` (1 or 0) and `name`. Lines with the same scan and name are its clicks; other columns are ignored.

    Paths are relative to the table's folder. Raises FileError for a file that is not such a table, PromptError for an
    invalid click.
    """
    rows = _rows(path)
    channels = sorted((c for c in rows[0][1] if re.fullmatch(r"scan(_\d+)?", c)), key=lambda c: int(c[5:] or 0))
    places = tuple(columns for columns in (INDEX, MILLIMETRES) if set(columns) <= rows[0][1].keys())
    if "scan" not in channels or (clicks and not places):
        wanted = "the columns scan, and i,j,k or x_mm,y_mm,z_mm" if clicks else "the column scan"
        raise FileError(f"{path} with the columns {', '.join(rows[0][1])}", wanted, "name them in the first line")
    if places and not clicks:
        raise PromptError(f"clicks in {path} and --auto", "one of them", "take the columns of the clicks out")
    jobs: dict[tuple[str, tuple[Path, ...]], ScanTask] = {}  # two lesions of one scan have different names
    for line, row in rows:
        images = tuple(path.parent / row[column] for column in channels if row[column])
        if not row["scan"]:
            raise FileError(f"{path}, line {line}: no scan", "a path in each line", "fill it in")
        key = (row.get("name") or _name(images[0], path.parent), images)
        job = jobs.setdefault(key, ScanTask(*key))
        if clicks:
            click = _click(row, places, f"{path.name}, line {line}")
            jobs[key] = replace(job, clicks=(*job.clicks, click))
    for job in jobs.values():
        if clicks and not any(click.positive for click in job.clicks):
            given = f"negative clicks only for {job.name}"
            raise PromptError(given, "at least one click in the tumour", f"add a line to {path.name}")
    return list(jobs.values())


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Each line's number and its cells by column, stripped of blanks.

    Uses csv: pandas is not a core dependency, and does not say in which line of the file a row ends.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows = [
                (reader.line_num, {column.strip(): cell.strip() for column, cell in row.items() if column})
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path} could not be read ({error})", "a CSV table in UTF-8", "export it again") from error
    if not rows:
        raise FileError(f"{path} without lines", "a header and a line for each click", "fill it in")
    return rows


def _click(row: Mapping[str, str], places: Sequence[tuple[str, ...]], where: str) -> TableClick:
    positive = TRUTHS.get(row.get("positive", "").lower())
    if positive is None:
        raise PromptError(f"{where}: positive {row['positive']!r}", "1 or 0", "correct it")
    filled = [columns for columns in places if any(row[column] for column in columns)]
    if len(filled) != 1:
        given = f"{where}: {'no click' if not filled else 'a click in voxels and one in mm'}"
        raise PromptError(given, f"{' or '.join(','.join(c) for c in places)}", "give one of them in each line")
    in_mm = filled[0] == MILLIMETRES
    try:
        numbers = [float(row[column]) if in_mm else int(row[column]) for column in filled[0]]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        given = f"{where}: {','.join(row[column] for column in filled[0])!r}"
        raise PromptError(given, "three numbers in mm" if in_mm else "three whole numbers", "correct it")
    a, b, c = numbers
    return TableClick((a, b, c), positive, in_mm)


def _name(scan: Path, folder: Path) -> str:
    """The scan's path below the folder, or else its own name, without the format's suffix."""
    scan, folder = scan.absolute(), folder.absolute()
    below = scan.is_relative_to(folder) and scan != folder and ".." not in scan.relative_to(folder).parts
    name = scan.relative_to(folder).as_posix() if below else scan.resolve().name
    suffix = next((s for s in (".nii.gz", *SCAN_SUFFIXES) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _check_names(jobs: Sequence[ScanTask]) -> None:
    first: dict[str, ScanTask] = {}
    for job in jobs:
        if Path(job.name).is_absolute() or ".." in Path(job.name).parts:
            raise FileError(f"the name {job.name!r}", "a name below the output folder", "rename it")
        other = first.setdefault(job.name.lower(), job)  # some file systems do not tell a from A
        if other is not job:
            given = f"{other.images[0]} and {job.images[0]}, both of the name {job.name}"
            raise FileError(given, "a name for each scan", "give the table a column `name`, or rename one")

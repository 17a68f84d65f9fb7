"""The folder of an evaluation: scores.csv, cases.csv, summary.json, table.md, figures, report.html; whole or not."""

from __future__ import annotations

import csv
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxsam import __version__
from voxsam.errors import FileError
from voxsam.lab.data.cases import Case
from voxsam.lab.evaluation.charts import write_charts
from voxsam.lab.evaluation.examples import choose_examples, write_examples
from voxsam.lab.evaluation.protocol import Evaluation, Row
from voxsam.lab.evaluation.run_report import write_run_report
from voxsam.lab.evaluation.scores import Scores
from voxsam.lab.evaluation.summary import Line, by_case, grouped, rows_of, summarise
from voxsam.lab.evaluation.systems import System
from voxsam.lab.evaluation.tables import write_tables

KIND = "voxsam evaluation"
FILES = {"scores.csv", "cases.csv", "summary.json", "table.md", "figures", "report.html"}
CASE_NUMBERS = ("dice", "nsd", "hd95_mm", "truth_ml", "mask_ml", "volume_error", "found", "false_lesions")
KEYS = ("case", "lesion", "kind", "trial", "clicks")


def check_output(out: Path) -> None:
    """Raises FileError unless `out` can be made, is empty, or holds a previous evaluation and nothing else."""
    if not out.absolute().parent.is_dir():
        raise FileError(f"{out}: the folder {out.absolute().parent} does not exist", "an existing one", "make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise FileError(f"{out}: its folder is not writable", "a folder you may write to", "choose another with -o")
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_dir() and (not names or (names <= FILES and _is_evaluation(out))):
        return
    raise FileError(f"{out} holds something else", "a new folder, or a previous evaluation", "choose another with -o")


def write_evaluation(evaluation: Evaluation, system: System, cases: Mapping[str, Case], out: Path) -> None:
    """Write every file of an evaluation; a previous one is replaced. `cases` are found by name, for the overlays.

    Raises FileError as `check_output` does, or if the disk does not take the files.
    """
    check_output(out)
    with _whole_folder(out) as folder:
        figures = folder / "figures"
        figures.mkdir()
        write_scores(evaluation, folder / "scores.csv")
        write_cases(evaluation, folder / "cases.csv")
        text = json.dumps(summary(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        (folder / "table.md").write_text(write_tables(evaluation), encoding="utf-8")
        names = [*write_charts(evaluation, figures), *write_examples(evaluation, system, cases, figures)]
        write_run_report(evaluation, [figures / name for name in names], folder / "report.html")


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """One line for each row, with its clicks as `i j k +` or `i j k -`, separated by `;`.

    Infinite is `inf`, no number `nan`. No times: the same seed gives the same file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*KEYS, *Scores.names(), "points"])
        for row in evaluation.rows:
            numbers = [_digits(value) for value in asdict(row.scores).values()]
            writer.writerow([*(getattr(row, key) for key in KEYS), *numbers, _points(row)])


def write_cases(evaluation: Evaluation, path: Path) -> None:
    """One line for each case, kind and number of clicks: the mean of its trials and lesions (of HD95 the median)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "kind", "clicks", "masks", *CASE_NUMBERS])
        for line in summarise(evaluation):
            rows = rows_of(evaluation, line.kind, line.clicks)
            columns = {name: by_case(rows, name) for name in CASE_NUMBERS}
            for case, own in grouped(rows).items():
                numbers = [_digits(column[case]) for column in columns.values()]
                writer.writerow([case, line.kind, line.clicks, len(own), *numbers])


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the rows, of JSON's types only; infinite or no number is null."""
    lines = summarise(evaluation)
    return {
        "kind": KIND,
        "voxsam": __version__,
        "system": evaluation.system,
        "parameters": evaluation.parameters,
        "dataset": evaluation.dataset,
        "settings": asdict(evaluation.settings),
        "lines": [_line(line) for line in lines],
        "cases": _cases(evaluation, lines),
        "skipped": evaluation.skipped,
        "examples": {name: row.case for name, row in choose_examples(evaluation).items()},
    }


def _line(line: Line) -> dict[str, Any]:
    numbers = {
        name: {key: _number(value) for key, value in asdict(estimate).items()}
        for name, estimate in line.numbers.items()
    }
    counts = {"kind": line.kind, "clicks": line.clicks, "cases": line.cases, "masks": line.masks}
    return {**counts, "empty_masks": line.empty_masks, **numbers, "seconds_per_mask": round(line.seconds, 4)}


def _cases(evaluation: Evaluation, lines: list[Line]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in evaluation.cases}
    for line in lines:
        rows = rows_of(evaluation, line.kind, line.clicks)
        columns = {name: by_case(rows, name) for name in CASE_NUMBERS}
        for case in columns["dice"]:
            means = {name: _number(column[case]) for name, column in columns.items()}
            found[case].append({"kind": line.kind, "clicks": line.clicks, **means})
    return found


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _digits(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6f}"


def _points(row: Row) -> str:
    return ";".join(f"{i} {j} {k} {'+' if positive else '-'}" for (i, j, k), positive in row.points)


def _is_evaluation(folder: Path) -> bool:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`; when the block ends it takes the name, when it raises it is removed."""
    out = Path(os.path.realpath(out))
    made, old = (out.with_name(f".{secrets.token_hex(4)}-{out.name}") for _ in range(2))
    try:
        made.mkdir()
        yield made
        if out.exists():
            out.rename(old)
        made.rename(out)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        reason = error.strerror or str(error)
        raise FileError(f"{out} could not be written ({reason})", "a folder that takes files", "check it") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)

"""`voxsam prepare`: check a data set and write the store that training reads."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxsam.cli.parse import given_path, three_lengths, whole_numbers
from voxsam.cli.progress import ProgressBar
from voxsam.errors import InputError

if TYPE_CHECKING:
    from voxsam.lab.data.cases import Fault
    from voxsam.lab.data.folds import Fold
    from voxsam.lab.data.prepare import Outcome

SHOWN_NAMES, SHOWN_REMARKS = 5, 20  # most cases shown per kind of remark; most kinds
VARIES = re.compile(r"^\S+|\d[\d.,]*")  # differs among remarks of one kind: the file's name, and numbers


def command(
    raw: Annotated[
        Path,
        typer.Argument(
            parser=given_path, metavar="RAW", help="The data set: its folder as downloaded, or a CSV table."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PREPARED", help="The folder of the store.")],
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="msd (also nnU-Net), kits, lits, pancreas, colon or csv; else recognised."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="N[,N]", help="The label values that are tumour; else all above 0.")
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Every label that dataset.json names is a class; a click asks for one.")
    ] = False,
    spacing: Annotated[
        str | None, typer.Option(metavar="auto|A,B,C", help="mm along the model's axes; else 1 for a named data set.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the split into training, validation and test.")] = 0,
    folds: Annotated[
        Path | None,
        typer.Option(help="A list of folds, JSON or YAML (nnU-Net's splits_final.json), instead of a drawn split."),
    ] = None,
    fold: Annotated[int, typer.Option(min=0, help="Which of --folds.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Cases at once; 0: the cores, at most 8.")] = 0,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help="Leave cases with faults out.")] = False,
    per_scan: Annotated[bool, typer.Option(help="Standardise MR scan by scan; else by the whole data set.")] = True,
) -> None:
    """Check every case, name all faults at once, and write the store that training reads. Again: only what changed."""
    from voxsam.lab.data.faults import FaultyCasesError
    from voxsam.lab.data.prepare import Options, prepare

    chosen = None if folds is None else _fold(folds, fold)
    options = Options(
        dataset,
        whole_numbers("--labels", labels, "2 or --labels 1,2") if labels is not None else None,
        spacing if spacing is None or spacing == "auto" else three_lengths("--spacing", spacing, "'auto', or "),
        seed,
        workers,
        skip_faulty,
        fold=chosen,
        classes=classes,
        per_scan=per_scan,
    )
    start = time.perf_counter()
    try:
        with ProgressBar() as progress:
            outcome = prepare(raw, output, options, progress)
    except FaultyCasesError as error:
        _show_faults(error.faults)
        _show_remarks(error.remarks)
        raise
    description = outcome.store.description
    if description.faults:
        _show_faults(description.faults)
        left_out = len({fault.case for fault in description.faults})
        typer.echo(f"Left out for their faults: {left_out} ({output / 'faults.csv'}).")
    _show_remarks(outcome.remarks)
    _show(outcome, output, time.perf_counter() - start)


def _fold(path: Path, number: int) -> Fold:
    from voxsam.lab.data.folds import read_folds

    folds = read_folds(path)
    if number >= len(folds):
        given, expected = f"--fold {number} of {path}", f"0 to {len(folds) - 1}"
        raise InputError(given, expected, "choose one of the list")
    return folds[number]


def _show_faults(faults: Sequence[Fault]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "case", "fault", "given", "expected", "what to do", title=f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    )
    for fault in faults:
        table.add_row(*map(Text, (fault.case, fault.kind, fault.given, fault.expected, fault.remedy)))
    Console().print(table)


def _show_remarks(remarks: Mapping[str, Sequence[str]]) -> None:
    """Print one line for each kind of remark: the first remark, and the other cases with a similar one."""
    kinds: dict[str, tuple[str, dict[str, None]]] = {}
    for case, said in remarks.items():
        for remark in said:
            kind = VARIES.sub("", remark)
            kinds.setdefault(kind, (f"{case}: {remark}", {}))[1][case] = None
    for first, cases in list(kinds.values())[:SHOWN_REMARKS]:
        others = list(cases)[1:]
        shown = ", ".join(others[:SHOWN_NAMES]) + (" ..." if len(others) > SHOWN_NAMES else "")
        typer.echo(f"Remark on {first}" + (f" (the like of {len(others)} more: {shown})" if others else ""))
    if len(kinds) > SHOWN_REMARKS:
        typer.echo(f"Further kinds of remarks: {len(kinds) - SHOWN_REMARKS} (remarks.csv).")


def _show(outcome: Outcome, output: Path, seconds: float) -> None:
    """Print a summary of the store."""
    description = outcome.store.description
    size = sum(file.stat().st_size for file in (output / "cases").rglob("*") if file.is_file())
    parts = ", ".join(f"{len(names)} {part}" for part, names in description.split.items())
    spacing = " x ".join(f"{s:.4g}" for s in outcome.store.preprocessing.spacing_mm)
    typer.echo(
        f"{output}: {len(description.cases)} cases ({parts}) at {spacing} mm along"
        f" {outcome.store.preprocessing.axes}, {size / 1e6:.1f} MB."
    )
    if description.without_tumour:
        typer.echo(f"Without tumour, left out: {len(description.without_tumour)}.")
    if description.classes:
        typer.echo(f"Classes: {', '.join(description.classes.values())}.")
    for name, kind in zip(description.channels, description.preprocessing, strict=True):
        low, high = kind.clip
        typer.echo(f"{name}: clip {low:.4g} to {high:.4g}, mean {kind.mean:.4g}, s.d. {kind.sd:.4g}.")
    made = f"{outcome.made} cases made" if outcome.made else "Nothing had changed"
    typer.echo(f"{made}, {seconds:.1f} s.")

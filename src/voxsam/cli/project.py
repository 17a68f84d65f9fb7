"""`voxsam project`: work through scans one by one, with a model that learns from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxsam.cli.parse import given_path, whole_numbers
from voxsam.cli.progress import ProgressBar
from voxsam.cli.segment import set_threads
from voxsam.errors import InputError

if TYPE_CHECKING:
    from voxsam.project import Project

app = typer.Typer(help="A folder of scans to work through; a model learns from what is done.")

Folder = Annotated[Path, typer.Argument(parser=given_path, metavar="FOLDER", help="The project.")]
Case = Annotated[str, typer.Argument(metavar="CASE", help="The name of a scan, as `status` shows it.")]
SCANS = typer.Option(parser=given_path, metavar="DIR", help="Scans in and below it, or a CSV table.")
Reader = Annotated[str, typer.Option(help="Whose work it is.")]
SHOWN = 10


@app.command()
def new(
    folder: Folder,
    scans: Annotated[Path | None, SCANS] = None,
    model: Annotated[str, typer.Option(help="That it starts with: a name or a .safetensors file.")] = "voxsam-tiny",
) -> None:
    """Make a project. Scans stay where they are; each is read once, to be known again."""
    from voxsam.batch.listing import list_cohort
    from voxsam.project import Project

    if scans is not None:
        list_cohort(scans, folder, clicks=False)  # errors are reported before the project is made
    project = Project.new(folder, start=model)
    typer.echo(f"{folder}: a project that starts with {project.in_use}")
    if scans is not None:
        _add(project, scans)


@app.command()
def add(folder: Folder, scans: Annotated[Path, SCANS]) -> None:
    """Add scans; those that were moved are found again."""
    _add(_open(folder), scans)


@app.command()
def status(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False
) -> None:
    """What is done, clicks per scan, minutes saved, and which model is offered."""
    from voxsam.project.summary import RECENT, summarise

    found = summarise(_open(folder))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    parts = [f"{count} {state}" for state in ("done", "in work", "skipped", "to do") if (count := found.counts[state])]
    typer.echo(f"{len(found.rows)} scans: {', '.join(parts) or 'none'}")
    width = max((len(row.name) for row in found.rows), default=0)
    for row in found.rows:
        facts = [row.state, row.reader, *[f"{row.clicks} clicks"] * (row.clicks is not None)]
        facts += [f"{row.volume_ml:.1f} mL"] if row.volume_ml is not None else []
        typer.echo(f"  {row.name.ljust(width)}  {'  '.join(fact for fact in facts if fact)}")
    if found.curve:
        clicks = [count for _, count in found.curve]
        first, last = clicks[:RECENT], clicks[-RECENT:]
        typer.echo(
            f"Clicks per scan: {sum(first) / len(first):.1f} on the first {len(first)},"
            f" {sum(last) / len(last):.1f} on the last {len(last)}"
        )
    if found.minutes_saved is not None:
        typer.echo(f"Minutes saved since a learned model is in use: {found.minutes_saved:.0f}")
    typer.echo(f"Order: {found.order}")
    typer.echo(f"In use: {found.in_use}")
    if found.learning is not None:
        at = found.learning
        typer.echo(f"Learning now: {at['stage']}, step {at['step']} of {at['steps']}" if at else "Learning now")
    if found.offered is not None:
        typer.echo(f"Offered: {_offer(folder, found.offered.name, str(found.offered.gate))}")


@app.command()
def order(
    folder: Folder,
    model: Annotated[
        str | None, typer.Option(help="A model without clicks, a name or a file: the scan it is least sure of first.")
    ] = None,
    as_listed: Annotated[bool, typer.Option("--list", help="In the order of the list.")] = False,
) -> None:
    """In which order `next` gives the scans: as listed, or as an automatic model's first look says."""
    if as_listed == (model is not None):
        given = "a model and --list" if as_listed else "no model"
        raise InputError(given, "--model MODEL, or --list", "give one of them; the order stays as it is")
    project = _open(folder)
    if model is None:
        project.order_by("")
        typer.echo(f"Order: {project.order}")
        return
    from voxsam.project.look import look_first

    with ProgressBar() as progress:
        found = look_first(project, model, progress=progress)
    typer.echo(f"Order: {project.order}")
    _list("How sure it is", [f"{sure:.2f}  {case}" for case, sure in sorted(found.items(), key=lambda one: one[1])])


@app.command("next")
def next_(folder: Folder, reader: Reader = "reader") -> None:
    """The scan to work on next: its name and its file."""
    project = _open(folder)
    case = project.next(reader)
    typer.echo("Nothing is left to do" if case is None else f"{case}: {project.path_of(project.scan(case))}")


@app.command()
def done(
    folder: Folder,
    case: Case,
    mask: Annotated[Path, typer.Option(parser=given_path, help="On the scan's grid, in any format.")],
    clicks: Annotated[
        Path | None, typer.Option(parser=given_path, help="JSON: the report of `voxsam segment --report`.")
    ] = None,
    reader: Reader = "reader",
    seconds: Annotated[float | None, typer.Option(min=0, help="That the work took.")] = None,
    model: Annotated[str | None, typer.Option(help="That was clicked; default: the one in use.")] = None,
) -> None:
    """Keep a scan's mask and clicks: it is done, and the model may learn from it."""
    import numpy as np

    from voxsam.io import read_volume
    from voxsam.project.exchange import read_clicks

    project = _open(folder)
    scan = project.read(case)
    read = read_volume(mask, labels=True, scan=scan)
    if read.array.min() < 0 or read.array.max() > 255:
        raise InputError(f"{mask} with values beyond 0 to 255", "a mask", "give the label file, not the scan")
    points = [] if clicks is None else read_clicks(clicks, scan.grid)
    kept = project.done(
        case,
        read.with_array(read.array.astype(np.uint8)),
        points,
        reader=reader,
        seconds=seconds,
        model=model,
        scan=scan,
        source="clicks" if points else "import",
    )
    typer.echo(f"{case}: done by {reader}, {kept.volume_ml:.1f} mL, {len(points)} clicks")


@app.command()
def skip(folder: Folder, case: Case, reader: Reader = "reader") -> None:
    """Leave a scan out of the work; `release` takes it back."""
    _open(folder).skip(case, reader)
    typer.echo(f"{case}: skipped")


@app.command()
def release(folder: Folder, case: Case) -> None:
    """Put a scan that is in work or skipped back among those to do."""
    _open(folder).release(case)
    typer.echo(f"{case}: to do")


@app.command()
def forget(folder: Folder, case: Case) -> None:
    """Delete a case: masks, clicks, thumbnail, and every model that was trained on it. The scan's file stays."""
    project = _open(folder)
    retired = project.forget(case)
    typer.echo(f"{case} is forgotten: its masks, clicks and thumbnail are deleted; the scan's own file was not touched")
    for name in retired:
        typer.echo(f"{name} is retired: it was trained on this case, and its weights are deleted")
    typer.echo(f"In use: {project.in_use}")


@app.command("import")
def import_(
    folder: Folder,
    masks: Annotated[Path, typer.Argument(parser=given_path, metavar="DIR", help="Masks, named as the scans.")],
    reader: Reader = "reader",
    labels: Annotated[str | None, typer.Option(help="Values that are the tumour; default: all above 0.")] = None,
) -> None:
    """Take masks that were made elsewhere: those scans are done."""
    from voxsam.project.exchange import import_masks

    values = whole_numbers("--labels", labels, "1,2") if labels else ()
    with ProgressBar() as progress:
        taken, others = import_masks(_open(folder), masks, reader=reader, labels=values, progress=progress)
    typer.echo(f"{len(taken)} masks taken")
    _list(f"{len(others)} files are named as no scan", others)


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder.")],
    layout: Annotated[str, typer.Option(help="nnunet, msd or dicom-seg.")] = "nnunet",
) -> None:
    """Write what is done for other programs."""
    from voxsam.project import exchange

    with ProgressBar() as progress:
        count, left_out = exchange.export(_open(folder), output, layout, progress)  # type: ignore[arg-type]  # checked there
    typer.echo(f"{output}: {count} cases")
    _list(f"{len(left_out)} left out", [f"{case}: {reason}" for case, reason in left_out.items()])


@app.command()
def use(
    folder: Folder,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A learned model, or the start model.")] = None,
    back: Annotated[bool, typer.Option("--back", help="The model that was used before.")] = False,
) -> None:
    """Take a model into use, or go back to the one before."""
    if back == (model is not None):
        raise InputError("a model and --back" if back else "no model", "a model's name, or --back", "give one of them")
    project = _open(folder)
    if model is None:
        project.back()
    else:
        project.use(model)
    typer.echo(f"In use: {project.in_use} ({project.model_source()})")


@app.command()
def compare(
    folder: Folder,
    readers: Annotated[str, typer.Option(help="The names of two: A,B.")],
    smallest: Annotated[float, typer.Option(min=0, help="mL of a difference that is listed.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Two readers of the same scans: Dice, volumes, and where they differ."""
    from dataclasses import asdict

    from voxsam.project import agreement

    names = [name.strip() for name in readers.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise InputError(f"--readers {readers!r}", "two names", "write for example --readers anna,ben")
    found = agreement.compare(_open(folder), names[0], names[1], smallest)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    for one in found:
        volumes = ", ".join(f"{name} {ml:.1f} mL" for name, ml in zip(names, one.volumes_ml, strict=True))
        typer.echo(f"{one.case}: Dice {one.dice:.3f}, {volumes}")
        lines = [
            f"{part.volume_ml:.2f} mL of {part.reader} alone, about voxel {','.join(map(str, part.index))}"
            for part in one.differences
        ]
        _list(f"  {len(lines)} places where they differ", lines)
    typer.echo(f"Mean Dice of {len(found)} scans: {sum(one.dice for one in found) / len(found):.3f}")


@app.command()
def learn(
    folder: Folder,
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="That it may take, the check included.")] = 20.0,
    data: Annotated[
        Path | None, typer.Option(parser=given_path, help="The data engine's scans, to be trained on beside the cases.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
) -> None:
    """Learn from all scans that are done, and say whether it helps. Run again after a stop: it goes on."""
    from voxsam.extras import load_learning
    from voxsam.project.records import CHANCE

    project, run = _open(folder), load_learning()
    set_threads(threads)
    model = run(project, minutes=minutes, data=data, log=typer.echo)
    if model.state == "offered":
        typer.echo(_offer(folder, model.name, str(model.gate)))
    else:
        reason = f"which may be chance (an offer wants p < {CHANCE})" if sum(model.gate.saved) > 0 else "no fewer"
        typer.echo(f"{model.gate}, {reason}: {project.in_use} stays in use")


def _open(folder: Path) -> Project:
    from voxsam.project import Project

    return Project(folder)


def _add(project: Project, scans: Path) -> None:
    with ProgressBar() as progress:
        added, left_out = project.add(scans, progress)
    typer.echo(f"{len(added)} scans added")
    _list(f"{len(left_out)} left out", [f"{name}: {reason}" for name, reason in left_out.items()])


def _offer(folder: Path, name: str, gate: str) -> str:
    return f"{gate}: use it? (voxsam project use {folder} {name})"


def _list(what: str, lines: list[str] | tuple[str, ...]) -> None:
    if lines:
        typer.echo(f"{what}:")
        for line in lines[:SHOWN]:
            typer.echo(f"  {line}")
        if len(lines) > SHOWN:
            typer.echo(f"  ... and {len(lines) - SHOWN} more")

"""`voxsam weights`: list the named models, fetch one, import a foreign checkpoint, average several, export one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from voxsam.errors import InputError

app = typer.Typer(help="Model files: list the named ones, fetch, import or export one, average several.")


class Kind(StrEnum):
    """The kind of a foreign checkpoint: from the released 3DSAM-adapter code, or SAM itself."""

    released = "released"
    sam = "sam"


class Profile(StrEnum):
    """The data set whose axes and intensities a model expects."""

    kits = "kits"
    lits = "lits"
    pancreas = "pancreas"
    colon = "colon"


class Variant(StrEnum):
    """Whose arithmetic: the released code's, or the paper's text."""

    released = "released"
    paper = "paper"


class Format(StrEnum):
    """Formats that other programs read."""

    onnx = "onnx"


@app.command("list")
def list_() -> None:
    """List the named models: size, where they are, licence."""
    from voxsam.weights.registry import list_models, models_folder

    rows = list_models()
    cells = [(r.name, _size(r.size_bytes), r.where, r.licence) for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row, line in zip(rows, cells, strict=True):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        typer.echo(f"    {row.note}")
    typer.echo(f"Fetched models are kept in {models_folder()} (VOXSAM_HOME chooses another folder).")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A name of `voxsam weights list`.")]) -> None:
    """Fetch a named model; called again after an interruption, it goes on from there."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from voxsam.weights.registry import fetch as fetch_model
    from voxsam.weights.registry import named

    model = named(name)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=model.size_bytes)
        path = fetch_model(name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(f"{name}: {path}")
    if model.kind == "sam":
        profiles = "|".join(Profile)
        typer.echo(f"Next: voxsam weights import {path} --kind sam --profile {profiles} -o MODEL.safetensors")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A .pth, .pth.tar, .bin or .safetensors file.")],
    kind: Annotated[Kind, typer.Option(help="Of the released 3DSAM-adapter code, or SAM itself.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="The file to write.")],
    profile: Annotated[Profile | None, typer.Option(help="The data set: it decides axes and intensities.")] = None,
    variant: Annotated[
        Variant, typer.Option(help="Whose arithmetic: the released code's or the paper's.")
    ] = Variant.released,
    crop: Annotated[
        int | None,
        typer.Option(help="Side of a released model's crops: 128 (default), or 256 (the paper's kidney, colon)."),
    ] = None,
) -> None:
    """Turn a foreign checkpoint into a VoxSAM model. Nothing in the foreign file is executed."""
    if profile is None:
        wanted = "--profile kits, lits, pancreas or colon"
        raise InputError("no --profile was given", wanted, "name the data set: the file does not say its intensities")
    _check_name(output)
    if crop is not None and kind is Kind.sam:
        given = f"--crop {crop} with --kind sam"
        raise InputError(given, "--kind released", "leave it out: a recipe's `model.crop` says it when SAM is trained")
    from voxsam.atomic import check_writable
    from voxsam.weights.checkpoint import save_model
    from voxsam.weights.import_checkpoints import UNTRAINED, import_released, import_sam

    check_writable(output)
    if kind is Kind.released:
        network = import_released(source, profile.value, variant.value, crop)
    else:
        network = import_sam(source, profile.value, variant.value)
    save_model(network, output)
    note = f" ({UNTRAINED})" if kind is Kind.sam else ""
    typer.echo(f"{output}: {network.card.name}, {output.stat().st_size / 1e6:.0f} MB{note}")


@app.command()
def average(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names of `voxsam weights list`, or .safetensors files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="The file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store the weights in half precision.")] = False,
) -> None:
    """Average the weights of runs of one recipe. The card is that of the last; a calibration has to be fitted anew."""
    _check_name(output)
    from voxsam.atomic import check_writable
    from voxsam.weights.checkpoint import average as average_models

    check_writable(output)
    card = average_models(models, output, half=half)
    typer.echo(f"{output}: {card.name}, the mean of {len(models)}, {output.stat().st_size / 1e6:.0f} MB")


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name of `voxsam weights list`, or a .safetensors file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.")],
    format: Annotated[Format, typer.Option(help="What other programs read.")] = Format.onnx,
) -> None:
    """Write a model for other programs, a browser among them: encoder.onnx, decoder.onnx and card.json in a folder.

    It takes a minute. Both graphs are run by onnxruntime and compared with PyTorch before the folder is there.
    """
    from voxsam.cli.progress import ProgressBar
    from voxsam.weights.export import export_onnx

    with ProgressBar() as bar:
        export_onnx(model, output, bar)
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in sorted(output.iterdir()))
    typer.echo(f"{output}: {sizes}")


def _check_name(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise InputError(f"the output {output}", "a name that ends in .safetensors", "change the name")


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"

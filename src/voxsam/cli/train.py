"""`voxsam train`: a recipe and labelled scans in, a model file out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from voxsam.cli.segment import set_threads
from voxsam.io.atomic import make_folder

CONTEXT: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the run; one begun before goes on.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of `voxsam prepare`, or in MSD / nnU-Net raw layout; without it, phantoms only."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
) -> None:
    """Train a model. Any key of the recipe may be changed: --steps 500 --augmentation.flip 0."""
    import voxsam.systems  # noqa: F401, its networks can be trained, too
    from voxsam.data.store import read_description
    from voxsam.training.recipe import read_recipe
    from voxsam.training.run import train

    prepared = None if data is None else read_description(data / "dataset.json")
    defaults = {}
    if prepared is not None:
        defaults = {"preprocessing": prepared.preprocessing[0].model_dump(), "validation": prepared.split["validation"]}
    chosen = read_recipe(recipe, context.args, defaults)
    make_folder(output)
    if threads is not None:
        set_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advice on hardware and other products
    path = train(chosen, data, output)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")

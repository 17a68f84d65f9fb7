"""`voxsam train`: a recipe and labelled scans in, a model file out."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from voxsam.atomic import make_folder
from voxsam.cli.segment import set_threads
from voxsam.errors import InputError

CONTEXT: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
INTERRUPTED = 130
CHEAPER = (
    "--recompute true, --batch 1 with --accumulate, --precision bf16-mixed, a smaller --model.crop;"
    " the same command goes on from the last checkpoint"
)


def command(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML, or the name of one of VoxSAM's: fine-tune.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the run; one begun before goes on.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of `voxsam prepare`, or in MSD / nnU-Net raw layout; without it, phantoms only."),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="laptop, gpu24, gpu80: this machine's keys; auto: without clicks; or a YAML file. Repeatable."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Begin though memory seems too little.")] = False,
) -> None:
    """Train a model. Any key of the recipe may be changed: --steps 500 --augmentation.flip 0.

    Ctrl-C ends the step, writes a checkpoint and stops; the same command goes on from there.
    """
    import voxsam.lab.systems  # noqa: F401, so that its networks can be trained, too
    from voxsam.lab.data.store import find_description, open_store
    from voxsam.lab.training import Stopped
    from voxsam.lab.training.memory import is_out_of_memory
    from voxsam.lab.training.recipe import read_preset, read_recipe
    from voxsam.lab.training.run import train

    defaults = {}
    if data is not None and find_description(data) is not None:
        store = open_store(data)
        defaults = {"preprocessing": store.preprocessing.model_dump(), "validation": store.split["validation"]}
    chosen = read_recipe(recipe, context.args, defaults, [read_preset(name) for name in preset or []])
    make_folder(output)
    set_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # silences hints on hardware and products
    try:
        path = train(chosen, data, output, log=_log, strict=not anyway)
    except Stopped as stop:
        _log(str(stop))
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        given = f"a step that takes more memory than there is (batch {chosen.batch}, {chosen.precision})"
        raise InputError(given, "one that fits", f"take less: {CHEAPER}") from error
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    best = path.with_name("best.safetensors")
    if best.is_file():
        typer.echo(f"{best}: the weights of the best validation")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""`voxsam batch`: segment many scans with one model, from a folder or a table of clicks, into masks and a table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxsam.cli.parse import given_path
from voxsam.cli.progress import ProgressBar
from voxsam.cli.segment import set_threads
from voxsam.errors import FileError

if TYPE_CHECKING:
    from voxsam.batch.run import Outcome

SHOWN = 10  # failures


def command(
    source: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="FOLDER|CSV",
            help="A table with the columns scan,i,j,k or scan,x_mm,y_mm,z_mm, and if wanted positive and name; with"
            " --auto a folder of scans, or a table with the column scan.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the masks and cohort.csv.")],
    auto: Annotated[bool, typer.Option("--auto", help="No clicks: for models trained without.")] = False,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Keep to one crop, as released.")] = False,
    model: Annotated[str, typer.Option(help="A name or a .safetensors file.")] = "voxsam-tiny",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, or bf16 or int8: faster, with a small error.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the network; default: all.")] = None,
    suffix: Annotated[str, typer.Option(help="Of the masks: .nii.gz, .nrrd, .mha, .seg.dcm, ...")] = ".nii.gz",
    ahead: Annotated[int, typer.Option(min=0, help="Scans that are read, and written, at once; 0: one by one.")] = 2,
    again: Annotated[bool, typer.Option("--again", help="Make every mask anew.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="On the machines of a Ray cluster (extra: ray).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> int:
    """Segment many scans. Run again after a stop: what is finished is kept."""
    from voxsam.batch.listing import list_cohort
    from voxsam.batch.run import ray_runner, run_cohort
    from voxsam.batch.worker import BatchOptions
    from voxsam.io import MASK_SUFFIXES

    if suffix not in MASK_SUFFIXES:
        raise FileError(f"--suffix {suffix}", f"one of {', '.join(MASK_SUFFIXES)}", "choose one of them")
    jobs = list_cohort(source, output, clicks=not auto)
    set_threads(threads)
    settings = BatchOptions(
        model=model,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # checked with the device
        automatic=auto,
        follow=not no_follow,
        suffix=suffix,
        ahead=ahead,
        threads=threads,
    )
    runner = ray_runner(settings) if ray else None
    start = time.perf_counter()
    with ProgressBar(quiet) as progress:
        progress("loading the model")
        outcome = run_cohort(jobs, output, settings, progress, again=again, runner=runner)
    if not quiet:
        _show(outcome, output, time.perf_counter() - start)
    return 1 if outcome.failed else 0


def _show(outcome: Outcome, output: Path, seconds: float) -> None:
    """Print the failures, then one line about the run."""
    from voxsam.batch.run import TABLE

    for row in outcome.failed[:SHOWN]:
        typer.echo(f"{row.name} failed: {row.error}")
    if len(outcome.failed) > SHOWN:
        typer.echo(f"... and {len(outcome.failed) - SHOWN} more")
    failed, kept = len(outcome.failed), len(outcome.rows) - outcome.made
    parts = [f"{outcome.made - failed} made"]
    parts += [f"{kept} kept"] if kept else []
    parts += [f"{failed} failed"] if failed else []
    rate = f", {3600 * (outcome.made - failed) / seconds:.0f} scans per hour" if outcome.made > failed else ""
    typer.echo(f"{output / TABLE}: {', '.join(parts)}, {seconds:.1f} s{rate}")

"""`voxsam demo`: make a phantom scan, click once, show the mask and its Dice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from voxsam.cli.progress import Progress
from voxsam.errors import FileError

SHAPE, SPACING_MM = (160, 160, 80), (1.5, 1.5, 3.0)


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the files.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Which phantom.")] = 10,
    model: Annotated[str, typer.Option(help="A name or a .safetensors file.")] = "voxsam-tiny",
) -> None:
    """Make a phantom CT, click its tumour once, and write scan, truth, mask, picture and report."""
    from voxsam.data.phantoms import make_phantom
    from voxsam.evaluation.figures import overview_figure
    from voxsam.evaluation.report import facts_for_people, report_dict, write_report_html, write_report_json
    from voxsam.io import write_mask, write_volume
    from voxsam.model import load_model
    from voxsam.session import Session

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{output} ({error.strerror})", "a folder that can be made", "choose another with -o"
        ) from error
    with Progress() as progress:
        progress("making a phantom scan")
        phantom = make_phantom(seed, SHAPE, SPACING_MM)
        network = load_model(model)
        start = time.perf_counter()
        mask = Session(network, phantom.scan, progress=progress).click(phantom.click)
        seconds = time.perf_counter() - start
        write_volume(phantom.scan, output / "scan.nii.gz")
        write_mask(phantom.label, output / "truth.nii.gz")
        write_mask(mask, output / "mask.nii.gz")
        progress("drawing")
        picture = output / "overview.png"
        overview_figure(phantom.scan, mask, [(phantom.click, True)], picture, truth=phantom.label)
    clicks = [(phantom.click, True)]
    report = report_dict(
        scan=phantom.scan,
        scan_name="scan.nii.gz",
        mask=mask,
        model=model,
        clicks=clicks,
        seconds={"one click": seconds},
        truth=phantom.label,
    )
    write_report_json(output / "report.json", report)
    write_report_html(
        output / "report.html",
        title="VoxSAM: one click in a generated scan",
        facts=facts_for_people(report),
        picture=picture,
    )
    where = ",".join(map(str, phantom.click))
    typer.echo(f"One click at {where}: Dice {report['dice']:.3f}, {mask.volume_ml:.1f} mL, {seconds:.2f} s.")
    typer.echo(f"Picture {picture}, report {output / 'report.html'}. The same again:")
    typer.echo(f"  voxsam segment {output / 'scan.nii.gz'} --click {where} -o mask.nii.gz")
    typer.echo("or in Python:")
    typer.echo("  import voxsam")
    typer.echo(f"  volume = voxsam.read_volume({str(output / 'scan.nii.gz')!r})")
    typer.echo(f"  mask = voxsam.Session(voxsam.load_model({model!r}), volume).click({phantom.click})")
    typer.echo("  voxsam.write_mask(mask, 'mask.nii.gz')")

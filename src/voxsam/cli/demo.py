"""`voxsam demo`: make a phantom scan, click once, show the mask and its Dice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxsam.atomic import make_folder
from voxsam.cli.progress import ProgressBar

if TYPE_CHECKING:
    from voxsam.phantoms import Phantom
    from voxsam.volume import Volume


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the files.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Which phantom.")] = 10,
    model: Annotated[str, typer.Option(help="A name or a .safetensors file.")] = "voxsam-tiny",
) -> None:
    """Make a phantom CT, click its tumour once, and write scan, truth, mask, picture and report."""
    from voxsam.interactive.session import Session
    from voxsam.phantoms import demo_phantom
    from voxsam.report.report import report_dict
    from voxsam.weights import load_model

    make_folder(output)
    with ProgressBar() as progress:
        progress("making a phantom scan")
        phantom = demo_phantom(seed)
        network = load_model(model)
        start = time.perf_counter()
        session = Session(network, phantom.scan, progress=progress)
        mask = session.click(phantom.click)
        sure = session.prediction.confidence
        report = report_dict(
            scan=phantom.scan,
            scan_name="scan.nii.gz",
            mask=mask,
            model=model,
            clicks=[(phantom.click, True)],
            seconds={"one click": time.perf_counter() - start},
            messages=session.remarks,
            truth=phantom.label,
            confidence=sure and sure.facts,
        )
        progress("writing and drawing")
        _write(phantom, mask, report, output)
    for message in session.remarks:
        typer.echo(message)
    typer.echo(_told(phantom.click, mask, model, report, output))


def _write(phantom: Phantom, mask: Volume, report: dict[str, Any], output: Path) -> None:
    from voxsam.io import write_mask, write_volume
    from voxsam.report.figures import overview_figure
    from voxsam.report.report import facts_for_people, write_report_html, write_report_json

    write_volume(phantom.scan, output / "scan.nii.gz")
    write_mask(phantom.label, output / "truth.nii.gz")
    write_mask(mask, output / "mask.nii.gz")
    write_report_json(output / "report.json", report)
    picture = output / "overview.png"
    overview_figure(phantom.scan, mask, [(phantom.click, True)], picture, truth=phantom.label)
    write_report_html(
        output / "report.html",
        title="VoxSAM: one click in a generated scan",
        facts=facts_for_people(report),
        picture=picture,
        messages=report["messages"],
    )


def _told(click: tuple[int, int, int], mask: Volume, model: str, report: dict[str, Any], output: Path) -> str:
    """The result in words, and how to do the same by hand."""
    where, scan, seconds = ",".join(map(str, click)), str(output / "scan.nii.gz"), report["seconds"]["one click"]
    return f"""\
One click at {where}: Dice {report["dice"]:.3f}, {mask.volume_ml:.1f} mL, {seconds:.2f} s.
Picture {output / "overview.png"}, report {output / "report.html"}. The same again:
  voxsam segment {scan} --click {where} -o mask.nii.gz
or in Python:
  import voxsam
  volume = voxsam.read_volume({scan!r})
  mask = voxsam.Session(voxsam.load_model({model!r}), volume).click({click})
  voxsam.write_mask(mask, 'mask.nii.gz')"""

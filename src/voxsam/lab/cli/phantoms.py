"""`voxsam phantoms`: a data set of generated scans, for want of real ones and for trying out a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxsam.cli.progress import ProgressBar


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the data set, new or empty.")],
    count: Annotated[int, typer.Option(min=1, help="How many scans.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; the next scan has the next seed.")] = 0,
    shape: Annotated[str, typer.Option(help="Voxels: columns, rows, slices.")] = "108,108,72",
    spacing: Annotated[str, typer.Option(help="mm between them.")] = "2,2,3",
    wide: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of whole cross-sections: hips, two legs, trunks with arms.")
    ] = 0.0,
    small: Annotated[float, typer.Option(min=0, max=1, help="Fraction with a tumour of 1 to 60 mL.")] = 0.0,
) -> None:
    """Write generated CT scans with labelled tumours in MSD layout, ready for `voxsam prepare`."""
    from voxsam.cli.parse import three_lengths
    from voxsam.lab.data.layouts import write_phantoms
    from voxsam.phantoms import Scene

    voxels = tuple(int(n) for n in three_lengths("--shape", shape))
    with ProgressBar() as progress:
        grid = voxels, three_lengths("--spacing", spacing)
        write_phantoms(output, range(seed, seed + count), grid, Scene(wide, small), progress)
    typer.echo(f"{output}: {count} generated scans of {' x '.join(map(str, voxels))} voxels.")

"""The best, the median and the worst case of an evaluation, segmented again and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxsam.lab.data.cases import Case
from voxsam.lab.evaluation.clicks import deepest_voxel
from voxsam.lab.evaluation.protocol import Evaluation, Row, open_images, read_case
from voxsam.lab.evaluation.scores import components
from voxsam.lab.evaluation.summary import by_case, rows_of, summarise
from voxsam.lab.evaluation.systems import System
from voxsam.prompts import Point
from voxsam.report.figures import overview_figure


def choose_examples(evaluation: Evaluation) -> dict[str, Row]:
    """`best`, `median`, `worst`: the case by the mean Dice of the first line, its row nearest to that mean.

    Two cases have no median, one case is the best.
    """
    first = summarise(evaluation)[0]
    rows = rows_of(evaluation, first.kind, first.clicks)
    means = by_case(rows, "dice")
    order = sorted(means, key=lambda case: (means[case], case))
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    kept: dict[str, Row] = {}
    for name in ("best", "worst", "median"):
        if chosen[name] not in {row.case for row in kept.values()}:
            own = [row for row in rows if row.case == chosen[name]]
            kept[name] = min(own, key=lambda row: abs(row.scores.dice - means[row.case]))
    return {name: kept[name] for name in ("best", "median", "worst") if name in kept}


def write_examples(evaluation: Evaluation, system: System, cases: Mapping[str, Case], folder: Path) -> list[str]:
    """Write an overlay for each example into a folder that exists; returns the names. `cases` are found by name."""
    names = []
    for name, row in choose_examples(evaluation).items():
        images, tumour = read_case(cases[row.case], evaluation.settings.labels)
        scan = images[0]
        points = [Point.at_index(scan.grid, at, positive) for at, positive in row.points]
        mask = open_images(system, images, tumour).segment(points)
        if row.lesion:
            tumour = components(tumour)[0] == row.lesion
        lesion = f", lesion {row.lesion}" if row.lesion else ""
        title = f"{name.capitalize()}: {row.case}{lesion}"
        truth = scan.with_array(tumour.astype("uint8"), "SEG")
        names.append(f"overlay_{name}.png")
        # Not through a click: it may lie at the tumour's end, where little is to be seen.
        centre = deepest_voxel(tumour, scan.grid.spacing_mm) if tumour.any() else None
        overview_figure(scan, mask, list(row.points), folder / names[-1], truth=truth, title=title, centre=centre)
    return names

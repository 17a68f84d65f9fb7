"""The output of a comparison: tables, figures, and a block between markers in a document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from voxsam.atomic import atomic_path, make_folder
from voxsam.boxes import bounding_box
from voxsam.io import read_volume
from voxsam.lab.compare.captions import notes
from voxsam.lab.compare.order import cases_to_test
from voxsam.lab.compare.plan import DataSpec, Plan
from voxsam.lab.compare.results import Result, result_of
from voxsam.lab.compare.runner import Task, Timing
from voxsam.lab.compare.tables import NAMES, RowResult, collect, latex, markdown, methods, table_csv
from voxsam.lab.evaluation.clicks import deepest_voxel
from voxsam.lab.evaluation.protocol import read_case, read_evaluation
from voxsam.lab.evaluation.tables import write_between_markers
from voxsam.report.metrics import dice
from voxsam.report.panels import BACKGROUND, INK, Plane, Scene, draw_plane
from voxsam.volume import Volume

DPI, BAR_DPI = 100, 150
PANEL_INCHES, HEAD_INCHES = 2.0, 0.34
SHOWN = 1.8  # width of the panels, times the tumour's longest side
LEAST_MM = 90.0
SERIES = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7")  # distinct for the colour-blind
DARK, GREY = "#1f2933", "#52606d"


def write_figures(plan: Plan, tasks: Sequence[Task], rows: Sequence[RowResult], folder: Path) -> list[Path]:
    """Write overlays and bar charts of each data set into an existing folder; return their paths."""
    written = []
    for data in plan.data:
        if any(data.name in row.found for row in rows):
            written.append(folder / f"bars-{data.name}.png")
            _save(_bars(plan, rows, data), written[-1], BAR_DPI, "white")
        own = [task for task in tasks if task.data.name == data.name and task.order.examples]
        done = [t for t in own if t.outcome is not None and t.order.seed == plan.seeds_of(t.row)[0]]
        if done:
            written.append(folder / f"overlays-{data.name}.png")
            titles = {row.row: row.title for row in rows}
            _save(_overlays(done, titles), written[-1], DPI, BACKGROUND)
    return written


def _save(figure: Figure, path: Path, dpi: int, colour: str) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor=colour)


def _overlays(tasks: Sequence[Task], titles: dict[str, str]) -> Figure:
    """Cases as rows, systems as columns; the axial plane through the deepest voxel of the truth (paper, Fig. 5)."""
    known = {case.name: case for case in cases_to_test(Path(tasks[0].order.prepared))}
    names = tasks[0].order.examples
    width, height = len(tasks) * PANEL_INCHES, len(names) * (PANEL_INCHES + HEAD_INCHES)
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(names), len(tasks), hspace=HEAD_INCHES / PANEL_INCHES, wspace=0.03)
    head = HEAD_INCHES / height
    figure.subplots_adjust(left=0.002, right=0.998, bottom=0.002, top=1 - head)
    for down, name in enumerate(names):
        images, tumour = read_case(known[name])
        scan, truth = images[0], images[0].with_array(tumour.astype(np.uint8), "SEG")
        sides = [part.stop - part.start for part in bounding_box(tumour)]
        reach = max(LEAST_MM, SHOWN * float((sides * scan.grid.spacing_mm).max()))
        plane = Plane.through("axial", scan.grid, deepest_voxel(tumour, scan.grid.spacing_mm), reach)
        for across, task in enumerate(tasks):
            axes = figure.add_subplot(grid[down, across])
            _panel(axes, plane, scan, truth, task, name, titles[task.row.row])
    return figure


def _panel(axes: Axes, plane: Plane, scan: Volume, truth: Volume, task: Task, name: str, title: str) -> None:
    """Draw one system's mask on one case, with its clicks and Dice."""
    path = task.results / "masks" / f"{name}.nii.gz"
    mask = read_volume(path, labels=True) if path.is_file() else scan.with_array(np.zeros(scan.grid.shape, np.uint8))
    rows = [row for row in read_evaluation(task.results / "evaluation.json").rows if row.case == name]
    clicks = list(rows[0].points) if rows else []
    draw_plane(axes, Scene.of(scan, mask, clicks, truth=truth), plane, [])
    score = float(dice(mask.array != 0, truth.array != 0))
    for text in axes.texts:
        text.set_visible(False)  # orientation letters: the panels are too small
    axes.set_title(f"{title}  {score:.2f}", color=INK, fontsize=8, pad=3, parse_math=False)
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.text(
            0.03, 0.97, name, transform=axes.transAxes, color=INK, fontsize=7, ha="left", va="top", parse_math=False
        )


def _bars(plan: Plan, rows: Sequence[RowResult], data: DataSpec) -> Figure:
    """Dice and NSD of every method side by side, in the plan's order from the top, with their intervals."""
    shown = [method for method in methods(plan, rows) if data.name in method.entries]
    clicks = sorted({method.entries[data.name].line.clicks for method in shown})  # equal numbers share a colour
    figure = Figure(figsize=(9.6, 1.1 + 0.3 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (number, name) in zip(figure.subplots(1, 2, sharey=True), NAMES.items(), strict=True):
        for place, method in enumerate(shown):
            line = method.entries[data.name].line
            estimate = line.numbers[number]
            colour = SERIES[clicks.index(line.clicks) % len(SERIES)]
            axes.barh(place, estimate.value, height=0.68, color=colour)
            reach = np.nan_to_num([[estimate.value - estimate.low], [estimate.high - estimate.value]])
            axes.errorbar(estimate.value, place, xerr=reach, color=DARK, capsize=2.5, linewidth=1.1)
            end = np.nanmax([estimate.value, estimate.high]) + 0.012
            axes.text(end, place, f"{estimate.value:.2f}", color=DARK, va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [method.title for method in shown], fontsize=9, parse_math=False)
        axes.set_xlim(0, 1.06)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=DARK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=DARK, labelsize=9)
    figure.axes[0].invert_yaxis()
    title = f"{plan.title}, {data.shown}: mean over test cases, 95 % interval"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=GREY)
    return figure


def write_output(
    plan: Plan,
    tasks: Sequence[Task],
    out: Path,
    document: Path | None = None,
    results: Sequence[Result] | None = None,
) -> str:
    """Write all tables and figures of the results so far; return the Markdown.

    `results` replaces those of the tasks with kept ones, for which there are no masks to draw. In `document` the block
    between `<!-- NAME -->` and `<!-- /NAME -->`, where NAME is the plan's, is replaced, and the figures are copied to
    the folder images/ beside it. Raises FileError if something cannot be written.
    """
    rows = collect(plan, [result_of(plan, task) for task in tasks] if results is None else results)
    footnotes = [*notes(plan, rows), *took(out)]
    text = markdown(plan, rows, footnotes)
    contents = {
        "table.md": f"# {plan.title}\n\n{text}\n",
        "table.tex": latex(plan, rows, footnotes),
        "table.csv": table_csv(plan, rows),
    }
    for name, content in contents.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    make_folder(out / "figures")
    figures = write_figures(plan, tasks, rows, out / "figures")
    if document is not None:
        write_between_markers(document, plan.name, f"{text}\n\n{_linked(plan, figures, document)}")
    return text


def took(out: Path) -> list[str]:
    """A note on how long the whole comparison has run."""
    run: Timing | None = Timing.read(out / "timing.json")
    if run is None:
        return []
    return [f"The whole plan: {run.seconds / 60:.1f} minutes, with room for {run.jobs} jobs of {run.threads} threads."]


def _linked(plan: Plan, figures: Sequence[Path], document: Path) -> str:
    """Copy the figures to images/ beside a document, and return the Markdown that shows them."""
    images = document.parent / "images"
    make_folder(images)
    lines = []
    for figure in figures:
        name = f"{plan.name}-{figure.name}"
        with atomic_path(images / name) as temporary:
            temporary.write_bytes(figure.read_bytes())
        os.chmod(images / name, 0o644)
        lines.append(f"![{plan.title}: {figure.stem}](images/{name})")
    return "\n\n".join(lines)

"""The output of a comparison: tables with their notes, figures, and a block between markers in a document."""

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
from voxsam.lab.compare.order import cases_to_test
from voxsam.lab.compare.plan import DataSpec, Plan
from voxsam.lab.compare.results import Result
from voxsam.lab.compare.runner import Task, Timing
from voxsam.lab.compare.tables import (
    APART,
    LATE_GAIN,
    NAMES,
    OVERLAP_MARK,
    OWN_MINUTES_MARK,
    UNCONVERGED_MARK,
    RowResult,
    collect,
    latex,
    markdown,
    methods,
    table_csv,
)
from voxsam.lab.evaluation.clicks import deepest_voxel
from voxsam.lab.evaluation.protocol import read_case, read_evaluation
from voxsam.lab.evaluation.tables import NOTHING, write_between_markers
from voxsam.report.metrics import dice
from voxsam.report.panels import BACKGROUND, INK, Plane, Scene, draw_plane
from voxsam.volume import Volume

DPI, BAR_DPI = 100, 150
PANEL_INCHES, HEAD_INCHES = 2.0, 0.34
SHOWN = 1.8  # width of the panels, times the tumour's longest side
LEAST_MM = 90.0
SERIES = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7")  # distinct for the colour-blind
DARK, GREY = "#1f2933", "#52606d"


def write_output(
    plan: Plan,
    results: Sequence[Result],
    tasks: Sequence[Task],
    out: Path,
    document: Path | None = None,
) -> str:
    """Write all tables and figures of the results so far; return the Markdown.

    `tasks` are the jobs whose masks are drawn; kept results have none. In `document` the block between `<!-- NAME -->`
    and `<!-- /NAME -->`, where NAME is the plan's, is replaced, and the figures are copied to the folder images/ beside
    it. Raises FileError if something cannot be written.
    """
    rows = collect(plan, results)
    footnotes = notes(plan, rows)
    run: Timing | None = Timing.read(out / "timing.json")
    if run is not None:
        room = f"with room for {run.jobs} jobs of {run.threads} threads"
        footnotes.append(f"The whole plan: {run.seconds / 60:.1f} minutes, {room}.")
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


def notes(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    """All notes for the reader, one line each, in the order in which a reviewer would ask."""
    reference = next(row.title for row in rows if row.row == plan.reference)
    return [
        *_protocol(plan, rows),
        *_starts(rows),
        *_budget(plan, rows),
        *_seeds(plan, rows),
        *_leakage(plan, rows),
        "Dice and NSD in per cent, mean over cases with its 95 % bootstrap interval; p: two-sided paired Wilcoxon test "
        f"of Dice against {reference} with as many clicks (without clicks: its fewest), not corrected for many tests. "
        f"Bold: the best mean, if the same test against the best of the other rows has p < {APART:g}.",
        *_rest(plan, rows),
    ]


def _protocol(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    lines = []
    for data in plan.data:
        found = [row.found[data.name] for row in rows if data.name in row.found]
        if found:
            cases = max(len(one.evaluation.cases) for one in found)
            trials, folds = found[0].evaluation.settings.trials, len(data.folds)
            part = f", each in one of {folds} folds that the plan names" if folds else ""
            lines.append(
                f"{data.shown}: {cases} test cases{part}, {trials} trials of random clicks where a system takes clicks."
            )
    return lines


def _starts(rows: Sequence[RowResult]) -> list[str]:
    """What the training of each row starts from, as far as known."""
    titles: dict[str, list[str]] = {}
    for row in rows:
        for start in dict.fromkeys(outcome.start for outcome in row.outcomes if outcome.start):
            titles.setdefault(start, []).append(row.title)
    return [f"Training begins with {start}: {', '.join(own)}." for start, own in titles.items()]


def _budget(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    """The minutes of each training, and which rows had converged within them."""
    budget = plan.budget
    if budget is None:
        return []
    rule = ""
    if len(budget.rate_factors) > 1:
        *most, last = (f"{factor:g}" for factor in budget.rate_factors)
        rule = (
            f" The learning rate of each is chosen by one rule: {', '.join(most)} and {last} times its usual one run"
            f" for {100 * budget.trial:g} % of the minutes each, and the one with the best Dice on the validation cases"
            " goes on to the end; all trials count."
        )
    lines = [
        f"Each training may take {budget.minutes:g} minutes of processor time (on a GPU: of the clock), with its"
        f" validations, without reading and preparing data.{rule}"
    ]
    for row in rows:
        minutes = plan.trained(plan.row(row.row)).minutes
        if minutes is not None:
            lines.append(
                f"{OWN_MINUTES_MARK} {row.title}: {minutes:g} minutes instead; it stands beside the comparison and is"
                " never bold."
            )
    known = [row for row in rows if any(outcome.training.trained for outcome in row.outcomes)]
    gains = ", ".join(f"{row.title} {NOTHING if row.late_gain is None else f'{row.late_gain:.3f}'}" for row in known)
    if known:
        lines.append(
            f"{UNCONVERGED_MARK} has not converged, and is never bold: in the last third of the training the best Dice"
            f" on the validation cases still rose by more than {LATE_GAIN:g} (mean over folds and seeds), or there were"
            f" too few validations to tell. It rose by: {gains}."
        )
    return lines


def _seeds(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(plan.seeds_of(plan.row(row.row)), []).append(row.title)
    if len(groups) == 1:
        return [f"Seeds: {', '.join(map(str, next(iter(groups))))}."]
    each = "; ".join(f"{', '.join(map(str, seeds))}: {', '.join(own)}" for seeds, own in groups.items())
    return [f"Seeds {each}. A case's score is the mean over them; their spread is in table.csv."]


def _leakage(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    lines = []
    for data in plan.data:
        if data.folds:
            lines.append(
                f"Leakage: in each fold of {data.shown} nobody of the test part is in the training or validation part,"
                f" by the patient in a case's name ({data.patient})."
            )
        own = {row.title: row.found[data.name] for row in rows if data.name in row.found}
        clean = [title for title, found in own.items() if found.checked and not found.overlap]
        if clean:
            lines.append(
                f"The voxels and names of the test cases of {data.shown} were looked for among all that the model lists"
                f" of its training, and were not found: {', '.join(clean)}."
            )
        for title, found in own.items():
            if found.overlap:
                cases = "; ".join(f"{case}: {how}" for case, how in found.overlap.items())
                count = f"{len(found.overlap)} of {len(found.evaluation.cases)} test cases of {data.shown}"
                lines.append(
                    f"{OVERLAP_MARK} {title} was trained on {count}: its numbers are no test, and never bold ({cases})."
                )
    return lines


def _rest(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    lines = []
    machines = sorted({outcome.machine for row in rows for outcome in row.outcomes})
    if machines:
        lines.append(f"Machine: {'; '.join(machines)} for each job.")
    own = [outcome for row in rows if plan.row(row.row).trained_as is None for outcome in row.outcomes]
    used = sum(outcome.training.trained.minutes for outcome in own if outcome.training.trained is not None)
    if used:
        lines.append(f"All trainings together: {used / 60:.1f} hours of processor time.")
    lines += list(dict.fromkeys(f"{row.title}: {row.note}" for row in rows if row.note and row.found))
    for row in rows:
        lines += [f"{row.title} failed on {name}: {reason}" for name, reason in row.failed.items()]
        lines += [f"{row.title} on {name}: {count} not run yet" for name, count in row.waiting.items()]
    return lines


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

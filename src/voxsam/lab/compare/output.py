"""What a comparison writes: table.md, table.tex, table.csv, figures, and a block in a document between its markers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import InputError
from voxsam.lab.compare.figures import write_figures
from voxsam.lab.compare.formats import latex, table_csv
from voxsam.lab.compare.plan import Plan
from voxsam.lab.compare.results import RowResult, collect
from voxsam.lab.compare.runner import Task, Timing
from voxsam.lab.compare.tables import markdown, notes
from voxsam.lab.evaluation.markdown import write_between_markers
from voxsam.lab.systems.common_loop import CommonLoop
from voxsam.lab.systems.rows import compared_system
from voxsam.lab.training.recipe import overridden
from voxsam.weights.model_file import read_card
from voxsam.weights.registry import find_model


def write_output(plan: Plan, tasks: Sequence[Task], out: Path, document: Path | None = None) -> str:
    """Write all tables and figures of what is there so far; returns the Markdown.

    In `document` the block between `<!-- NAME -->` and `<!-- /NAME -->`, NAME the plan's, is replaced, and the figures
    are copied to the folder images/ beside it. Raises FileError if something cannot be written.
    """
    rows = collect(plan, tasks)
    footnotes = [*notes(plan, rows), *starts(plan, rows), *took(out)]
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


def starts(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    """Which rows begin with the weights of a model, and what that was trained on."""
    titles: dict[tuple[str, bool], list[str]] = {}
    for row in rows:
        recipe = overridden(plan.recipe, plan.trained(plan.row(row.row)).recipe)
        if recipe.get("start_from") and isinstance(compared_system(plan.row(row.row).system), CommonLoop):
            titles.setdefault((recipe["start_from"], recipe.get("start_part") == "sam"), []).append(row.title)
    return [
        f"{', '.join(own)}: training begins with {'what is of SAM in ' if part else ''}{start}{_trained_on(start)}."
        for (start, part), own in titles.items()
    ]


def _trained_on(start: str) -> str:
    """What the card of a model says of its data; nothing for a file that is no model of VoxSAM, or not here."""
    try:
        data = read_card(find_model(start)).description.get("data", "")
    except InputError:
        return ""
    return f", trained on {data.rstrip('.')}" if data else ""


def took(out: Path) -> list[str]:
    """How long the whole comparison has run."""
    run: Timing | None = Timing.read(out / "timing.json")
    if run is None:
        return []
    return [f"The whole plan: {run.seconds / 60:.1f} minutes, with room for {run.jobs} jobs of {run.threads} threads."]


def _linked(plan: Plan, figures: Sequence[Path], document: Path) -> str:
    """The figures beside a document, and the lines that show them."""
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

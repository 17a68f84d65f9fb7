"""What a comparison writes: table.md, table.tex, table.csv, figures, and a block in a document between its markers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from voxsam.compare.figures import write_figures
from voxsam.compare.formats import latex, table_csv
from voxsam.compare.plan import Plan
from voxsam.compare.results import collect
from voxsam.compare.runner import Task
from voxsam.compare.tables import markdown
from voxsam.evaluation.markdown import write_between_markers
from voxsam.io.atomic import atomic_path, make_folder


def write_output(plan: Plan, tasks: Sequence[Task], out: Path, document: Path | None = None) -> str:
    """Write all tables and figures of what is there so far; returns the Markdown.

    In `document` the block between `<!-- NAME -->` and `<!-- /NAME -->`, NAME the plan's, is replaced, and the figures
    are copied to the folder images/ beside it. Raises FileError if something cannot be written.
    """
    rows = collect(plan, tasks)
    text = markdown(plan, rows)
    contents = {
        "table.md": f"# {plan.title}\n\n{text}\n",
        "table.tex": latex(plan, rows),
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

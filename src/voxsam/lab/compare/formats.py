"""A comparison's tables in other formats: LaTeX for a paper, and CSV with every number in full."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from voxsam.lab.compare.plan import Plan
from voxsam.lab.compare.results import RowResult
from voxsam.lab.compare.tables import NAMES, NUMBERS, Entry, best_of, main_rows, methods, p_column, score_column
from voxsam.lab.evaluation.markdown import NOTHING

PARTS = ("", "_low", "_high", "_sd_over_seeds", "_p")  # of each score in the CSV
FIELDS = (
    *("method", "row", "data", "kind", "clicks", "cases", "seeds"),
    *(f"{name}{part}" for name in NUMBERS for part in PARTS),
    *("tuned_parameters", "tuned_encoder_parameters", "parameters", "training_s", "peak_gb", "scan_s", "failed"),
)
_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%#_${}"},
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
    "↑": r"$\uparrow$",
    "–": "--",
    "<": "$<$",
}


def latex(plan: Plan, rows: Sequence[RowResult], footnotes: Sequence[str] = ()) -> str:
    """The main table for a paper: booktabs, data sets above their columns, the best in bold; notes as comments."""
    table, best = main_rows(plan, rows), best_of(plan, rows)
    columns = list(dict.fromkeys(name for row in table for name in row))
    heads, rules, names = [""], [], [_tex(columns[0])]
    for data in plan.data:
        own = {score_column(data, name): f"{NAMES[name]} ↑" for name in NUMBERS} | {p_column(data): "p"}
        shown = [name for column, name in own.items() if column in columns]
        heads.append(rf"\multicolumn{{{len(shown)}}}{{c}}{{{_tex(data.shown)}}}")
        rules.append(rf"\cmidrule(lr){{{len(names) + 1}-{len(names) + len(shown)}}}")
        names += map(_tex, shown)
    rest = [_tex(column) for column in columns[len(names) :]]
    lines = [
        *(f"% {note}" for note in footnotes),
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join([*heads, *[""] * len(rest)]) + r" \\",
        " ".join(rules),
        " & ".join([*names, *rest]) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table):
        bold = {column for column, at in best.items() if at == number}
        cells = {column: _tex(row.get(column, NOTHING)) for column in columns}
        lines.append(" & ".join(rf"\textbf{{{cell}}}" if c in bold else cell for c, cell in cells.items()) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def table_csv(plan: Plan, rows: Sequence[RowResult]) -> str:
    """One line for each method and data set, every number in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for method in methods(plan, rows):
        for data in plan.data:
            entry, failed = method.entries.get(data.name), method.row.failed.get(data.name, "")
            if entry is not None or failed:
                numbers = {} if entry is None else _numbers(entry)
                writer.writerow(
                    {"method": method.title, "row": method.row.row, "data": data.name, "failed": failed, **numbers}
                )
    return text.getvalue()


def _numbers(entry: Entry) -> dict[str, Any]:
    line, outcomes = entry.line, entry.found.outcomes
    cells: dict[str, Any] = {"kind": line.kind, "clicks": line.clicks, "cases": line.cases, "seeds": len(outcomes)}
    for name in NUMBERS:
        estimate = line.numbers[name]
        values = (estimate.value, estimate.low, estimate.high, entry.found.spread(line, name), entry.p.get(name))
        for part, value in zip(PARTS, values, strict=True):
            cells[name + part] = "" if value is None or math.isnan(value) else f"{value:.6g}"
    first = outcomes[0]
    for field, count in zip(
        ("tuned_parameters", "tuned_encoder_parameters", "parameters"),
        (first.tuned, first.tuned_encoder, first.total),
        strict=True,
    ):
        cells[field] = "" if count is None else count
    cells["training_s"] = f"{np.mean([o.training.seconds for o in outcomes]):.1f}"
    cells["peak_gb"] = f"{max(o.peak_gb for o in outcomes):.2f}"
    cells["scan_s"] = f"{np.mean([o.scan_seconds for o in outcomes]):.3f}"
    return cells


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _SIGNS)), lambda match: _SIGNS[match[0]], text)

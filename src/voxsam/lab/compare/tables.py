"""The tables of a comparison in the paper's shape: Markdown, LaTeX, CSV.

A row's numbers are means over cases with intervals, and tests against the reference row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from voxsam.lab.compare.order import Outcome, import_modules
from voxsam.lab.compare.plan import DataSpec, Plan, RowSpec
from voxsam.lab.compare.results import Result
from voxsam.lab.evaluation.protocol import Evaluation
from voxsam.lab.evaluation.tables import NOTHING, Line, by_case, markdown_table, rows_of, shown, summarise
from voxsam.lab.systems.common_loop import compared_system

LATE_GAIN = 0.02  # of the validation Dice in the last third of a training, above which it has not converged


@dataclass(frozen=True)
class Found:
    """One row on one data set over all seeds: cases have equal weight, averaged over seeds and trials first."""

    evaluation: Evaluation
    outcomes: tuple[Outcome, ...]
    by_seed: tuple[Evaluation, ...]  # all folds of a seed together
    checked: bool = False  # whether overlap with the row's training cases was checked

    @property
    def overlap(self) -> dict[str, str]:
        """Test cases that the row is known to have been trained on, with how they match; over all seeds."""
        return {case: how for one in self.by_seed for case, how in one.overlap.items()}

    @cached_property
    def lines(self) -> list[Line]:
        """One for each kind and number of clicks; cached, since every table and figure needs them."""
        return summarise(self.evaluation)

    def spread(self, line: Line, name: str) -> float:
        """The s.d. over seeds of the mean over cases; nan for one seed."""
        means = [
            float(np.nanmean(list(by_case(rows_of(one, line.kind, line.clicks), name).values())))
            for one in self.by_seed
        ]
        return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


@dataclass(frozen=True)
class RowResult:
    """A row of the tables: the results on each data set, or why there are none."""

    row: str
    title: str
    note: str
    found: dict[str, Found] = field(default_factory=dict)  # by the data set's name
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)  # number of jobs (folds and seeds) not run to an end

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes of all data sets, folds and seeds."""
        return [outcome for found in self.found.values() for outcome in found.outcomes]

    @property
    def late_gain(self) -> float | None:
        """The mean rise of the best validation Dice in the last third of the trainings; None if unknown for any."""
        gains = [outcome.training.trained.late_gain for outcome in self.outcomes if outcome.training.trained]
        known = [gain for gain in gains if gain is not None]
        return float(np.mean(known)) if known and len(known) == len(gains) else None

    @property
    def converged(self) -> bool:
        """False for a row with a budget whose validation Dice still rose at the end, or has too few values to tell."""
        if not any(outcome.training.trained for outcome in self.outcomes):
            return True
        return self.late_gain is not None and self.late_gain <= LATE_GAIN


def collect(plan: Plan, results: Sequence[Result]) -> list[RowResult]:
    """The rows from the results so far, in the plan's order."""
    import_modules(plan.modules)
    return [_row(plan, spec, [one for one in results if one.row == spec.row]) for spec in plan.systems]


def _row(plan: Plan, spec: RowSpec, results: Sequence[Result]) -> RowResult:
    about = compared_system(spec.system).about
    found, failed, waiting = {}, {}, {}
    for data in plan.data:
        own = [one for one in results if one.data == data.name]
        done = [one for one in own if one.outcome is not None]
        if done:
            found[data.name] = _found(plan, done)
        lost = [one for one in own if one.outcome is None]
        reasons = {one.seed: one.failure for one in lost if one.failure}
        pending = sum(not one.failure for one in lost)
        if pending:
            waiting[data.name] = pending
        if reasons:
            seeds = "" if len(plan.seeds_of(spec)) == 1 else f" (seed {', '.join(map(str, reasons))})"
            failed[data.name] = f"{next(iter(reasons.values()))}{seeds}"
    first = next((outcome for one in found.values() for outcome in one.outcomes), None)
    title, note = (about.title, about.note) if first is None else (first.title, first.note)  # with its options
    title = title if spec.row == spec.system else f"{title}, {spec.row}"
    return RowResult(spec.row, spec.title or title, note, found, failed, waiting)


def _found(plan: Plan, results: Sequence[Result]) -> Found:
    """Join the folds of each seed, which have distinct cases; then the seeds, whose rows become additional trials."""
    by_seed: dict[int, list[Evaluation]] = {}
    for one in results:
        by_seed.setdefault(one.seed, []).append(one.evaluation(plan))
    seeds = []
    for folds in by_seed.values():
        overlap = {case: how for one in folds for case, how in one.overlap.items()}
        seeds.append(replace(folds[0], rows=tuple(row for one in folds for row in one.rows), overlap=overlap))
    rows = tuple(
        replace(row, trial=row.trial + number * one.settings.trials)
        for number, one in enumerate(seeds)
        for row in one.rows
    )
    outcomes = tuple(one.outcome for one in results if one.outcome is not None)
    return Found(replace(seeds[0], rows=rows), outcomes, tuple(seeds), all(one.checked for one in results))


def p_value(own: dict[str, float], reference: dict[str, float]) -> float | None:
    """p of a two-sided paired Wilcoxon signed-rank test over the cases in both; None for fewer than two of them.

    Cases without a difference are left out (Wilcoxon's own method); if none differs, p is 1.
    """
    both = [case for case in own if case in reference and not math.isnan(own[case] + reference[case])]
    if len(both) < 2:
        return None
    differences = np.array([own[case] - reference[case] for case in both])
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)  # type: ignore[attr-defined]


def counterpart(line: Line, reference: Found) -> Line:
    """The reference's line with the same number of clicks, else its first: a system without clicks meets one click."""
    lines = reference.lines
    same = [other for other in lines if other.clicks == line.clicks and other.kind == line.kind]
    same += [other for other in lines if other.clicks == line.clicks]
    return (same or lines)[0]


FAILED = "failed"
NAMES = {"dice": "Dice", "nsd": "NSD"}
NUMBERS = tuple(NAMES)
BELOW = 0.001  # smaller p values are shown as below this
APART = 0.05  # p below which the best method is significantly better than the best of the other rows


@dataclass(frozen=True)
class Entry:
    """One line of one row on one data set, with its test against the reference."""

    found: Found
    line: Line
    p: dict[str, float | None]  # of Dice and NSD; empty for the reference itself


@dataclass(frozen=True)
class Method:
    """A line of the paper's table: a row with one number of clicks, on every data set."""

    title: str
    row: RowResult
    entries: dict[str, Entry]


def methods(plan: Plan, rows: Sequence[RowResult]) -> list[Method]:
    """All lines in the plan's order; a row without results has one without entries."""
    reference = next(row for row in rows if row.row == plan.reference)
    found: list[Method] = []
    for row in rows:
        entries: dict[str, dict[str, Entry]] = {}
        for data, own in row.found.items():
            other = None if row is reference else reference.found.get(data)
            for line in own.lines:
                p = {} if other is None else _tests(line, counterpart(line, other))
                entries.setdefault(line.label, {})[data] = Entry(own, line, p)
        title = _marked(plan, row)
        for label, of_label in entries.items():
            found.append(Method(title if label == "automatic" else f"{title} ({label})", row, of_label))
        if not entries:
            found.append(Method(row.title, row, {}))
    return found


def _tests(line: Line, other: Line) -> dict[str, float | None]:
    return {name: p_value(line.by_case(name), other.by_case(name)) for name in NUMBERS}


OVERLAP_MARK = "†"  # on a row that was trained on test cases
UNCONVERGED_MARK = "‡"
OWN_MINUTES_MARK = "§"


def _marked(plan: Plan, row: RowResult) -> str:
    marks = {
        OVERLAP_MARK: any(found.overlap for found in row.found.values()),
        UNCONVERGED_MARK: not row.converged,
        OWN_MINUTES_MARK: _apart(plan, row),
    }
    shown = "".join(mark for mark, holds in marks.items() if holds)
    return f"{row.title} {shown}" if shown else row.title


def _apart(plan: Plan, row: RowResult) -> bool:
    """Whether a row has its own minutes, and so takes no part in the comparison."""
    return plan.trained(plan.row(row.row)).minutes is not None


def main_rows(plan: Plan, rows: Sequence[RowResult]) -> list[dict[str, str]]:
    """Dice and NSD in per cent with intervals, p of Dice, tuned parameters; methods as rows, data sets as columns."""
    table = []
    for method in methods(plan, rows):
        cells = {"Methods": method.title}
        for data in plan.data:
            entry = method.entries.get(data.name)
            lost = FAILED if data.name in method.row.failed else NOTHING
            for name in NUMBERS:
                column = score_column(data, name)
                cells[column] = lost if entry is None else shown(entry.line.numbers[name], percent=True)
            if len(rows) > 1:
                cells[p_column(data)] = NOTHING if entry is None else _p(entry.p.get("dice"))
        table.append(cells | _parameters(method.row, rows))
    return table


def cost_rows(plan: Plan, rows: Sequence[RowResult]) -> list[dict[str, str]]:
    """The cost of each row: training, memory, time to the first mask of a scan; means over data sets and seeds."""
    table = []
    for row in rows:
        outcomes = row.outcomes
        cells = {"Methods": row.title, "all params": _millions([o.total for o in outcomes])}
        cells["training, min"] = _mean([o.training.seconds / 60 for o in outcomes], 1)
        if plan.budget is not None:
            within = [o.training.trained for o in outcomes if o.training.trained is not None]
            cells["of processor time"] = _mean([one.minutes for one in within], 1)
            rates = sorted({one.learning_rate for one in within})
            cells["learning rate"] = ", ".join(f"{rate:.2g}" for rate in rates) or NOTHING
        cells["peak memory, GB"] = _mean([o.peak_gb for o in outcomes], 1)
        cells["first mask of a scan, s"] = _mean([o.scan_seconds for o in outcomes], 2)
        cells["seeds"] = str(max((len(found.by_seed) for found in row.found.values()), default=0))
        table.append(cells)
    return table


def markdown(plan: Plan, rows: Sequence[RowResult], footnotes: Sequence[str] = ()) -> str:
    """Both tables and the notes under them; means in bold are significantly better by the paired test."""
    table, best = main_rows(plan, rows), best_of(plan, rows)
    for column, number in best.items():
        table[number][column] = f"**{table[number][column]}**"
    parts = [markdown_table(table, right=True), markdown_table(cost_rows(plan, rows), right=True)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in footnotes)])


def score_column(data: DataSpec, number: str) -> str:
    """The heading of Dice or NSD on a data set."""
    return f"{data.shown} {NAMES[number]} ↑"


def p_column(data: DataSpec) -> str:
    """The heading of the test on a data set."""
    return f"{data.shown} p"


def best_of(plan: Plan, rows: Sequence[RowResult]) -> dict[str, int]:
    """The index of the best method in each score column, if the paired test finds it better than all other rows.

    The test is against the best of the other rows, case by case. Rows trained on test cases, with their own minutes, or
    with jobs still to run take no part; if the best has not converged, there is none.
    """
    listed, best = methods(plan, rows), {}
    for data in plan.data:
        entries = {at: one.entries[data.name] for at, one in enumerate(listed) if data.name in one.entries}
        entries = {
            at: entry
            for at, entry in entries.items()
            if not (entry.found.overlap or _apart(plan, listed[at].row) or data.name in listed[at].row.waiting)
        }
        for name in NUMBERS:
            order = sorted(entries, key=lambda at: -entries[at].line.numbers[name].value)
            others = [at for at in order if listed[at].row is not listed[order[0]].row]
            if not others or not listed[order[0]].row.converged:
                continue
            first, second = (entries[at].line.by_case(name) for at in (order[0], others[0]))
            p = p_value(first, second)
            if p is not None and p < APART:
                best[score_column(data, name)] = order[0]
    return best


def _parameters(row: RowResult, rows: Sequence[RowResult]) -> dict[str, str]:
    cells = {"#Tuned params": _millions([o.tuned for o in row.outcomes])}
    if any(outcome.tuned_encoder is not None for other in rows for outcome in other.outcomes):
        cells["in the image encoder"] = _millions([o.tuned_encoder for o in row.outcomes])
    return cells


def _millions(counts: Sequence[int | None]) -> str:
    """The count, or the least and the greatest if data sets differ."""
    known = sorted({count for count in counts if count is not None})
    if not known:
        return NOTHING
    ends = known if len(known) < 2 else (known[0], known[-1])
    return "–".join(map(_count, ends))


def _count(count: int) -> str:
    if count < 1000:
        return str(count)
    return f"{count / 1e6:.2f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def _mean(values: Sequence[float], decimals: int) -> str:
    return f"{np.mean(values):.{decimals}f}" if values else NOTHING


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"<{BELOW}" if value < BELOW else f"{value:.3f}"


PARTS = ("", "_low", "_high", "_sd_over_seeds", "_p")  # of each score in the CSV
FIELDS = (
    *("method", "row", "data", "kind", "clicks", "cases", "seeds"),
    *(f"{name}{part}" for name in NUMBERS for part in PARTS),
    *("tuned_parameters", "tuned_encoder_parameters", "parameters", "training_s", "processor_s"),
    *("late_gain", "peak_gb", "scan_s", "failed"),
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
    """The main table for a paper, in booktabs: data sets above their columns, the best in bold, notes as comments."""
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
    """One line for each method and data set, with all numbers in full."""
    lines = []
    for method in methods(plan, rows):
        for data in plan.data:
            entry, failed = method.entries.get(data.name), method.row.failed.get(data.name, "")
            if entry is not None or failed:
                numbers = {} if entry is None else _numbers(method, entry)
                lines.append(
                    {"method": method.title, "row": method.row.row, "data": data.name, "failed": failed, **numbers}
                )
    return pd.DataFrame(lines, columns=list(FIELDS), dtype=object).to_csv(index=False, lineterminator="\n")


def _numbers(method: Method, entry: Entry) -> dict[str, Any]:
    line, outcomes = entry.line, entry.found.outcomes
    cells: dict[str, Any] = {"kind": line.kind, "clicks": line.clicks, "cases": line.cases}
    cells["seeds"] = len(entry.found.by_seed)
    for name in NUMBERS:
        estimate = line.numbers[name]
        values = (estimate.value, estimate.low, estimate.high, entry.found.spread(line, name), entry.p.get(name))
        for part, value in zip(PARTS, values, strict=True):
            cells[name + part] = "" if value is None or math.isnan(value) else f"{value:.6g}"
    first = outcomes[0]
    counts = {
        "tuned_parameters": first.tuned,
        "tuned_encoder_parameters": first.tuned_encoder,
        "parameters": first.total,
    }
    cells |= {column: "" if count is None else count for column, count in counts.items()}
    trained = [o.training.trained for o in outcomes if o.training.trained is not None]
    if trained:
        cells["processor_s"] = f"{60 * np.mean([one.minutes for one in trained]):.1f}"
        cells["late_gain"] = "" if method.row.late_gain is None else f"{method.row.late_gain:.4f}"
    cells["training_s"] = f"{np.mean([o.training.seconds for o in outcomes]):.1f}"
    cells["peak_gb"] = f"{max(o.peak_gb for o in outcomes):.2f}"
    cells["scan_s"] = f"{np.mean([o.scan_seconds for o in outcomes]):.3f}"
    return cells


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _SIGNS)), lambda match: _SIGNS[match[0]], text)

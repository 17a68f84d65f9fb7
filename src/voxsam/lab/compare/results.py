"""What the jobs of a plan found, row by row: means over cases, intervals, and tests against the reference row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.stats

from voxsam.lab.compare.order import Outcome, import_modules
from voxsam.lab.compare.plan import Plan
from voxsam.lab.compare.runner import Task
from voxsam.lab.evaluation.protocol import Evaluation, read_evaluation
from voxsam.lab.evaluation.summary import Line, by_case, rows_of, summarise
from voxsam.lab.systems.common_loop import compared_system


@dataclass(frozen=True)
class Found:
    """One row on one data set, its seeds together: every case weighs the same, its seeds and trials averaged first."""

    evaluation: Evaluation
    outcomes: tuple[Outcome, ...]
    by_seed: tuple[Evaluation, ...]

    def lines(self) -> list[Line]:
        """One for each kind and number of clicks."""
        return summarise(self.evaluation)

    def cases(self, line: Line, name: str) -> dict[str, float]:
        """A number of every case."""
        return by_case(rows_of(self.evaluation, line.kind, line.clicks), name)

    def spread(self, line: Line, name: str) -> float:
        """The s.d. over seeds of the mean over cases; nan for one seed."""
        means = [
            float(np.nanmean(list(by_case(rows_of(one, line.kind, line.clicks), name).values())))
            for one in self.by_seed
        ]
        return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


@dataclass(frozen=True)
class RowResult:
    """A row of the tables: what was found on each data set, or why nothing was."""

    row: str
    title: str
    note: str
    found: dict[str, Found] = field(default_factory=dict)  # by the data set's name
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)  # how many seeds have not been run to an end

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all data sets and seeds."""
        return [outcome for found in self.found.values() for outcome in found.outcomes]


def collect(plan: Plan, tasks: Sequence[Task]) -> list[RowResult]:
    """What is there so far, in the plan's order."""
    return [_row(plan, number, tasks) for number in range(len(plan.systems))]


def _row(plan: Plan, number: int, tasks: Sequence[Task]) -> RowResult:
    spec = plan.systems[number]
    import_modules(plan.modules)
    about = compared_system(spec.system).about
    found, failed, waiting = {}, {}, {}
    for data in plan.data:
        own = [task for task in tasks if task.row.row == spec.row and task.data.name == data.name]
        done = [(outcome, task) for task in own if (outcome := task.outcome) is not None]
        if done:
            evaluations = tuple(read_evaluation(task.results / "evaluation.json") for _, task in done)
            found[data.name] = Found(_together(evaluations), tuple(outcome for outcome, _ in done), evaluations)
        lost = [(task.order.seed, task.failure) for task in own if task.outcome is None]
        reasons = {seed: reason for seed, reason in lost if reason}
        if len(reasons) < len(lost):
            waiting[data.name] = len(lost) - len(reasons)
        if reasons:
            seeds = "" if len(plan.seeds) == 1 else f" (seed {', '.join(map(str, reasons))})"
            failed[data.name] = f"{next(iter(reasons.values()))}{seeds}"
    first = next((outcome for one in found.values() for outcome in one.outcomes), None)
    title, note = (about.title, about.note) if first is None else (first.title, first.note)  # with its options
    title = title if spec.row == spec.system else f"{title}, {spec.row}"
    return RowResult(spec.row, spec.title or title, note, found, failed, waiting)


def _together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The rows of several seeds, as so many more trials."""
    rows = tuple(
        replace(row, trial=row.trial + number * evaluation.settings.trials)
        for number, evaluation in enumerate(evaluations)
        for row in evaluation.rows
    )
    return replace(evaluations[0], rows=rows)


def p_value(own: dict[str, float], reference: dict[str, float]) -> float | None:
    """Two-sided paired Wilcoxon signed-rank test over the cases that both have; None for fewer than two of them.

    Cases without a difference are left out (Wilcoxon's own way); without any difference it is 1.
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
    """The reference's line with as many clicks, else its first: a system without clicks meets one click."""
    lines = reference.lines()
    same = [other for other in lines if other.clicks == line.clicks and other.kind == line.kind]
    same += [other for other in lines if other.clicks == line.clicks]
    return (same or lines)[0]

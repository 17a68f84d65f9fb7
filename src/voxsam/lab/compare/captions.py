"""The notes under a table: protocol, start, minutes, convergence, seeds, leakage, tests, machine, failures."""

from __future__ import annotations

from collections.abc import Sequence

from voxsam.lab.compare.plan import Plan
from voxsam.lab.compare.tables import (
    APART,
    LATE_GAIN,
    OVERLAP_MARK,
    OWN_MINUTES_MARK,
    UNCONVERGED_MARK,
    RowResult,
)
from voxsam.lab.evaluation.tables import NOTHING


def notes(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    """All notes for the reader, one line each, in the order in which a reviewer would ask."""
    return [
        *_protocol(plan, rows),
        *_starts(rows),
        *_minutes(plan, rows),
        *_convergence(plan, rows),
        *_seeds(plan, rows),
        *_leakage(plan, rows),
        *_tests(plan, rows),
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


def _minutes(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
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
    return lines


def _convergence(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    if plan.budget is None:
        return []
    known = [row for row in rows if any(outcome.training.trained for outcome in row.outcomes)]
    if not known:
        return []
    gains = ", ".join(f"{row.title} {NOTHING if row.late_gain is None else f'{row.late_gain:.3f}'}" for row in known)
    return [
        f"{UNCONVERGED_MARK} has not converged, and is never bold: in the last third of the training the best Dice on"
        f" the validation cases still rose by more than {LATE_GAIN:g} (mean over folds and seeds), or there were too"
        f" few validations to tell. It rose by: {gains}."
    ]


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


def _tests(plan: Plan, rows: Sequence[RowResult]) -> list[str]:
    reference = next(row.title for row in rows if row.row == plan.reference)
    return [
        "Dice and NSD in per cent, mean over cases with its 95 % bootstrap interval; p: two-sided paired Wilcoxon test "
        f"of Dice against {reference} with as many clicks (without clicks: its fewest), not corrected for many tests. "
        f"Bold: the best mean, if the same test against the best of the other rows has p < {APART:g}."
    ]


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

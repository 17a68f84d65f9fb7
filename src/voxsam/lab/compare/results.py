"""The results of jobs, small enough to be committed beside their plan: tables need nothing else.

    RESULTS/DATA/ROW-SEED.json, of folds DATA/ROW-foldN-SEED.json

A result has the digest of the plan's settings for its job, so that a changed plan does not use it, and the digests of
the log and of the full evaluation that it was made from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from voxsam.atomic import make_folder
from voxsam.errors import FileError
from voxsam.lab.compare.order import JobKey, Outcome, Record, digest_of
from voxsam.lab.compare.plan import DataSpec, Plan, RowSpec, Strict, settings
from voxsam.lab.compare.runner import Task
from voxsam.lab.evaluation.protocol import Evaluation, ScoredMask, read_evaluation
from voxsam.lab.evaluation.scores import Scores
from voxsam.lab.evaluation.tables import by_case, rows_of
from voxsam.lab.training.recipe import overridden


class CaseScore(Strict):
    """A case with one number of clicks: means over its trials."""

    case: str
    kind: str
    clicks: int
    dice: float  # 0..1
    nsd: float  # 0..1
    seconds: float  # per mask


class Result(Record):
    """One row on one data set and fold with one seed: an outcome with scores, a failure, or neither yet."""

    row: str
    data: str
    fold: int | None
    seed: int
    plan_digest: str
    failure: str = ""
    outcome: Outcome | None = None
    scores: tuple[CaseScore, ...] = ()
    overlap: dict[str, str] = Field(default_factory=dict)  # cases it is known to have been trained on: how they match
    checked: bool = False  # whether its card lists every training scan, so that an overlap would be found
    log_sha256: str = ""
    evaluation_sha256: str = ""

    @property
    def key(self) -> JobKey:
        """Which job of the plan it is of."""
        return self.row, self.data, self.fold, self.seed

    def evaluation(self, plan: Plan) -> Evaluation:
        """The scores as an Evaluation with one trial for each case; all other numbers are missing."""
        rows = tuple(
            ScoredMask(
                one.case,
                0,
                one.kind,
                0,
                one.clicks,
                Scores(one.dice, one.nsd, math.nan, math.nan, math.nan, math.nan, 0, 0, 0),
                (),
                one.seconds,
            )
            for one in self.scores
        )
        keys = {**plan.evaluation, **plan.row(self.row).evaluation}
        title = "" if self.outcome is None else self.outcome.title
        return Evaluation(title, self.data, settings(keys), rows, {}, overlap=self.overlap)


def plan_digest(plan: Plan, row: RowSpec, data: DataSpec, fold: int | None, seed: int) -> str:
    """The digest of all settings of a job in a plan, without the folder of its data and the rest of the plan."""
    trained, budget = plan.trained(row), plan.budget_of(row)
    recipe = overridden(overridden(plan.recipe, data.recipe), trained.recipe)
    split: Any = data.split_seed if fold is None else data.folds[fold].model_dump(mode="json")
    prepared = [data.labels, data.spacing_mm, data.layout, split]
    allowed = None if budget is None else budget.model_dump(mode="json")
    evaluation = asdict(settings(plan.evaluation, row.evaluation))
    return digest_of([trained.system, row.system, seed, recipe, trained.options, prepared, allowed, evaluation])


def result_of(plan: Plan, task: Task) -> Result:
    """The result of a job so far."""
    order, outcome = task.order, task.outcome
    named = {"row": task.row.row, "data": task.data.name, "fold": order.fold, "seed": order.seed}
    digest = plan_digest(plan, task.row, task.data, order.fold, order.seed)
    if outcome is None:
        return Result(**named, plan_digest=digest, failure=task.failure)
    path = task.results / "evaluation.json"
    evaluation = read_evaluation(path)
    return Result(
        **named,
        plan_digest=digest,
        outcome=outcome,
        scores=_scores(evaluation),
        overlap=evaluation.overlap,
        checked=evaluation.checked,
        log_sha256=_sha256(task.folder / "log.txt"),
        evaluation_sha256=_sha256(path),
    )


def _scores(evaluation: Evaluation) -> tuple[CaseScore, ...]:
    found = []
    for kind, clicks in dict.fromkeys((row.kind, row.clicks) for row in evaluation.rows):
        rows = rows_of(evaluation, kind, clicks)
        dice, nsd = by_case(rows, "dice"), by_case(rows, "nsd")
        for case in dice:
            seconds = float(np.mean([row.seconds for row in rows if row.case == case]))
            found.append(
                CaseScore(case=case, kind=kind, clicks=clicks, dice=dice[case], nsd=nsd[case], seconds=seconds)
            )
    return tuple(found)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def save_results(results: Sequence[Result], folder: Path) -> None:
    """Write all finished results. Raises FileError if the folder or the disk does not take them."""
    for result in results:
        if result.outcome is not None or result.failure:
            path = folder / result.data / _name(result.row, result.fold, result.seed)
            make_folder(path.parent)
            result.save(path)


def read_results(plan: Plan, folder: Path) -> list[Result]:
    """Read the results of a plan's jobs from a folder of `save_results`; a job without one counts as not run.

    Raises FileError for a missing folder.
    """
    if not folder.is_dir():
        remedy = "run the plan with -o, and give --results a folder to keep them in"
        raise FileError(f"{folder}: no such folder", "the results of the plan", remedy)
    found = []
    for data in plan.data:
        for row in plan.systems:
            for fold in data.parts:
                for seed in plan.seeds_of(row):
                    digest = plan_digest(plan, row, data, fold, seed)
                    kept = Result.read(folder / data.name / _name(row.row, fold, seed))
                    named = {"row": row.row, "data": data.name, "fold": fold, "seed": seed}
                    same = kept is not None and kept.plan_digest == digest
                    found.append(kept if same else Result(**named, plan_digest=digest))
    return found


def _name(row: str, fold: int | None, seed: int) -> str:
    return f"{row}-{seed}.json" if fold is None else f"{row}-fold{fold}-{seed}.json"

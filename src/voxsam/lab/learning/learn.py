"""Learning from a project's cases, up to the offer of a model; if killed at any moment, the same call resumes.

A plan holds the parts of the cases that are left out in turn. For each part a model is trained on the other cases, and
the clicks it needs on the part are compared with those of the model in use. Only if fewer are needed beyond chance
(Gate.chance) is a model trained on all cases. All trainings start from the project's start model: a model fine-tuned
again and again forgets (Cellpose's rule).

PROJECT/.learning/plan.json      a Plan; another set of cases starts a new one
                  part-0/        a run of voxsam.lab.training; part-0.json, a Gate, once checked
                  all/           the run on all cases
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import psutil
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import InputError
from voxsam.lab.evaluation.clicks import MAX_CLICKS, WANTED_DICE, clicks_needed
from voxsam.lab.evaluation.systems import SessionSystem
from voxsam.lab.learning.samples import first_click, load_stream, preprocessing_for, read_case, recipe_for
from voxsam.lab.training import Stopped
from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.run import train
from voxsam.project import Project
from voxsam.project.folder import LEARNING_LOCK
from voxsam.project.records import LEAST, Gate, LearnedModel, Reading, Record, now, read_record, write_record
from voxsam.weights.checkpoint import load_model
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model

CROSSED, PARTS = 12, 3  # up to 12 cases each is left out once, in three parts; with more, the newest quarter is
CHECKED = 6  # cases that the newest quarter has at least: with fewer, help can hardly be told from chance
LONGER = 2  # times the steps of a check, for the training on all cases, whose model is used
TRAINING = 0.8  # of the time; the rest is for counting clicks
MEASURED = 6  # steps of the run that times a step; the first does not count
FEWEST_STEPS, MOST_STEPS = 10, 1500
LATE = 1.5  # times the planned time: a training ends then, whatever it has reached
LOOK_S = 0.2
LOWEST = 19  # niceness; Windows has priority classes

Log = Callable[[str], None]


class Plan(Record):
    """The content of plan.json."""

    cases: dict[str, str]  # each with the time at which it was finished
    minutes: float
    data: str
    name: str  # of the model
    left_out: tuple[tuple[str, ...], ...]
    steps: int  # of each check
    step_s: float


@dataclass
class Considerate(Callback):
    """Pauses while somebody clicks, and ends a training that takes too long or whose plan is gone (`forget`).

    `report` is called before each step with the number of steps done and of all steps.
    """

    project: Project
    plan: Path
    budget_s: float
    report: Callable[[int, int], None] = lambda done, steps: None
    starts: list[float] = field(default_factory=list)
    paused_s: float = 0.0

    def wait(self) -> None:
        """Wait until nobody clicks. Raises InputError if the plan is gone."""
        begin = time.monotonic()
        while self.project.is_busy():
            time.sleep(LOOK_S)
        self.paused_s += time.monotonic() - begin
        if not self.plan.is_file():
            raise InputError("a learning that was stopped, or a case of which was forgotten", "its plan", "learn again")

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Called by Lightning before each step."""
        self.wait()
        self.starts.append(time.monotonic() - self.paused_s)
        self.report(trainer.global_step, int(trainer.max_steps))
        trainer.should_stop = trainer.should_stop or self.starts[-1] - self.starts[0] > self.budget_s


def learn(
    project: Project,
    *,
    minutes: float = 20.0,
    data: Path | None = None,
    log: Log = lambda line: None,
    steps: int | None = None,
    low_priority: bool = True,
) -> LearnedModel:
    """Learn from all finished cases, and offer the model if it needs fewer clicks than the one in use.

    The difference must be larger than chance would give (`Gate.chance`). `minutes` limits the whole; `data`, a folder
    like the shared data, adds the data engine's own scans as replay. The `steps` of each check follow from the
    measured time of a step unless given. Raises InputError for fewer than five cases, if another process is already
    learning, and for a start model that cannot learn.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        with FileLock(project.folder / LEARNING_LOCK, timeout=1):
            if low_priority:
                psutil.Process().nice(psutil.IDLE_PRIORITY_CLASS if os.name == "nt" else LOWEST)  # type: ignore[attr-defined]
            return _Learning(project, minutes, data, log, steps).run()
    except Timeout as error:
        given = f"{project.folder}, which another process is learning from"
        raise InputError(given, "one at a time", "wait for its end, or stop it") from error
    except Stopped as stop:
        log(f"Stopped after step {stop.step}; the same command goes on from there")
        raise KeyboardInterrupt from stop


class _Learning:
    """One learning: its state and its stages."""

    def __init__(self, project: Project, minutes: float, data: Path | None, log: Log, steps: int | None) -> None:
        self.project, self.minutes, self.data, self.steps = project, minutes, data, steps
        self._log, self.said = log, ""
        self.work = project.learning
        self.path = self.work / "plan.json"
        self.readings = project.done_cases()
        if len(self.readings) < LEAST:
            given = f"{len(self.readings)} scans that are done"
            raise InputError(given, f"{LEAST} or more", "finish more scans first: some are left out to check the model")
        self.source = project.model_source(project.settings.start)
        self.card = read_card(find_model(self.source))
        modalities = [project.scan(case).modality for case in self.readings]
        self.preprocessing = preprocessing_for(self.card, modalities)

    def run(self) -> LearnedModel:
        """Run all remaining stages. The working folder is removed after a result, or if a case was forgotten."""
        begin = time.monotonic()
        plan = self._plan()
        self.log(
            f"{plan.name} learns from {len(plan.cases)} scans: about {self._about(plan):.0f} min in"
            f" {len(plan.left_out)} x {plan.steps} steps to check and {LONGER * plan.steps} on all of them"
        )
        try:
            gates = [self._checked(plan, number) for number in range(len(plan.left_out))]
            gate = Gate(
                dice=WANTED_DICE,
                limit=MAX_CLICKS,
                before={case: n for part in gates for case, n in part.before.items()},
                after={case: n for part in gates for case, n in part.after.items()},
            )
            weights = None
            if gate.is_better:
                self.log(f"{gate}; now a model of all {len(plan.cases)} scans")
                weights = self._trained(plan, "all", list(self.readings.values()))
            model = LearnedModel(
                name=plan.name,
                made=now(),
                start=self.project.settings.start,
                cases={case: reading.content for case, reading in self.readings.items()} if weights else {},
                seen=len(self.readings),
                steps=LONGER * plan.steps if weights else plan.steps,
                minutes=round((time.monotonic() - begin) / 60, 2),
                gate=gate,
                state="offered" if gate.is_better else "refused",
            )
            self.project.keep_model(model, weights)
        except InputError:
            if not self.path.is_file():
                shutil.rmtree(self.work, ignore_errors=True)  # a checkpoint may have come after the rest was deleted
            raise
        shutil.rmtree(self.work, ignore_errors=True)
        return model

    def log(self, line: str) -> None:
        """Log a line; the latest is kept with the progress."""
        self.said = line
        self._log(line)

    def _about(self, plan: Plan) -> float:
        """The expected minutes, including the counting of clicks; if no step was timed, the limit."""
        if not plan.step_s:
            return plan.minutes
        training = (len(plan.left_out) + LONGER) * plan.steps * plan.step_s / TRAINING / 60
        return max(1.0, min(plan.minutes, training))

    def _plan(self) -> Plan:
        """The plan of an interrupted run, if cases, minutes and data are the same; else a new one."""
        cases = {case: reading.finished for case, reading in self.readings.items()}
        data = "" if self.data is None else str(self.data.absolute())
        wanted = {"cases": cases, "minutes": self.minutes, "data": data}
        if self.path.is_file():
            plan = read_record(self.path, Plan)
            if plan.model_dump(include=set(wanted)) == wanted and (
                plan.steps == self.steps if self.steps else plan.step_s
            ):
                return plan
        shutil.rmtree(self.work, ignore_errors=True)
        make_folder(self.work)
        taken = {model.name for model in self.project.models()}
        names = [f"learned-{len(cases)}", *(f"learned-{len(cases)}-{n}" for n in range(2, len(taken) + 2))]
        name = next(name for name in names if name not in taken)
        plan = Plan(**wanted, name=name, left_out=_parts(list(cases)), steps=MEASURED, step_s=0.0)
        write_record(self.path, plan)
        if self.steps is None:
            self.log("measuring how long a step takes")
            plan = plan.model_copy(update=self._measured(plan))
        else:
            plan = plan.model_copy(update={"steps": self.steps})
        write_record(self.path, plan)
        return plan

    def _measured(self, plan: Plan) -> dict[str, Any]:
        """The steps of each check, and the time of a step, measured over a few of them."""
        steps = self._train(plan, "measured", list(self.readings.values())[:LEAST])
        shutil.rmtree(self.work / "measured", ignore_errors=True)
        step_s = (steps.starts[-1] - steps.starts[1]) / (len(steps.starts) - 2)
        share = self.minutes * 60 * TRAINING / (len(plan.left_out) + LONGER)
        return {"steps": int(min(max(share / step_s, FEWEST_STEPS), MOST_STEPS)), "step_s": step_s}

    def _checked(self, plan: Plan, number: int) -> Gate:
        """Clicks needed on a part of the cases, by the model in use and by one trained on the other cases."""
        path = self.work / f"part-{number}.json"
        if path.is_file():
            return read_record(path, Gate)
        left_out = plan.left_out[number]
        others = [reading for case, reading in self.readings.items() if case not in left_out]
        self.log(f"part {number + 1} of {len(plan.left_out)}: training on {len(others)} scans")
        weights = self._trained(plan, f"part-{number}", others)
        pause = Considerate(self.project, self.path, 0)
        known = self._known()
        new, old = SessionSystem(load_model(weights)), None
        before, after = {}, {}
        for case in left_out:
            reading = self.readings[case]
            scan, mask = read_case(self.project, reading)
            inside = mask.array > 0
            first = first_click(scan, inside, reading)
            after[case] = clicks_needed(new, scan, inside, first, pause.wait)[0]
            if case in known:
                before[case] = known[case]
            else:
                old = old or SessionSystem(load_model(self.project.model_source()))
                before[case] = clicks_needed(old, scan, inside, first, pause.wait)[0]
        gate = Gate(dice=WANTED_DICE, limit=MAX_CLICKS, before=before, after=after)
        write_record(path, gate)
        shutil.rmtree(self.work / f"part-{number}", ignore_errors=True)
        self.log(f"part {number + 1} of {len(plan.left_out)}: {gate}")
        return gate

    def _known(self) -> dict[str, int]:
        """Clicks needed by the model in use on its own training cases, counted while they were left out."""
        for model in self.project.models():
            if model.name == self.project.in_use:
                return {case: n for case, n in model.gate.after.items() if case in model.cases}
        return {}

    def _trained(self, plan: Plan, name: str, readings: Sequence[Reading]) -> Path:
        weights = self.work / name / "model.safetensors"
        if not weights.is_file():
            self._train(plan, name, readings)
        return weights

    def _train(self, plan: Plan, name: str, readings: Sequence[Reading]) -> Considerate:
        use, steps = self.preprocessing, plan.steps * (LONGER if name == "all" else 1)
        recipe: Recipe = recipe_for(self.card, self.source, plan.name, steps, use, self.data is not None)
        stream = load_stream(self.project, readings, recipe, self.data)
        budget_s = LATE * steps * plan.step_s or float("inf")
        stages = [*(f"part-{number}" for number in range(len(plan.left_out))), *["all"] * LONGER]
        known = {"stage": name, "said": self.said, "minutes": round(self._about(plan))}

        def report(done: int, steps: int) -> None:
            fraction = (stages.index(name) + stages.count(name) * done / steps) / len(stages) if name in stages else 0.0
            with atomic_path(self.work / "progress.json") as temporary:
                facts = {"when": now(), **known, "step": done, "steps": steps, "fraction": round(fraction, 4)}
                temporary.write_text(json.dumps(facts), encoding="utf-8")

        considerate = Considerate(self.project, self.path, budget_s, report)
        train(recipe, None, self.work / name, stream=stream, callbacks=[considerate])
        return considerate


def _parts(cases: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The parts of the cases that are left out in turn; `cases` are in the order in which they were finished."""
    if len(cases) > CROSSED:
        return (tuple(cases[-max(CHECKED, len(cases) // 4) :]),)
    return tuple(tuple(cases[n::PARTS]) for n in range(PARTS))

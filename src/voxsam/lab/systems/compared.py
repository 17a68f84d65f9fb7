"""The interface of a compared system: its description, and how it is trained and loaded in a comparison."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from voxsam.atomic import atomic_path
from voxsam.errors import InputError
from voxsam.lab.evaluation.systems import System
from voxsam.lab.training import Curve

Log = Callable[[str], None]
RANDOM_WEIGHTS = "random weights"
EXTRA = "pip install 'voxsam[compare]'"


@dataclass(frozen=True)
class About:
    """The description of a system in `voxsam compare --list` and in the footnotes of tables."""

    title: str  # its name in tables: "nnFormer"
    paper: str  # authors, title or venue, year
    source: str  # address of the original
    licence: str  # of the original code; "none stated" if there is none
    library: str  # what provides it here: "MONAI", "nnunetv2", or "VoxSAM" if implemented here from the description
    differences: str = ""  # known differences from the original, and known faults
    trained: bool = True  # False: it is compared as it is
    install: str = ""  # the commands that install its requirements, if VoxSAM does not depend on them
    note: str = ""  # a note under every table with it: what it is given that others are not


class Budget(BaseModel):
    """The same budget for every system: minutes of processor time (on a GPU: wall-clock time) for each training.

    With several `rate_factors` the learning rate is chosen by one rule: for each factor, a trial at the system's usual
    rate times that factor runs for the fraction `trial` of the minutes; the one with the best validation then continues
    to the end. All trials count towards the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: PositiveFloat
    rate_factors: tuple[PositiveFloat, ...] = Field(default=(0.3, 1.0, 3.0), min_length=1)
    trial: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _something_left(self) -> Budget:
        if len(self.rate_factors) * self.trial > 1:
            raise ValueError(f"{len(self.rate_factors)} trials of {self.trial:g} of the minutes are more than all")
        return self

    @property
    def own_minutes(self) -> float:
        """The minutes of the chosen training, including its trial."""
        return self.minutes * (1 - (len(self.rate_factors) - 1) * self.trial)


class Trained(BaseModel):
    """The record of a training within a budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float  # used, including trials
    learning_rate: float
    tried: tuple[tuple[float, float], ...] = ()  # (learning rate, validation Dice after its trial)
    curve: Curve = ()  # of the chosen training

    @property
    def late_gain(self) -> float | None:
        """How much the best validation Dice rose in the last third of the training; None with too few validations."""
        if not self.curve:
            return None
        border = 2 / 3 * self.curve[-1][0]
        early = [score for minute, score in self.curve if minute <= border]
        late = [score for minute, score in self.curve if minute > border]
        if len(early) < 2 or len(late) < 2:
            return None
        return max(0.0, max(late) - max(early))


def train_within(budget: Budget, usual: float, out: Path, run: Callable[[float, float | None], Curve]) -> Trained:
    """Choose a learning rate and train with it, resuming an interrupted attempt in `out`.

    `run(rate, pause)` starts or continues the training at a rate, up to `pause` minutes or the end of
    `budget.own_minutes`, and returns its curve. Raises InputError if a trial has no validation to be judged by.
    """
    path = out / "rates.json"
    tried: list[tuple[float, float]] = []
    if path.is_file():
        tried = [(float(rate), float(score)) for rate, score in json.loads(path.read_text(encoding="utf-8"))]
    rates = [usual * factor for factor in budget.rate_factors]
    if len(rates) > 1:
        for rate in rates[len(tried) :]:
            curve = run(rate, budget.trial * budget.minutes)
            if not curve:
                raise InputError("learning rates to choose from, and no validation", "validation cases", "add some")
            tried.append((rate, curve[-1][1]))
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(tried), encoding="utf-8")
    rate = max(tried, key=lambda one: one[1])[0] if tried else rates[0]
    curve = run(rate, None)
    others = sum(budget.trial * budget.minutes for other in rates if other != rate)
    return Trained(
        minutes=others + (curve[-1][0] if curve else budget.own_minutes),
        learning_rate=rate,
        tried=tuple(tried),
        curve=curve,
    )


@dataclass(frozen=True)
class Job:
    """One system trained from one seed on one prepared data set.

    By the split of `data`, training and validation cases may be used, test cases are never seen. `recipe` holds keys of
    voxsam.lab.training.recipe.Recipe that the plan gives to all systems (crop, steps, batch, augmentation), overridden
    by those for this one; a system that trains in its own way uses what it can, and lists what it ignores in
    `About.differences`. `options` are the system's own (a network's widths, a server's address). With a `budget` the
    recipe's steps or epochs are ignored.
    """

    data: Path  # a folder of `voxsam prepare`
    out: Path  # the job's own folder; it exists, and its content is from an earlier attempt at the same job
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    budget: Budget | None = None


class ComparedSystem(ABC):
    """One row of a table. It is created for each job, and keeps state between calls only as files in `job.out`.

    `options` has the keys that `Job.options` may have, with a line of help for each.
    """

    name: str  # its name in plans: "nnformer"
    about: About
    options: Mapping[str, str] = {}

    def check(self, job: Job) -> None:
        """Raise InputError if something is wrong with a job, UnsupportedError if a library is missing.

        Called before anything runs: the latter skips the row, the former stops the plan.
        """
        self.check_options(job.options)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError for options that the system does not have."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise InputError(f"the option {unknown[0]} of {self.name}", f"one of: {known}", "change the plan")

    @abstractmethod
    def train(self, job: Job, log: Log) -> Trained | None:
        """Train, or resume an interrupted attempt; afterwards `load` works in any process. May do nothing.

        Returns the record of a training within a budget.
        """

    @abstractmethod
    def load(self, job: Job) -> System:
        """The trained system, ready for evaluation."""

    def begins_with(self, job: Job) -> str:
        """What training starts from, in words; "" for a system that is not trained here."""
        return RANDOM_WEIGHTS if self.about.trained else ""

    def tuned_parameters(self, job: Job) -> int | None:
        """The number of trained parameters; None if unknown (a server's model)."""
        return None

    def tuned_encoder_parameters(self, job: Job) -> int | None:
        """The number of these in the image encoder, as in the paper's Table 2; None where it does not apply."""
        return None


class Untrained(ComparedSystem):
    """A system that is compared as it is."""

    def train(self, job: Job, log: Log) -> None:
        """Do nothing."""

    def tuned_parameters(self, job: Job) -> int | None:
        """Zero: none are trained."""
        return 0


COMPARED: dict[str, Callable[[], ComparedSystem]] = {}
Maker = TypeVar("Maker", bound=Callable[[], ComparedSystem])


def register(name: str) -> Callable[[Maker], Maker]:
    """Register a system under a name: a decorator for a class, or for a function that returns an instance."""

    def keep(maker: Maker) -> Maker:
        assert name not in COMPARED
        COMPARED[name] = maker
        return maker

    return keep

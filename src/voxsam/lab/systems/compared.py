"""What a compared system is: what it says of itself, and how it is trained and opened in a comparison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxsam.errors import InputError
from voxsam.lab.evaluation.systems import System

Log = Callable[[str], None]
EXTRA = "pip install 'voxsam[compare]'"


@dataclass(frozen=True)
class About:
    """What `voxsam compare --list` says of a system, and the footnotes of a table."""

    title: str  # what tables call it: "nnFormer"
    paper: str  # authors, title or venue, year
    source: str  # address of the original
    licence: str  # of the original code; "none stated" where there is none
    library: str  # what provides it here: "MONAI", "nnunetv2", or "VoxSAM" for one written here from the description
    differences: str = ""  # what is known to differ from the original, or to be wrong with it
    trained: bool = True  # False: it is compared as it is
    install: str = ""  # the commands that install what it needs, where VoxSAM itself does not bring it
    note: str = ""  # what stands under every table with it: what it is given that others are not


@dataclass(frozen=True)
class Job:
    """One system trained from one seed on one prepared data set.

    The split of `data` decides: training and validation cases may be used, test cases are never seen. `recipe` are keys
    of voxsam.lab.training.recipe.Recipe that the plan gives to every system alike (crop, steps, batch, augmentation),
    changed by those that it gives this one; a system that trains in its own way takes of them what it can, and says in
    `About.differences` what it leaves out. `options` are the system's own (a network's widths, a server's address).
    """

    data: Path  # a folder of `voxsam prepare`
    out: Path  # the job's own folder; it exists, and what lies there is of an earlier attempt at the same job
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"


class ComparedSystem(ABC):
    """One row of a table. It is made anew for each job, and keeps nothing between its methods but files in `job.out`.

    `options` names the keys that `Job.options` may have, with a line for each.
    """

    name: str  # what plans call it: "nnformer"
    about: About
    options: Mapping[str, str] = {}

    def check(self, job: Job) -> None:
        """Raises InputError for what is wrong with a job, and UnsupportedError for a library that is missing.

        It is called before anything runs; the latter costs the row, the former the plan.
        """
        self.check_options(job.options)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises InputError for options that the system does not have."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise InputError(f"the option {unknown[0]} of {self.name}", f"one of: {known}", "change the plan")

    @abstractmethod
    def train(self, job: Job, log: Log) -> None:
        """Train, or go on with an attempt that was cut off; afterwards `load` works in any process. May do nothing."""

    @abstractmethod
    def load(self, job: Job) -> System:
        """The trained system, ready for evaluation."""

    def tuned_parameters(self, job: Job) -> int | None:
        """How many numbers training changes; None where nobody can know (a server's model)."""
        return None

    def tuned_encoder_parameters(self, job: Job) -> int | None:
        """Of these, those in the image encoder as the paper's Table 2 counts them; None where that has no meaning."""
        return None


COMPARED: dict[str, Callable[[], ComparedSystem]] = {}


def register(name: str) -> Callable[[Callable[[], ComparedSystem]], Callable[[], ComparedSystem]]:
    """Make a system known by its name: a decorator for a class, or for a function that makes one."""

    def keep(maker: Callable[[], ComparedSystem]) -> Callable[[], ComparedSystem]:
        assert name not in COMPARED
        COMPARED[name] = maker
        return maker

    return keep

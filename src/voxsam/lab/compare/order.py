"""The jobs of a comparison: data sets prepared once, and each job as an order and an outcome in its own folder.

JOB/                the name ends in a digest of what the training depends on, so that a changed plan never mixes with
                    another's results, and one that is changed back finds its own again
    log.txt         all output of the job, over all attempts
    training.json   seconds and memory of the training so far
    run/ ...        what the system keeps
    DIGEST/         an evaluation: order.json (a WorkOrder), evaluation.json, masks/, outcome.json or failure.json
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os.path
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from voxsam.atomic import atomic_path
from voxsam.errors import InputError
from voxsam.lab.compare.plan import DataSpec, Phantoms, Plan, RowSpec, Strict, settings
from voxsam.lab.data.cases import Case
from voxsam.lab.data.layouts import choose_cases, find_labelled, write_phantoms
from voxsam.lab.data.parallel import ReportProgress
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.data.store import PreparedData, open_store
from voxsam.lab.evaluation.protocol import EvaluationSettings
from voxsam.lab.systems.common_loop import compared_system
from voxsam.lab.systems.compared import Budget, ComparedSystem, Job, Trained
from voxsam.lab.training.recipe import overridden
from voxsam.phantoms import CLOSE

JobKey = tuple[str, str, int | None, int]  # row, data set, fold, seed: which job of a plan


def prepare_data(spec: DataSpec, fold: int | None, folder: Path, progress: ReportProgress) -> PreparedData:
    """Create or update the store in `folder`/prepared, or for a fold in `folder`/prepared-N.

    Raises what `prepare` raises, and InputError for a data set without test cases.
    """
    if spec.folder is not None:
        raw = Path(spec.folder)
    else:
        phantoms = spec.phantoms or Phantoms()
        shape, spacing = ("x".join(map(str, numbers)) for numbers in (phantoms.shape, phantoms.spacing_mm))
        raw = folder / f"phantoms-{phantoms.count}-{phantoms.seed}-{shape}-{spacing}-{phantoms.brighter_hu}"
        if not (raw / "dataset.json").is_file():  # written last
            shutil.rmtree(raw, ignore_errors=True)
            seeds, grid = range(phantoms.seed, phantoms.seed + phantoms.count), (phantoms.shape, phantoms.spacing_mm)
            write_phantoms(raw, seeds, grid, CLOSE, progress, phantoms.brighter_hu)
    options = Options(spec.layout, spec.labels, spec.spacing_mm, spec.split_seed)
    if fold is not None:
        options = replace(options, fold=spec.folds[fold], patient=spec.patient)
    name = "prepared" if fold is None else f"prepared-{fold}"
    store = prepare(raw, folder / name, options, progress).store
    if not store.split["test"]:
        given, expected = f"{spec.name}: {len(store.names)} cases, none of them for testing", "two cases or more"
        raise InputError(given, expected, "add cases")
    return store


def cases_to_test(prepared: Path) -> list[Case]:
    """The test cases as source files on their own grids; their `choice` says which labels are tumour."""
    return choose_cases(find_labelled(prepared)[0], open_store(prepared).split["test"])


def example_names(store: PreparedData, count: int) -> list[str]:
    """The names of `count` test cases to draw, evenly spaced from the smallest to the largest tumour."""
    ordered = sorted(store.split["test"], key=lambda name: (store.description.cases[name].volume_ml, name))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [ordered[round(place)] for place in places]


class Record(Strict):
    """A record in a file, written whole or not at all."""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Any:
        """The record in a file, or None if it does not exist or cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None


class WorkOrder(Record):
    """Everything that the process of a job needs to know."""

    row: str  # the row that this evaluation is for
    system: str
    dataset: str  # the data set's name in tables
    prepared: str  # a folder of `voxsam prepare`
    seed: int
    recipe: dict[str, Any]
    options: dict[str, Any]
    evaluation: dict[str, Any]
    examples: tuple[str, ...]  # cases whose masks are kept
    modules: tuple[str, ...]  # that register further systems
    device: str
    training_digest: str
    evaluation_digest: str
    fold: int | None = None
    budget: Budget | None = None

    @property
    def settings(self) -> EvaluationSettings:
        """The evaluation settings; every training seed draws its own clicks."""
        return settings(self.evaluation, {"seed": self.evaluation.get("seed", 0) + self.seed})

    def job(self, folder: Path) -> Job:
        """The job for the compared system."""
        return Job(Path(self.prepared), folder, self.seed, self.recipe, self.options, self.device, self.budget)

    def compared(self) -> ComparedSystem:
        """The system. Raises InputError for an unknown one, or a module that cannot be imported."""
        import_modules(self.modules)
        return compared_system(self.system)


class Training(Record):
    """Time and memory of a training, over all its attempts."""

    seconds: float = 0.0
    peak_gb: float = 0.0
    done: bool = False
    trained: Trained | None = None  # within a budget


class Outcome(Record):
    """The result of a job, besides the evaluation itself."""

    training: Training
    peak_gb: float  # resident memory of the job's process, or of its largest child; on a GPU, of the GPU
    tuned: int | None  # trained parameters
    tuned_encoder: int | None  # of these, in the image encoder, counted as in the paper
    total: int | None  # all parameters of the system
    scan_seconds: float  # for the first mask of a scan, mean over cases
    machine: str
    title: str  # the system's own title
    note: str  # for the readers of tables
    start: str = ""  # what training started from; "": not trained here, or unknown


class Failure(Record):
    """Why there is no outcome."""

    reason: str


def make_order(
    plan: Plan, row: RowSpec, data: DataSpec, fold: int | None, seed: int, store: PreparedData, examples: list[str]
) -> WorkOrder:
    """The order for one row, data set, fold and seed; `store` is the prepared data set."""
    trained = plan.trained(row)
    recipe = overridden(overridden(plan.recipe, data.recipe), trained.recipe)
    content = hashlib.sha256((store.folder / "dataset.json").read_bytes()).hexdigest()
    budget = plan.budget_of(row)
    allowed = [] if budget is None else [budget.model_dump(mode="json")]
    given = [trained.system, seed, recipe, trained.options, content, *_files(recipe, trained.options), *allowed]
    training = digest_of(given)
    evaluation = {**plan.evaluation, **row.evaluation}
    return WorkOrder(
        row=row.row,
        system=row.system,
        dataset=data.shown,
        prepared=str(store.folder.absolute()),
        seed=seed,
        recipe=recipe,
        options=trained.options,
        evaluation=evaluation,
        examples=tuple(examples),
        modules=plan.modules,
        device="auto",
        training_digest=training,
        evaluation_digest=digest_of([training, evaluation, examples, row.row]),
        fold=fold,
        budget=budget,
    )


def import_modules(names: Sequence[str]) -> None:
    """Import the modules of a plan, from the current folder or Python's path."""
    if names and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            remedy = "install it, or run where its file lies"
            raise InputError(f"the module {name} ({error})", "one that can be imported", remedy) from error


def _files(*given: Any) -> Iterator[str]:
    """The SHA-256 of every file named in a recipe or options, such as weights: a changed file makes another job."""
    for value in given:
        if isinstance(value, Mapping):
            yield from _files(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from _files(*value)
        elif isinstance(value, (str, Path)) and os.path.isfile(value):
            with Path(value).open("rb") as file:
                yield hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(what: Any) -> str:
    """The digest, in ten digits, of a value that JSON, or failing that `str`, can represent."""
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]

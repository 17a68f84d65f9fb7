"""The plan of a comparison, read from YAML: systems, data sets, seeds and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from voxsam.errors import InputError, first_fault
from voxsam.lab.data.folds import Fold, check_disjoint, read_folds
from voxsam.lab.evaluation.protocol import EvaluationSettings
from voxsam.lab.systems.compared import Budget
from voxsam.lab.training.recipe import read_keys

_SETTINGS = TypeAdapter(EvaluationSettings)
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of a folder's name


class Strict(BaseModel):
    """A record that cannot be changed and has no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Phantoms(Strict):
    """Generated scans, used if no folder is given for a data set."""

    count: PositiveInt = 12
    seed: NonNegativeInt = 0
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (108, 108, 72)  # voxels (i, j, k)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (2, 2, 3)
    brighter_hu: NonNegativeInt = 0  # added to every tumour, so that it is learned in minutes


class DataSpec(Strict):
    """One data set, and how it is prepared (voxsam.lab.data.prepare.Options)."""

    name: Key
    title: str = ""  # in tables; else its name
    folder: str | None = None  # as downloaded; `--data NAME=FOLDER` replaces it
    phantoms: Phantoms | None = None  # generated if there is no folder
    layout: str | None = None
    labels: tuple[int, ...] | None = None
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | Literal["auto"] | None = None
    split_seed: NonNegativeInt = 0
    folds: tuple[Fold, ...] = ()  # or a file of them (voxsam.lab.data.folds); empty: the split of `split_seed`
    patient: str = "(.*)"  # the patient's part of a case's name; no patient may be in two parts of a fold
    recipe: dict[str, Any] = {}  # keys that differ on this data set: its crop, its clip range

    @field_validator("folds", mode="before")
    @classmethod
    def _from_file(cls, folds: Any) -> Any:
        return read_folds(Path(folds)) if isinstance(folds, str) else folds

    @field_validator("folds")
    @classmethod
    def _disjoint(cls, folds: tuple[Fold, ...]) -> tuple[Fold, ...]:
        check_disjoint(folds)
        return folds

    @property
    def shown(self) -> str:
        """Its name in tables."""
        return self.title or self.name

    @property
    def parts(self) -> tuple[int | None, ...]:
        """The numbers of the folds, or (None,) if there are none."""
        return tuple(range(len(self.folds))) or (None,)


class RowSpec(Strict):
    """One row of the tables. `recipe` and `evaluation` override keys of the plan for this row alone."""

    system: str
    row: Key = ""
    title: str = ""  # in tables; else the system's own title
    trained_as: Key | None = None  # another row whose training this one shares: only its evaluation differs
    recipe: dict[str, Any] = {}
    options: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    seeds: tuple[NonNegativeInt, ...] | None = None  # instead of the plan's
    minutes: PositiveFloat | None = None  # instead of the budget's: the row is marked, and never bold

    @model_validator(mode="before")
    @classmethod
    def _named(cls, fields: Any) -> Any:
        if isinstance(fields, str):
            fields = {"system": fields}
        return {"row": fields.get("system", ""), **fields} if isinstance(fields, dict) else fields


class Plan(Strict):
    """A comparison. Every system gets the same data, recipe keys, budget and evaluation.

    `job_cores` and `job_gb` are the needs of one job: as many run at once as the machine has room for (with GPUs, one
    on each).
    """

    name: Key
    title: str
    reference: str  # the row that the others are tested against (paired Wilcoxon)
    seeds: tuple[NonNegativeInt, ...] = (0,)
    data: tuple[DataSpec, ...] = Field(min_length=1)
    recipe: dict[str, Any] = {}
    budget: Budget | None = None  # of each training, instead of the recipe's steps or epochs
    evaluation: dict[str, Any] = {}
    systems: tuple[RowSpec, ...] = Field(min_length=1)
    modules: tuple[str, ...] = ()  # Python modules that register further systems (voxsam.lab.systems.compared.register)
    examples: NonNegativeInt = 4  # cases of each data set drawn with the masks of all systems
    job_cores: PositiveInt = 2
    job_gb: PositiveFloat = 6
    timeout_minutes: PositiveFloat | None = None  # of one job, after which it counts as failed

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        rows = [row.row for row in self.systems]
        for what, names in (("systems", rows), ("data", [data.name for data in self.data])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {twice[0]} is there twice; give one of them a name of its own")
        if self.reference not in rows:
            raise ValueError(f"reference: {self.reference} is no row; there are {', '.join(rows)}")
        for row in self.systems:
            if row.trained_as is not None:
                other = next((other for other in self.systems if other.row == row.trained_as), None)
                if other is None or other.trained_as is not None or other.system != row.system:
                    raise ValueError(f"trained_as of {row.row}: {row.trained_as} is no row with a {row.system} trained")
                if row.recipe or row.options or row.seeds or row.minutes:
                    what = "recipe, options, seeds and minutes"
                    raise ValueError(f"trained_as of {row.row}: leave out its {what}, {other.row}'s hold")
            if row.minutes is not None and self.budget is None:
                raise ValueError(f"minutes of {row.row}: the plan has no budget that it could differ from")
            settings(self.evaluation, row.evaluation)
        return self

    def row(self, name: str) -> RowSpec:
        """The row with that name."""
        return next(row for row in self.systems if row.row == name)

    def trained(self, row: RowSpec) -> RowSpec:
        """The row whose training a row uses: usually itself."""
        return row if row.trained_as is None else self.row(row.trained_as)

    def seeds_of(self, row: RowSpec) -> tuple[int, ...]:
        """The seeds that a row is trained from."""
        return self.trained(row).seeds or self.seeds

    def budget_of(self, row: RowSpec) -> Budget | None:
        """The budget of a row's training."""
        minutes = self.trained(row).minutes
        if self.budget is None or minutes is None:
            return self.budget
        return self.budget.model_copy(update={"minutes": minutes})

    @property
    def python(self) -> tuple[str, ...]:
        """Foreign Python code that the plan runs: its modules, and the checkouts that rows import."""
        return *self.modules, *(str(row.options["checkout"]) for row in self.systems if "checkout" in row.options)

    def only(self, rows: list[str]) -> Plan:
        """The plan with only these rows and those they depend on. Raises InputError for unknown rows."""
        known = [row.row for row in self.systems]
        missing = [row for row in rows if row not in known]
        if missing:
            raise InputError(f"the row {missing[0]}", f"some of {', '.join(known)}", "change --only")
        kept = {*rows, *(self.trained(self.row(row)).row for row in rows)}
        reference = self.reference if self.reference in kept else next(row for row in known if row in kept)
        systems = tuple(row for row in self.systems if row.row in kept)
        return self.model_copy(update={"systems": systems, "reference": reference})


def settings(*fields: Mapping[str, Any]) -> EvaluationSettings:
    """Merge keys of EvaluationSettings, later ones winning.

    Raises ValueError for an unknown key or an invalid value.
    """
    keys: dict[str, Any] = {}
    for more in fields:
        keys |= more
    known = [field.name for field in dataclasses.fields(EvaluationSettings)]
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise ValueError(f"evaluation: {unknown[0]} is no key; there are {', '.join(known)}")
    try:
        return _SETTINGS.validate_python(keys)
    except ValidationError as error:
        raise ValueError(f"evaluation: {first_fault(error)}") from error
    except InputError as error:
        raise ValueError(f"evaluation: {error}") from error


def read_plan(path: Path, folders: Mapping[str, str] | None = None, data_needed: bool = True) -> Plan:
    """Read a plan from YAML; `folders` overrides the folders of its data sets, by name.

    Without `data_needed` a data set may have none. Raises FileError or InputError with the first fault in one line.
    """
    fields = read_keys(path, "plan")
    try:
        plan = Plan.model_validate({"name": path.stem, **fields})
    except ValidationError as error:
        given = f"{path}: {first_fault(error, 'the plan')}"
        raise InputError(given, "the keys of voxsam.lab.compare.plan.Plan", "correct it") from error
    names, folders = [data.name for data in plan.data], folders or {}
    unknown = [name for name in folders if name not in names]
    if unknown:
        raise InputError(f"--data {unknown[0]}=...", f"one of the plan's {', '.join(names)}", "change the name")
    data = tuple(one.model_copy(update={"folder": folders.get(one.name, one.folder)}) for one in plan.data)
    for one in data:
        if data_needed and one.folder is None and one.phantoms is None:
            remedy = f"add --data {one.name}=FOLDER"
            raise InputError(f"no folder for the data set {one.name}", "the folder that it was unpacked to", remedy)
    return plan.model_copy(update={"data": data})

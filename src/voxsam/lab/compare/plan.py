"""The plan of a comparison, read from YAML: which systems, on which data, from which seeds, scored how."""

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
    model_validator,
)

from voxsam.errors import InputError
from voxsam.lab.evaluation.protocol import EvaluationSettings
from voxsam.lab.training.recipe import read_keys

_SETTINGS = TypeAdapter(EvaluationSettings)
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of a folder's name


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phantoms(_Strict):
    """Generated scans, where no folder is given for a data set."""

    count: PositiveInt = 12
    seed: NonNegativeInt = 0
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (108, 108, 72)  # voxels (i, j, k)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (2, 2, 3)
    brighter_hu: NonNegativeInt = 0  # so much brighter than a real sarcoma: learned in minutes


class DataSpec(_Strict):
    """One data set, and how it is prepared (voxsam.lab.data.prepare.Options)."""

    name: Key
    title: str = ""  # what tables call it; else its name
    folder: str | None = None  # as downloaded; `--data NAME=FOLDER` replaces it
    phantoms: Phantoms | None = None  # generated where there is no folder
    layout: str | None = None
    labels: tuple[int, ...] | None = None
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | Literal["auto"] | None = None
    split_seed: NonNegativeInt = 0
    recipe: dict[str, Any] = {}  # keys that are otherwise on this data set: its crop, its clip range

    @property
    def shown(self) -> str:
        """What tables call it."""
        return self.title or self.name


class RowSpec(_Strict):
    """One row of the tables. `recipe` and `evaluation` change keys of the plan's own for this row alone."""

    system: str
    row: Key = ""
    title: str = ""  # what tables call it; else what the system calls itself
    trained_as: Key | None = None  # another row, whose training serves this one too: it is only evaluated otherwise
    recipe: dict[str, Any] = {}
    options: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _named(cls, fields: Any) -> Any:
        if isinstance(fields, str):
            fields = {"system": fields}
        return {"row": fields.get("system", ""), **fields} if isinstance(fields, dict) else fields


class Plan(_Strict):
    """A comparison. Every system gets the same data, the same keys of a recipe and the same evaluation.

    `job_cores` and `job_gb` are what one job wants: so many run at once as the machine has of both (with GPUs, one on
    each).
    """

    name: Key
    title: str
    reference: str  # the row that the others are tested against (paired Wilcoxon)
    seeds: tuple[NonNegativeInt, ...] = (0,)
    data: tuple[DataSpec, ...] = Field(min_length=1)
    recipe: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    systems: tuple[RowSpec, ...] = Field(min_length=1)
    modules: tuple[str, ...] = ()  # Python modules that register further systems (voxsam.lab.systems.compared.register)
    examples: NonNegativeInt = 4  # cases of each data set that are drawn with the masks of all systems
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
                if row.recipe or row.options:
                    raise ValueError(f"trained_as of {row.row}: leave out its recipe and options, {other.row}'s hold")
            settings(self.evaluation, row.evaluation)
        return self

    def row(self, name: str) -> RowSpec:
        """The row of that name."""
        return next(row for row in self.systems if row.row == name)

    def trained(self, row: RowSpec) -> RowSpec:
        """The row whose training serves a row: most often itself."""
        return row if row.trained_as is None else self.row(row.trained_as)

    def only(self, rows: list[str]) -> Plan:
        """The plan with these rows, and those that they need, alone. Raises InputError for rows that are not there."""
        known = [row.row for row in self.systems]
        missing = [row for row in rows if row not in known]
        if missing:
            raise InputError(f"the row {missing[0]}", f"some of {', '.join(known)}", "change --only")
        kept = {*rows, *(self.trained(self.row(row)).row for row in rows)}
        reference = self.reference if self.reference in kept else next(row for row in known if row in kept)
        systems = tuple(row for row in self.systems if row.row in kept)
        return self.model_copy(update={"systems": systems, "reference": reference})


def settings(*fields: Mapping[str, Any]) -> EvaluationSettings:
    """How masks are asked for and scored: the keys of EvaluationSettings, later ones winning.

    Raises ValueError for a key that is not known or makes no sense.
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
        first = error.errors()[0]
        raise ValueError(f"evaluation: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except InputError as error:
        raise ValueError(f"evaluation: {error}") from error


def read_plan(path: Path, folders: Mapping[str, str] | None = None) -> Plan:
    """The plan in a YAML file; `folders` are those of its data sets by name, instead of what it says.

    Raises FileError or InputError with the first fault in one line.
    """
    fields = read_keys(path, "plan")
    try:
        plan = Plan.model_validate({"name": path.stem, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the plan"
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{path}: {where}: {what}", "the keys of voxsam.lab.compare.plan.Plan", "correct it"
        ) from error
    return _with_folders(plan, folders or {})


def _with_folders(plan: Plan, folders: Mapping[str, str]) -> Plan:
    names = [data.name for data in plan.data]
    unknown = [name for name in folders if name not in names]
    if unknown:
        raise InputError(f"--data {unknown[0]}=...", f"one of the plan's {', '.join(names)}", "change the name")
    data = tuple(
        one.model_copy(update={"folder": folders[one.name]}) if one.name in folders else one for one in plan.data
    )
    for one in data:
        if one.folder is None and one.phantoms is None:
            remedy = f"add --data {one.name}=FOLDER"
            raise InputError(f"no folder for the data set {one.name}", "the folder that it was unpacked to", remedy)
    return plan.model_copy(update={"data": data})

"""What the JSON files of a project hold, and how they are written: whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from voxsam.atomic import atomic_path
from voxsam.errors import FileError, InputError, first_fault
from voxsam.prompts import Point

FORMAT = 1
READER = "reader"  # the reader's name if none is given
CHANCE = 0.2  # an offer has a lower probability; a model that is only as good does no harm, a better one refused does
LEAST = 5  # fewest cases to learn from: with four, all of them better, the probability is still 1/16
NAME = re.compile(r"\w[\w .+-]*")
MAX_NAME_BYTES = 200  # file systems allow 255, including what is added to a name
State = Literal["to do", "in work", "skipped", "done"]


def now() -> str:
    """The current time as stored in records: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_name(text: str) -> bool:
    return bool(NAME.fullmatch(text)) and not text.endswith((" ", ".")) and len(text.encode()) <= MAX_NAME_BYTES


def _as_name(text: str) -> str:
    if not _is_name(text):  # a project may come from somebody else: no name leads out of its folder
        raise ValueError(f"{text[:40]!r} is no name")
    return text


Name = Annotated[str, AfterValidator(_as_name)]


class Record(BaseModel):
    """A JSON file or part of one, immutable in memory. Keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


R = TypeVar("R", bound=Record)


class Settings(Record):
    """The contents of project.json."""

    format: Literal["voxsam project"] = "voxsam project"
    format_version: int = FORMAT
    created: str
    start: str  # the model that every training begins with
    used: tuple[str, ...] = ()  # models that were put into use, in order; the last one is in use
    learn_every: int = 0  # after how many more finished scans a server begins to learn; 0: only when told to
    first_look: str = ""  # the automatic model that orders the work (voxsam.project.look); "": as listed


class Scan(Record):
    """One scan of scans.json. `state` is what a reader set; whether it is done follows from its readings."""

    name: Name
    path: str  # of the file, or of the folder of a DICOM series; relative to the project where it lies inside
    content: str  # a digest of its voxels (voxsam.seen)
    modality: str = ""
    state: Literal["to do", "in work", "skipped"] = "to do"
    reader: Name | Literal[""] = ""  # who works on it
    since: str = ""
    sure: float | None = None  # 0 to 1, how sure the model of the first look was of it; None: it has not looked


class Scans(Record):
    """The contents of scans.json."""

    scans: tuple[Scan, ...] = ()


class Click(Record):
    """A click in RAS+ mm."""

    world_mm: tuple[float, float, float]
    positive: bool = True

    @classmethod
    def of(cls, point: Point) -> Click:
        """The click of a prompt, rounded to a thousandth of a mm."""
        x, y, z = (round(float(mm), 3) for mm in point.world_mm)
        return cls(world_mm=(x, y, z), positive=point.positive)

    @property
    def point(self) -> Point:
        """The click as a prompt."""
        return Point(self.world_mm, self.positive)


class Reading(Record):
    """clicks/READER/CASE.json: one reader's work on one scan; the mask is masks/READER/CASE.nii.gz."""

    case: Name
    reader: Name
    finished: str
    clicks: tuple[Click, ...] = ()
    model: str = ""  # that the clicks went to
    seconds: float | None = None  # that the work took
    volume_ml: float = 0.0
    content: str = ""  # digest of the scan that was read
    source: Literal["clicks", "import"] = "clicks"


class Gate(Record):
    """The clicks needed to reach the same mask, by case, each with a model that was not trained on it."""

    dice: float  # to the stored mask, at which clicking ends
    limit: int  # on clicks; counted where the Dice was not reached
    before: dict[str, int]  # of the model in use
    after: dict[str, int]

    @property
    def means(self) -> tuple[float, float]:
        """The mean number of clicks before and after; 0 if every case was forgotten."""
        before, after = (sum(clicks.values()) / max(1, len(clicks)) for clicks in (self.before, self.after))
        return before, after

    @property
    def saved(self) -> tuple[int, ...]:
        """The number of clicks saved on each scan."""
        return tuple(before - self.after[case] for case, before in self.before.items())

    @property
    def chance(self) -> float:
        """The probability of saving at least as many clicks in total if the two models are equally good.

        Each scan's difference is then equally likely to have either sign: Fisher's randomisation test of paired
        differences, one-sided, over all assignments of signs.
        """
        ways = np.ones(1)  # probabilities of the sums from -reach to reach
        for size in map(abs, self.saved):
            ways = (np.pad(ways, (0, 2 * size)) + np.pad(ways, (2 * size, 0))) / 2
        return float(ways[len(ways) // 2 + sum(self.saved) :].sum())

    @property
    def is_better(self) -> bool:
        """Whether fewer clicks were needed, by more than chance explains."""
        return self.chance < CHANCE

    def __str__(self) -> str:
        before, after = self.means
        scans = f"{len(self.before)} scan{'s' * (len(self.before) != 1)}"
        fewer = sum(clicks > 0 for clicks in self.saved)
        return (
            f"{before:.1f} -> {after:.1f} clicks to the same mask on {scans}, fewer on {fewer} (p = {self.chance:.2g})"
        )


class LearnedModel(Record):
    """models/NAME.json, beside the model file NAME.safetensors."""

    name: Name
    made: str
    start: str
    cases: dict[str, str]  # that it was trained on, with their digests
    seen: int = 0  # how many cases were done when it began, including those it was checked on
    steps: int
    minutes: float
    gate: Gate
    state: Literal["offered", "refused", "retired"]
    reason: str = ""  # why it was retired

    def without(self, case: str) -> LearnedModel:
        """The model as it is once a case is forgotten: retired if it was trained on it."""
        kept = {k: {c: n for c, n in getattr(self.gate, k).items() if c != case} for k in ("before", "after")}
        cases = {name: digest for name, digest in self.cases.items() if name != case}
        changes: dict[str, Any] = {"gate": self.gate.model_copy(update=kept), "cases": cases}
        if case in self.cases and self.state != "retired":
            changes |= {"state": "retired", "reason": "trained on a case that was forgotten"}
        return self.model_copy(update=changes)


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record from a file. Raises FileError for a file that is missing, or of another kind."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else error.strerror
        remedy = "give a folder of `voxsam project new`, or restore the file"
        raise FileError(f"{path} could not be read ({reason})", "a file of a VoxSAM project", remedy) from error


def write_record(path: Path, record: Record) -> None:
    """Write a record, replacing the file. Raises FileError if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line cut off by a crash is skipped."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found.append(dict(from_json(line)))
        except (ValueError, TypeError):
            continue
    return found


def append_line(path: Path, facts: Mapping[str, Any]) -> None:
    """Append an object to a file of JSON lines; text cut off by a crash stays on a line of its own."""
    with open(path, "ab+") as file:
        cut = file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
        file.write(b"\n" * cut + json.dumps(facts).encode() + b"\n")


def check_name(what: str, name: str) -> str:
    """The name, if it is allowed as a file name. Raises InputError."""
    if not _is_name(name):
        shown = repr(name) if len(name) <= MAX_NAME_BYTES else f"{name[:40]!r}... of {len(name)} characters"
        expected = f"up to {MAX_NAME_BYTES} bytes of letters, digits, blanks and . _ + -"
        raise InputError(f"the {what} {shown}", expected, f"choose another {what}")
    return name

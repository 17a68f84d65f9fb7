"""The status of a project: what is done, clicks per scan over time, minutes saved, what was learned and is offered."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from voxsam.project.project import Project
from voxsam.project.records import LearnedModel, Reading, State

RECENT = 5  # scans


@dataclass(frozen=True)
class ScanRow:
    """A row of the work list; unknown values are None."""

    name: str
    state: State
    reader: Annotated[str, Field(description="Who works on it, or has done it last.")]
    since: Annotated[str, Field(description="When the state began.")]
    readers: Annotated[tuple[str, ...], Field(description="Who have done it, latest last.")]
    clicks: int | None
    volume_ml: float | None


@dataclass(frozen=True)
class Summary:
    """The status of a project; `curve` has the clicks of each clicked scan, in the order of finishing."""

    rows: tuple[ScanRow, ...]
    in_use: str
    offered: LearnedModel | None  # the newest learned model, if it is better and not in use
    curve: tuple[tuple[str, int], ...]
    minutes_saved: float | None  # None if too few times are known
    learning: dict[str, Any] | None  # progress, if a model is learning
    new: int  # scans done since a model last learned
    order: str  # of the work, in words

    @property
    def counts(self) -> Counter[State]:
        """How many scans are in each state."""
        return Counter(row.state for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The summary in JSON's types only."""
        offered = None if self.offered is None else self.offered.model_dump(mode="json")
        return {**asdict(self), "offered": offered, "counts": dict(self.counts)}


def summarise(project: Project) -> Summary:
    """The summary of a project as it is now."""
    rows, done = [], project.done_cases()
    for scan in project.scans:
        reading = done.get(scan.name)
        if reading is None:
            rows.append(ScanRow(scan.name, scan.state, scan.reader, scan.since, (), None, None))
        else:
            clicks = len(reading.clicks) if reading.source == "clicks" else None
            readers = tuple(project.readings(scan.name))
            made = (reading.reader, reading.finished, readers)
            rows.append(ScanRow(scan.name, "done", *made, clicks, reading.volume_ml))
    clicked = [reading for reading in done.values() if reading.source == "clicks"]
    curve = tuple((reading.case, len(reading.clicks)) for reading in clicked)
    start, models = project.settings.start, project.models()
    return Summary(
        rows=tuple(rows),
        in_use=project.in_use,
        offered=offered(project),
        curve=curve,
        minutes_saved=minutes_saved(clicked, start),
        learning=project.learning_now(),
        new=max(0, len(done) - (models[-1].seen if models else 0)),
        order=project.order,
    )


def offered(project: Project) -> LearnedModel | None:
    """The newest learned model, if it is offered and has never been put into use."""
    models = [model for model in project.models() if model.state != "retired"]
    taken = {line.get("model") for line in project.history() if line.get("what") == "use"}
    return models[-1] if models and models[-1].state == "offered" and models[-1].name not in taken else None


def minutes_saved(clicked: list[Reading], start: str) -> float | None:
    """The mean time per scan with the start model minus that with learned ones, times the number of the latter."""
    timed = [(reading.model == start, reading.seconds) for reading in clicked if reading.seconds is not None]
    before, after = ([seconds for is_start, seconds in timed if is_start == which] for which in (True, False))
    if not before or not after:
        return None
    return float((np.mean(before) - np.mean(after)) * len(after) / 60)

"""The run of a cohort: what is done already is kept, the rest is made, each scan's row is written as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxsam.cohort.ledger import Ledger, key_of, read_table
from voxsam.cohort.listing import Job
from voxsam.cohort.worker import Row, Settings, Worker, mask_path
from voxsam.errors import PromptError, UnsupportedError
from voxsam.io.atomic import make_folder
from voxsam.model.promptable import Promptable

Progress = Callable[[str, float], None]
Runner = Callable[[Sequence[Job], Path], Iterable[Row]]  # makes the masks, and a row for each


@dataclass(frozen=True)
class Outcome:
    """What a run did: a row for each scan in the order given, and which were made now; `made` counts failures, too."""

    rows: tuple[Row, ...]
    made: int

    @property
    def failed(self) -> tuple[Row, ...]:
        """The scans without a mask."""
        return tuple(row for row in self.rows if row.status == "failed")


def run_cohort(
    jobs: Sequence[Job],
    output: Path,
    settings: Settings,
    progress: Progress = lambda stage, share: None,
    *,
    again: bool = False,
    runner: Runner | None = None,
) -> Outcome:
    """Segment every scan into the folder `output`; what it holds already is not made again, unless `again`.

    A scan that fails costs its own row. `runner` makes the masks in another way than this process's Worker (see
    `on_ray`). Raises InputError for a model or settings that cannot serve any scan, before the first one.
    """
    worker = Worker(settings)
    _check_clicks(jobs, worker.model)
    make_folder(output)
    keys = {job.name: key_of(job, settings, worker.fingerprint) for job in jobs}
    before = {} if again else read_table(output)
    rows = {
        job.name: before[job.name]
        for job in jobs
        if job.name in before
        and (before[job.name].status, before[job.name].key) == ("done", keys[job.name])
        and mask_path(output, job, settings).is_file()
    }
    left = [job for job in jobs if job.name not in rows]
    with Ledger(output, rows.values()) as ledger:
        for count, row in enumerate(_made(left, output, worker, runner), start=1):
            row = replace(row, key=keys[row.name])
            ledger.add(row)
            rows[row.name] = row
            progress(f"{len(rows)} of {len(jobs)}: {row.name}", count / len(left))
    return Outcome(tuple(rows[job.name] for job in jobs), len(left))


def _made(jobs: Sequence[Job], output: Path, worker: Worker, runner: Runner | None) -> Iterator[Row]:
    yield from (runner or worker.run)(jobs, output)


def _check_clicks(jobs: Sequence[Job], model: Promptable) -> None:
    without = next((job for job in jobs if not job.clicks), None)
    if without is not None and not model.card.automatic:
        raise PromptError(f"{without.name} without a click", "a click for each scan", "add one to the table")
    negative = next((job for job in jobs if not all(click.positive for click in job.clicks)), None)
    if negative is not None and not model.config.polarity:
        raise UnsupportedError(
            f"a negative click ({negative.name}) for the model {model.card.name}",
            "positive clicks: this model was trained without polarity",
            "leave it out, or use a model that lists negative clicks in `voxsam info`",
        )

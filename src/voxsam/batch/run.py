"""The run of a cohort: what is done already is kept, the rest is made, each scan's row is written as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from voxsam.atomic import make_folder, refuse_inputs
from voxsam.batch.ledger import Ledger, key_of, read_table
from voxsam.batch.listing import Job
from voxsam.batch.worker import Row, Settings, Worker, mask_path
from voxsam.errors import PromptError, UnsupportedError
from voxsam.kernels.device import require_device_name
from voxsam.kernels.linear import Precision, precisions
from voxsam.network.promptable import Promptable
from voxsam.weights.registry import find_model

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
    progress: Progress = lambda stage, fraction: None,
    *,
    again: bool = False,
    runner: Runner | None = None,
) -> Outcome:
    """Segment every scan into the folder `output`; what it holds already is not made again, unless `again`.

    A scan that fails costs its own row; rows of scans that are not asked for stay in the table. `runner` makes the
    masks in another way than this process's Worker (see `on_ray`). Raises InputError for a model or settings that
    cannot serve any scan, and FileError if a mask would replace a scan or the model: before the first one.
    """
    inputs = [find_model(settings.model), *(path for job in jobs for path in job.images)]
    refuse_inputs((mask_path(output, job, settings) for job in jobs), inputs, "choose another folder with -o")
    worker = Worker(settings if runner is None else _only_to_check(settings))
    _check_clicks(jobs, worker.model)
    fingerprint = worker.fingerprint  # once: it hashes the whole model
    keys = {job.name: key_of(job, settings, fingerprint) for job in jobs}
    made: Runner = runner or worker.run
    del worker  # where others make the masks, its model is not needed any more
    make_folder(output)
    before = read_table(output)
    others = [row for name, row in before.items() if name not in keys]
    rows = {} if again else _kept(jobs, before, keys, output, settings)
    left = [job for job in jobs if job.name not in rows]
    with Ledger(output, [*others, *rows.values()]) as ledger:
        for count, row in enumerate(made(left, output), start=1):
            row = replace(row, key=keys[row.name])
            ledger.add(row)
            rows[row.name] = row
            progress(f"{len(rows)} of {len(jobs)}: {row.name}", count / len(left))
    return Outcome(tuple(rows[job.name] for job in jobs), len(left))


def _kept(
    jobs: Sequence[Job], before: Mapping[str, Row], keys: Mapping[str, str], output: Path, settings: Settings
) -> dict[str, Row]:
    """The rows of masks that are there, and would be made from the same again."""
    return {
        job.name: before[job.name]
        for job in jobs
        if job.name in before
        and (before[job.name].status, before[job.name].key) == ("done", keys[job.name])
        and mask_path(output, job, settings).is_file()
    }


def _only_to_check(settings: Settings) -> Settings:
    """For a process that checks and hashes the model, and leaves device and precision to the workers' machines."""
    require_device_name(settings.device)
    elsewhere = set(get_args(Precision)) - set(precisions(torch.device("cpu")))
    precision = "float32" if settings.precision in elsewhere else settings.precision
    return replace(settings, device="cpu", precision=precision)


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

"""Run a cohort: keep what is already done, make the rest, and write each scan's row as soon as it is finished.

On a Ray cluster, Ray distributes the scans, and each worker overlaps the steps of its own. Without a cluster
(RAY_ADDRESS, `ray start`), Ray uses the local machine only, where the plain run is as fast.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TextIO, get_args

import torch

from voxsam.atomic import atomic_path, make_folder, refuse_inputs, remove_leftovers
from voxsam.batch.listing import ScanTask
from voxsam.batch.worker import BatchOptions, ScanResult, Worker, mask_path
from voxsam.errors import FileError, PromptError, UnsupportedError
from voxsam.interactive.predictor import refuse_polarity
from voxsam.kernels import require_device_name
from voxsam.kernels.linear import Precision, precisions
from voxsam.network.promptable import Promptable
from voxsam.weights.registry import MODELS, find_model

TABLE = "cohort.csv"
COLUMNS = [field.name for field in fields(ScanResult)]
NEWER = {"class_name"}  # columns that tables of earlier releases lack
NUMBERS = ("volume_ml", "diameter_mm", "reading_s", "segmenting_s", "writing_s")
KEY_DIGITS = 16


class Ledger:
    """The table in the folder `output`, as a context manager. It starts with the rows `kept` and no others.

    A line is added as soon as a scan is finished. A line cut off by a crash is ignored.
    """

    def __init__(self, output: Path, kept: Iterable[ScanResult]) -> None:
        self.path = output / TABLE
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(asdict(row) for row in kept)

    def __enter__(self) -> Ledger:
        self._file: TextIO = open(self.path, "a", newline="", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, row: ScanResult) -> None:
        """Write a row and flush it."""
        try:
            csv.DictWriter(self._file, COLUMNS).writerow(asdict(row))
            self._file.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileError(f"{self.path} ({reason})", "a disk with space", "make room, then run it again") from error


def read_table(output: Path) -> dict[str, ScanResult]:
    """The rows of the folder's table, by name; the last one if a name is repeated.

    Raises FileError for a file that is not such a table: it may be a list of scans, and must not be replaced.
    """
    try:
        with open(output / TABLE, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) - NEWER <= set(reader.fieldnames or COLUMNS):
                raise FileError(f"{output / TABLE} with other columns", "the table of a cohort", "move it away")
            return {row.name: row for cells in reader if (row := _row(cells))}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{output / TABLE} ({error})", "the table of a cohort", "move it away") from error


def _row(cells: dict[str, str]) -> ScanResult | None:
    if not cells["key"]:  # the last column: the line is incomplete
        return None
    try:
        numbers = {name: float(cells[name]) if cells[name] else None for name in NUMBERS}
    except ValueError:  # saved by a spreadsheet, with its own number format
        return None
    return ScanResult(**{**{name: cells.get(name, "") for name in COLUMNS}, **numbers})  # type: ignore[arg-type]


def key_of(job: ScanTask, settings: BatchOptions, model: str) -> str:
    """A short hash of all that a mask is made from: files (size, modification time), clicks, model, settings, code."""
    made_from: dict[str, Any] = {
        "voxsam": code_sha256(),
        "model": [model, settings.precision],
        "how": [settings.automatic, settings.follow, settings.overlap, settings.suffix],
        "images": [_stamp(path) for path in job.images],
        "clicks": [asdict(click) for click in job.clicks],
    }
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:KEY_DIGITS]


@cache
def code_sha256() -> str:
    """A hash of the source code that a mask depends on: all but the laboratory, the server and the command line."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] not in ("cli", "lab", "server"):
            digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _stamp(path: Path) -> list[Any]:
    """A value that changes with a file, or with any file of a folder; a missing path has one too."""
    try:
        found = [path, *path.rglob("*")] if path.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in sorted(found)]
    except OSError:
        return [str(path)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


ReportProgress = Callable[[str, float], None]
Runner = Callable[[Sequence[ScanTask], Path], Iterable[ScanResult]]  # makes the masks, and a row for each


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: a row for each scan in the order given, and how many it made, failures included."""

    rows: tuple[ScanResult, ...]
    made: int

    @property
    def failed(self) -> tuple[ScanResult, ...]:
        """The scans without a mask."""
        return tuple(row for row in self.rows if row.status == "failed")


def run_cohort(
    jobs: Sequence[ScanTask],
    output: Path,
    settings: BatchOptions,
    progress: ReportProgress = lambda stage, fraction: None,
    *,
    again: bool = False,
    runner: Runner | None = None,
) -> Outcome:
    """Segment every scan into the folder `output`; masks that are already there are not made again, unless `again`.

    A scan that fails affects only its own row; rows of scans not in `jobs` stay in the table. `runner` makes the masks
    in another way than this process's Worker (see `ray_runner`). Raises, before the first scan, InputError for a model
    or settings that suit no scan, and FileError if a mask would replace a scan or the model.
    """
    inputs = [find_model(settings.model), *(path for job in jobs for path in job.images)]
    refuse_inputs((mask_path(output, job, settings) for job in jobs), inputs, "choose another folder with -o")
    worker = Worker(settings if runner is None else _only_to_check(settings))
    _check_clicks(jobs, worker.model)
    fingerprint = worker.fingerprint  # once: it hashes the whole model
    keys = {job.name: key_of(job, settings, fingerprint) for job in jobs}
    made: Runner = runner or worker.run
    del worker  # if a runner makes the masks, its model is no longer needed
    make_folder(output)
    for folder in {output, *(mask_path(output, job, settings).parent for job in jobs)}:
        remove_leftovers(folder)
    before = read_table(output)
    others = [row for name, row in before.items() if name not in keys]
    rows = {
        job.name: row  # of a mask that exists and would be made from the same inputs again
        for job in jobs
        if not again and (row := before.get(job.name)) and (row.status, row.key) == ("done", keys[job.name])
        if mask_path(output, job, settings).is_file()
    }
    left = [job for job in jobs if job.name not in rows]
    with Ledger(output, [*others, *rows.values()]) as ledger:
        for count, row in enumerate(made(left, output), start=1):
            row = replace(row, key=keys[row.name])
            ledger.add(row)
            rows[row.name] = row
            progress(f"{len(rows)} of {len(jobs)}: {row.name}", count / len(left))
    return Outcome(tuple(rows[job.name] for job in jobs), len(left))


def _only_to_check(settings: BatchOptions) -> BatchOptions:
    """Settings to check and hash the model with, leaving device and precision to the workers' machines."""
    require_device_name(settings.device)
    elsewhere = set(get_args(Precision)) - set(precisions(torch.device("cpu")))
    precision = "float32" if settings.precision in elsewhere else settings.precision
    return replace(settings, device="cpu", precision=precision)


def _check_clicks(jobs: Sequence[ScanTask], model: Promptable) -> None:
    without = next((job for job in jobs if not job.clicks), None)
    if without is not None and not model.card.automatic:
        raise PromptError(f"{without.name} without a click", "a click for each scan", "add one to the table")
    for job in jobs:
        refuse_polarity(model, (click.positive for click in job.clicks), f" ({job.name})")


SCANS = 8  # per batch: enough to overlap their steps, few enough to share out the last ones evenly


def ray_runner(settings: BatchOptions) -> Runner:
    """A runner for `run_cohort`; scans and output must be in folders that every machine sees under the same path.

    Raises UnsupportedError if Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports about hospitals' machines
    try:
        import ray.data  # noqa: F401  # type: ignore[import-not-found]
    except ImportError as error:
        given, remedy = "--ray", "pip install 'voxsam[ray]', or leave it out"
        raise UnsupportedError(given, "the package ray, which is not installed", remedy) from error
    if settings.model not in MODELS:  # a name means the same everywhere, a path has to be made absolute
        settings = replace(settings, model=str(find_model(settings.model).absolute()))
    return lambda jobs, output: _rows_by_ray(jobs, output, settings)


def _rows_by_ray(jobs: Sequence[ScanTask], output: Path, settings: BatchOptions) -> Iterator[ScanResult]:
    """The rows in the order in which they become ready."""
    import ray  # type: ignore[import-not-found]
    import ray.data  # type: ignore[import-not-found]

    if not jobs:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    absolute = [replace(job, images=tuple(path.absolute() for path in job.images)) for job in jobs]
    numbers = ray.data.range(len(jobs), override_num_blocks=-(-len(jobs) // SCANS))
    made = numbers.map_batches(
        _RayWorker,
        batch_size=SCANS,
        fn_constructor_args=(settings, absolute, output.absolute()),
        **_resources(ray.nodes(), settings.device),
    )
    try:
        yield from (ScanResult(**json.loads(found["row"])) for found in made.iter_rows())
    finally:
        if started:
            ray.shutdown()


def _resources(nodes: Sequence[dict[str, Any]], device: str) -> dict[str, Any]:
    """The number of workers and what each takes: a GPU, or a machine's processors if there is none."""
    from ray.data import ActorPoolStrategy  # type: ignore[import-not-found]

    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(resources.get("GPU", 0) for resources in alive))
    if gpus and device != "cpu":
        return {"compute": ActorPoolStrategy(min_size=1, max_size=gpus), "num_gpus": 1}
    processors = min(int(resources.get("CPU", 1)) for resources in alive)
    pool = ActorPoolStrategy(min_size=1, max_size=len(alive))
    return {"compute": pool, "num_cpus": max(1, processors - 1)}  # one is left for Ray itself


class _RayWorker:
    """The worker that Ray starts on a machine; it loads the model once."""

    def __init__(self, settings: BatchOptions, jobs: Sequence[ScanTask], output: Path) -> None:
        self.worker, self.jobs, self.output = Worker(settings), jobs, output

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = self.worker.run([self.jobs[number] for number in batch["id"]], self.output)
        return {"row": [json.dumps(asdict(row)) for row in rows]}

"""A cohort on the machines of a Ray cluster: Ray hands the scans out, and each worker overlaps the steps of its own.

Without a cluster (RAY_ADDRESS, `ray start`) Ray works on this machine alone, where the plain run is as fast.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from voxsam.batch.listing import ScanTask
from voxsam.batch.run import Runner
from voxsam.batch.worker import BatchOptions, ScanResult, Worker
from voxsam.errors import UnsupportedError
from voxsam.weights.registry import MODELS, find_model

SCANS = 8  # handed out together: enough to overlap their steps, few enough to share the last ones fairly


def ray_runner(settings: BatchOptions) -> Runner:
    """For `run_cohort`: scans and output must lie in folders that every machine sees under the same path.

    Raises UnsupportedError if Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports about hospitals' machines to anybody
    try:
        import ray.data  # noqa: F401  # type: ignore[import-not-found]
    except ImportError as error:
        given, remedy = "--ray", "pip install 'voxsam[ray]', or leave it out"
        raise UnsupportedError(given, "the package ray, which is not installed", remedy) from error
    everywhere = replace(settings, model=_model_everywhere(settings.model))
    return lambda jobs, output: _rows(jobs, output, everywhere)


def _model_everywhere(model: str) -> str:
    """What names the model in any folder: its name if it has one, otherwise its file's absolute path."""
    return model if model in MODELS else str(find_model(model).absolute())


def _rows(jobs: Sequence[ScanTask], output: Path, settings: BatchOptions) -> Iterator[ScanResult]:
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
        **_shares(ray.nodes(), settings.device),
    )
    try:
        yield from (ScanResult(**json.loads(found["row"])) for found in made.iter_rows())
    finally:
        if started:
            ray.shutdown()


def _shares(nodes: Sequence[dict[str, Any]], device: str) -> dict[str, Any]:
    """How many workers there may be, and what each takes: a GPU, or a machine's processors where there is none."""
    from ray.data import ActorPoolStrategy  # type: ignore[import-not-found]

    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(resources.get("GPU", 0) for resources in alive))
    if gpus and device != "cpu":
        return {"compute": ActorPoolStrategy(min_size=1, max_size=gpus), "num_gpus": 1}
    processors = min(int(resources.get("CPU", 1)) for resources in alive)
    pool = ActorPoolStrategy(min_size=1, max_size=len(alive))
    return {"compute": pool, "num_cpus": max(1, processors - 1)}  # one is left to Ray itself


class _RayWorker:
    """What Ray starts on a machine: it loads the model once."""

    def __init__(self, settings: BatchOptions, jobs: Sequence[ScanTask], output: Path) -> None:
        self.worker, self.jobs, self.output = Worker(settings), jobs, output

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = self.worker.run([self.jobs[number] for number in batch["id"]], self.output)
        return {"row": [json.dumps(asdict(row)) for row in rows]}

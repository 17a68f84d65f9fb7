"""The process of one job: train, evaluate on the test cases, keep the masks of the examples.

    python -m voxsam.lab.compare.work JOB DIGEST

It is a process of its own, so that running out of memory or crashing affects nothing else.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np

from voxsam.atomic import make_folder
from voxsam.errors import InputError
from voxsam.io import write_mask
from voxsam.lab.compare.order import Failure, Outcome, Training, WorkOrder, cases_to_test
from voxsam.lab.compare.runner import end_with_parent
from voxsam.lab.evaluation.protocol import ScoredMask, Watch, evaluate, save_evaluation
from voxsam.lab.systems.compared import ComparedSystem, Job
from voxsam.lab.training import Stopped
from voxsam.volume import Volume


def work(folder: Path, digest: str) -> None:
    """Carry out the order in `folder`/`digest`; a finished training is not repeated."""
    results = folder / digest
    order = WorkOrder.read(results / "order.json")
    job, system = order.job(folder), order.compared()
    system.check(job)
    training = _train(system, job, folder / "training.json")
    cases, settings, trained = cases_to_test(job.data), order.settings, system.load(job)
    if not trained.takes_clicks:
        settings = replace(settings, corrective=0, per_lesion=False)  # only for clicks
    log(f"evaluating {len(cases)} cases")
    watch = _keep_masks(order, results)
    evaluation = evaluate(trained, cases, settings, order.dataset, lambda stage, fraction: log(stage), watch)
    save_evaluation(evaluation, results / "evaluation.json")
    first: dict[str, float] = {}  # seconds to the first mask of each case
    for row in evaluation.rows:
        first.setdefault(row.case, row.seconds)
    outcome = Outcome(
        training=training,
        peak_gb=max(training.peak_gb, peak_gb()),
        tuned=system.tuned_parameters(job),
        tuned_encoder=system.tuned_encoder_parameters(job),
        total=evaluation.parameters,
        scan_seconds=float(np.mean(list(first.values()))),
        machine=machine(),
        title=system.about.title,
        note=system.about.note,
        start=system.begins_with(job),
    )
    outcome.save(results / "outcome.json")


def log(line: str) -> None:
    """Write a line to the log, with the time of day."""
    print(time.strftime("%H:%M:%S"), line, flush=True)  # noqa: T201, a program's log


def peak_gb() -> float:
    """Peak resident memory of this process or its largest child in GB; on a GPU, peak GPU memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9  # type: ignore[attr-defined]
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit / 1e9
    )


def machine() -> str:
    """The GPU's name, or the CPU's with the number of threads of a job."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"


def _train(system: ComparedSystem, job: Job, path: Path) -> Training:
    """Train unless already done, and add up the time of all attempts that could record it."""
    before: Training = Training.read(path) or Training()
    if before.done:
        return before
    start, done, trained = time.perf_counter(), False, None
    try:
        trained = system.train(job, log)
        done = True
    finally:
        seconds = before.seconds + time.perf_counter() - start
        Training(seconds=seconds, peak_gb=max(before.peak_gb, peak_gb()), done=done, trained=trained).save(path)
    return Training.read(path)


def _keep_masks(order: WorkOrder, results: Path) -> Watch:
    """A `watch` that keeps the first mask of each example."""
    make_folder(results / "masks")
    left = set(order.examples)

    def keep(row: ScoredMask, mask: Volume) -> None:
        if row.case in left:
            left.remove(row.case)
            write_mask(mask, results / "masks" / f"{row.case}.nii.gz")

    return keep


def main(arguments: list[str]) -> None:
    """Run the job of the command line. A failure is recorded in one line; the log has the details."""
    folder, digest = Path(arguments[0]), arguments[1]
    failure = folder / digest / "failure.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the time of the attempt is kept
    end_with_parent()
    try:
        work(folder, digest)
    except Stopped as stop:
        raise SystemExit(str(stop)) from None  # on request; the next run resumes
    except InputError as error:
        Failure(reason=str(error)).save(failure)
        raise SystemExit(f"voxsam: {error}") from error
    except Exception as error:
        traceback.print_exc()
        Failure(reason=" ".join(f"{type(error).__name__}: {error}".split())).save(failure)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(sys.argv[1:])

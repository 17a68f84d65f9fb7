"""Run the same work on many items in several processes, and report progress."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

from voxsam.errors import InputError

MAX_WORKERS = 8  # by default: each holds a few copies of a scan in memory

ReportProgress = Callable[[str, float | None], None]  # a stage's name and the fraction done, None if unknown
Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """The number of cores that this process may use, at most MAX_WORKERS."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, MAX_WORKERS)


def each(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, progress: ReportProgress, stage: str
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with its result as it is ready, from `workers` processes; with one worker, from this process.

    Exceptions of `work` propagate; then, and when the caller stops early, items not yet begun are dropped. Raises
    InputError if a worker process is killed.
    """
    if items:
        progress(stage, 0.0)
    if workers == 1 or len(items) < 2:
        for done, item in enumerate(items, start=1):
            yield item, work(item)
            progress(stage, done / len(items))
        return
    pool = ProcessPoolExecutor(min(workers, len(items)), get_context("spawn"), _begin_worker)
    try:
        waiting = {pool.submit(work, item): item for item in items}
        for done, future in enumerate(as_completed(waiting), start=1):
            yield waiting[future], future.result()
            progress(stage, done / len(items))
    except BrokenProcessPool as error:
        given = f"a worker process was ended while {stage}, most likely for its memory"
        raise InputError(given, f"memory for {workers} cases at once", "choose fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent does: if killed, it cannot tell its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

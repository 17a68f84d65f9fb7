"""Runs what a plan lacks: each job in a process of its own, several at once where there is room.

A job that fails, is killed or takes too long costs its own row only; the next run of the plan tries it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import psutil

from voxsam.compare.data import example_names, prepare_data
from voxsam.compare.order import Failure, Outcome, WorkOrder, import_modules, job_folder, make_order
from voxsam.compare.plan import DataSpec, Plan, RowSpec
from voxsam.data.store import Store
from voxsam.errors import InputError, UnsupportedError
from voxsam.io.atomic import make_folder
from voxsam.systems.compared import compared_system

Progress = Callable[[str, float | None], None]
KILL_AFTER_S = 20.0  # that a process has to write a checkpoint when it is asked to stop
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One job of a plan, and where it lies."""

    row: RowSpec
    data: DataSpec
    order: WorkOrder
    folder: Path

    @property
    def results(self) -> Path:
        """Where this evaluation of the job is."""
        return self.folder / self.order.evaluation_digest

    @property
    def outcome(self) -> Outcome | None:
        """What came out, or None as long as nothing did."""
        return Outcome.read(self.results / "outcome.json")

    @property
    def failure(self) -> str:
        """Why nothing came out; "not run" for a job that was never begun."""
        failure = Failure.read(self.results / "failure.json")
        return "not run" if failure is None else failure.reason

    def __str__(self) -> str:
        return f"{self.row.row} on {self.data.name}, seed {self.order.seed}"


@dataclass(frozen=True)
class Room:
    """How many jobs run at once, on so many threads each; with GPUs, which one each gets."""

    jobs: int
    threads: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def for_plan(cls, plan: Plan, jobs: int | None = None) -> Room:
        """What this machine has room for; `jobs` is the user's own word for how many."""
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        gpus = tuple(map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()
        if jobs is None:
            by_memory = int(psutil.virtual_memory().available / 1e9 / plan.job_gb)
            jobs = len(gpus) or max(1, min(cores // plan.job_cores, by_memory))
        return cls(jobs, max(1, cores // jobs), gpus)


def make_tasks(plan: Plan, out: Path, progress: Progress = lambda stage, share: None) -> list[Task]:
    """Every job of a plan, its data sets prepared. Raises InputError for a system, key or option that cannot be."""
    import_modules(plan.modules)
    for row in plan.systems:
        with _naming(plan, row):
            compared_system(row.system).check_options(row.options)
    tasks = []
    for data in plan.data:
        progress(f"data set {data.name}", None)
        folder = out / "data" / data.name
        make_folder(folder)
        store = prepare_data(data, folder, progress)
        tasks += list(_tasks_of(plan, out, data, store))
    return tasks


def _tasks_of(plan: Plan, out: Path, data: DataSpec, store: Store) -> Iterator[Task]:
    examples = example_names(store, plan.examples)
    for seed in plan.seeds:
        for row in plan.systems:
            order = make_order(plan, row, data, seed, store, examples)
            task = Task(row, data, order, job_folder(out, order, plan.trained(row), data))
            with _naming(plan, row):
                order.compared().check(order.job(task.folder))
            yield task


@contextmanager
def _naming(plan: Plan, row: RowSpec) -> Iterator[None]:
    """Say which row is wrong. One whose library is missing is not: its process will say so, and it alone fails."""
    try:
        yield
    except UnsupportedError:
        pass
    except InputError as error:
        raise InputError(f"{plan.name}: {row.row}: {error.given}", error.expected, error.remedy) from error


def run(plan: Plan, tasks: Sequence[Task], room: Room, progress: Progress = lambda stage, share: None) -> None:
    """Run the jobs without an outcome; rows that share a training follow the one that trains.

    Ends every process when it is interrupted; what is done by then is kept.
    """
    waiting = [task for task in tasks if task.outcome is None]
    chains: dict[Path, list[Task]] = {}
    for task in sorted(waiting, key=lambda task: task.row.trained_as is not None):
        chains.setdefault(task.folder, []).append(task)
    devices: SimpleQueue[str] = SimpleQueue()
    for number in range(room.jobs):
        devices.put(room.gpus[number % len(room.gpus)] if room.gpus else "")
    done, lock = len(tasks) - len(waiting), threading.Lock()

    def follow(chain: list[Task]) -> None:
        nonlocal done
        device = devices.get()
        try:
            for task in chain:
                progress(str(task), done / len(tasks))
                _run_one(task, processes, room.threads, device, plan.timeout_minutes)
                with lock:
                    done += 1
                if task.outcome is None:
                    progress(f"{task} failed: {task.failure}", done / len(tasks))
        finally:
            devices.put(device)

    with _ended_together() as processes, ThreadPoolExecutor(room.jobs) as pool:
        futures = [pool.submit(follow, chain) for chain in chains.values()]
        try:
            for future in futures:
                future.result()
        except BaseException:
            processes.close()
            pool.shutdown(cancel_futures=True)
            raise


class _Processes:
    """The processes that run now; once closed, none begins any more."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.lock, self.closed = threading.Lock(), False

    def start(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen | None:
        with self.lock, log.open("ab") as file:
            if self.closed:
                return None
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self.running.add(process)
            return process

    def close(self) -> None:
        with self.lock:
            self.closed = True
            running = list(self.running)
        for process in running:
            stop(process)


@contextmanager
def _ended_together() -> Iterator[_Processes]:
    processes = _Processes()
    try:
        yield processes
    finally:
        processes.close()


def stop(process: subprocess.Popen) -> None:
    """Ask a process to stop, then end it and its children."""
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_AFTER_S)
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, with all its children
    else:
        process.kill()
    process.wait()


def _run_one(task: Task, processes: _Processes, threads: int, device: str, minutes: float | None) -> None:
    make_folder(task.results)
    task.order.save(task.results / "order.json")
    failure = task.results / "failure.json"
    failure.unlink(missing_ok=True)
    environment = {**os.environ, **{name: str(threads) for name in THREADS}, "PYTHONUNBUFFERED": "1"}
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = device
    words = [sys.executable, "-m", "voxsam.compare.work", str(task.folder), task.order.evaluation_digest]
    process = processes.start(words, task.folder / "log.txt", environment)
    if process is None:
        return
    try:
        status = process.wait(None if minutes is None else 60 * minutes)
    except subprocess.TimeoutExpired:
        stop(process)
        Failure(reason=f"stopped after {minutes:g} minutes, the plan's time for a job").save(failure)
        return
    finally:
        processes.running.discard(process)
    if task.outcome is None and not failure.is_file() and not processes.closed:
        Failure(reason=_of_status(status)).save(failure)


def _of_status(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed by the system, most likely for its memory"
    if status < 0:
        return f"ended by signal {-status}"
    return f"ended with status {status}; see its log"

"""Run the missing jobs of a plan, each in its own process, several at once if there is room.

A job that fails, is killed or takes too long only costs its own row; the next run of the plan tries it again.
Processes end with the command that started them, and each with all its children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from filelock import FileLock, Timeout

from voxsam.atomic import make_folder
from voxsam.errors import InputError, UnsupportedError
from voxsam.lab.compare.order import (
    Failure,
    JobKey,
    Outcome,
    Record,
    Training,
    WorkOrder,
    example_names,
    import_modules,
    make_order,
    prepare_data,
)
from voxsam.lab.compare.plan import DataSpec, Plan, RowSpec
from voxsam.lab.data.parallel import ReportProgress
from voxsam.lab.data.store import PreparedData
from voxsam.lab.systems.common_loop import compared_system

GRACE_S = 20.0  # for a process to write a checkpoint when it is asked to stop


class Processes:
    """The running processes; once closed, no more are started.

    Each has its own process group, and a pipe from this process as its input: `end_with_parent` notices when it closes.
    """

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.lock, self.closed = threading.Lock(), False

    def run(self, words: Sequence[str], log: Path, environment: dict[str, str], timeout_s: float | None) -> int | None:
        """Run a command to its end; return the exit status, or None if closed.

        Processes that it left behind are killed. Raises subprocess.TimeoutExpired after `timeout_s`.
        """
        with self.lock, log.open("ab") as file:
            if self.closed:
                return None
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self.running.add(process)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            ask_to_stop(process)
            raise
        finally:
            end_group(process)
            self.running.discard(process)

    def close(self) -> None:
        """Ask all processes to stop, and kill those that do not."""
        with self.lock:
            self.closed = True
            running = list(self.running)
        for process in running:
            process.terminate()
        for process in running:
            ask_to_stop(process)
            end_group(process)


def ask_to_stop(process: subprocess.Popen) -> None:
    """Ask a process to stop, and wait up to GRACE_S for it."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def end_group(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def end_with_parent() -> None:
    """Called in a process of `Processes`: stop, with all that it started, when its parent is gone."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(GRACE_S)
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder. Raises InputError if another process holds it."""
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        given = f"{folder}, in which another `voxsam compare` is running"
        raise InputError(given, "a folder of its own", "wait for it, or choose another with -o") from error
    with lock:
        yield


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One job of a plan, and its folder."""

    row: RowSpec
    data: DataSpec
    order: WorkOrder
    folder: Path

    @property
    def key(self) -> JobKey:
        """Which job of the plan it is."""
        return self.row.row, self.data.name, self.order.fold, self.order.seed

    @property
    def results(self) -> Path:
        """The folder of this evaluation of the job."""
        return self.folder / self.order.evaluation_digest

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, or None if there is none yet."""
        return Outcome.read(self.results / "outcome.json")

    @property
    def trained(self) -> bool:
        """Whether its training is finished."""
        training = Training.read(self.folder / "training.json")
        return training is not None and training.done

    @property
    def failure(self) -> str:
        """Why the job failed; "" if it has not failed."""
        failure = Failure.read(self.results / "failure.json")
        return "" if failure is None else failure.reason

    def __str__(self) -> str:
        fold = "" if self.order.fold is None else f", fold {self.order.fold}"
        return f"{self.row.row} on {self.data.name}{fold}, seed {self.order.seed}"


class Timing(Record):
    """How long a comparison has run, over all attempts, and the room that the last one had."""

    seconds: float = 0.0
    jobs: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Room:
    """How many jobs run at once, how many threads each has, and the GPUs to distribute among them."""

    jobs: int
    threads: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def for_plan(cls, plan: Plan, jobs: int | None = None) -> Room:
        """The room on this machine; `jobs` is the user's choice of their number."""
        import torch

        from voxsam.lab.training.memory import available_bytes

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        gpus = visible_gpus(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        if jobs is None:
            by_memory = int(available_bytes(torch.device("cpu")) / 1e9 / plan.job_gb)
            jobs = len(gpus) or max(1, min(cores // plan.job_cores, by_memory))
        return cls(jobs, max(1, cores // jobs), gpus)


def visible_gpus(count: int) -> tuple[str, ...]:
    """The names of the GPUs that the user left visible, for CUDA_VISIBLE_DEVICES of the jobs."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return tuple(name.strip() for name in shown.split(","))[:count] if shown else tuple(map(str, range(count)))


def make_tasks(plan: Plan, out: Path, progress: ReportProgress = lambda stage, fraction: None) -> list[Task]:
    """Prepare a plan's data sets and make all its jobs. Raises InputError for an invalid system, key or option."""
    import_modules(plan.modules)
    for row in plan.systems:
        with _naming(plan, row):
            compared_system(row.system).check_options(row.options)
    tasks = []
    for data in plan.data:
        progress(f"data set {data.name}", None)
        folder = out / "data" / data.name
        make_folder(folder)
        for fold in data.parts:
            store = prepare_data(data, fold, folder, progress)
            tasks += list(_tasks_of(plan, out, data, fold, store))
    return tasks


def _tasks_of(plan: Plan, out: Path, data: DataSpec, fold: int | None, store: PreparedData) -> Iterator[Task]:
    examples = [] if fold else example_names(store, plan.examples)  # with several folds, from the first
    for seed in sorted({seed for row in plan.systems for seed in plan.seeds_of(row)}):
        for row in plan.systems:
            if seed not in plan.seeds_of(row):
                continue
            order = make_order(plan, row, data, fold, seed, store, examples)
            part = "" if fold is None else f"-fold{fold}"  # rows that share a training share the folder
            name = f"{plan.trained(row).row}{part}-{seed}-{order.training_digest}"
            task = Task(row, data, order, out / "jobs" / data.name / name)
            with _naming(plan, row):
                order.compared().check(order.job(task.folder))
            yield task


@contextmanager
def _naming(plan: Plan, row: RowSpec) -> Iterator[None]:
    """Name the row in an InputError. A missing library passes: the row's own process reports it, and only it fails."""
    try:
        yield
    except UnsupportedError:
        pass
    except InputError as error:
        raise InputError(f"{plan.name}: {row.row}: {error.given}", error.expected, error.remedy) from error


def run(
    plan: Plan,
    tasks: Sequence[Task],
    room: Room,
    out: Path,
    progress: ReportProgress = lambda stage, fraction: None,
    keep: Callable[[Task], None] = lambda task: None,
) -> None:
    """Run the jobs without an outcome; rows that share a training run after the one that trains.

    `keep` is called with each job that has ended. When interrupted it ends all processes and keeps what is done.
    OUT/timing.json has the time that all runs took.
    """
    waiting = [task for task in tasks if task.outcome is None]
    if not waiting:
        return
    start, path = time.perf_counter(), out / "timing.json"
    before: Timing = Timing.read(path) or Timing()
    try:
        _run_all(plan, tasks, waiting, room, progress, keep)
    finally:
        seconds = before.seconds + time.perf_counter() - start
        Timing(seconds=seconds, jobs=room.jobs, threads=room.threads).save(path)


def _run_all(
    plan: Plan,
    tasks: Sequence[Task],
    waiting: Sequence[Task],
    room: Room,
    progress: ReportProgress,
    keep: Callable[[Task], None],
) -> None:
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
                    keep(task)
                if task.outcome is not None or processes.closed:
                    continue
                progress(f"{task} failed: {task.failure}", done / len(tasks))
                if not task.trained:
                    _fail_with(task, chain)
                    break
        finally:
            devices.put(device)

    with closing(Processes()) as processes, ThreadPoolExecutor(room.jobs) as pool:
        futures = [pool.submit(follow, chain) for chain in chains.values()]
        try:
            for future in futures:
                future.result()
        except BaseException:
            processes.close()
            pool.shutdown(cancel_futures=True)
            raise


def _fail_with(failed: Task, chain: Sequence[Task]) -> None:
    """Fail all jobs that share a failed training, so that they do not try it again."""
    for task in chain:
        if task is not failed and task.outcome is None:
            make_folder(task.results)
            Failure(reason=f"the row {failed.row.row}, whose training serves it, failed").save(
                task.results / "failure.json"
            )


def _run_one(task: Task, processes: Processes, threads: int, device: str, minutes: float | None) -> None:
    make_folder(task.results)
    task.order.save(task.results / "order.json")
    failure = task.results / "failure.json"
    failure.unlink(missing_ok=True)
    environment = {**os.environ, **{name: str(threads) for name in THREADS}, "PYTHONUNBUFFERED": "1"}
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = device
    words = [sys.executable, "-m", "voxsam.lab.compare.work", str(task.folder), task.order.evaluation_digest]
    try:
        status = processes.run(words, task.folder / "log.txt", environment, None if minutes is None else 60 * minutes)
    except subprocess.TimeoutExpired:
        Failure(reason=f"stopped after {minutes:g} minutes, the plan's time for a job").save(failure)
        return
    if status is not None and task.outcome is None and not failure.is_file() and not processes.closed:
        Failure(reason=of_status(status)).save(failure)


def of_status(status: int) -> str:
    """The exit status of a process in words."""
    if status == -signal.SIGKILL:
        return "killed by the system, most likely for its memory"
    if status < 0:
        return f"ended by signal {-status}"
    return f"ended with status {status}; see its log"

"""Processes that end together: with the command that began them, and each with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from voxsam.errors import InputError

GRACE_S = 20.0  # that a process has to write a checkpoint when it is asked to stop


class Processes:
    """The processes that run now; once closed, none begins any more.

    Each has its own group, and a pipe to this process as its input: `end_with_parent` sees it close.
    """

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.lock, self.closed = threading.Lock(), False

    def run(self, words: Sequence[str], log: Path, environment: dict[str, str], timeout_s: float | None) -> int | None:
        """Run to the end; returns the exit status, or None if there are no processes any more.

        Whatever it left behind is ended. Raises subprocess.TimeoutExpired after `timeout_s`.
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
        """Ask all of them to stop, and see that they do."""
        with self.lock:
            self.closed = True
            running = list(self.running)
        for process in running:
            process.terminate()
        for process in running:
            ask_to_stop(process)
            end_group(process)


@contextmanager
def ended_together() -> Iterator[Processes]:
    """Processes that are ended when the block is left."""
    processes = Processes()
    try:
        yield processes
    finally:
        processes.close()


def ask_to_stop(process: subprocess.Popen) -> None:
    """Ask for it and wait, but not for long."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def end_group(process: subprocess.Popen) -> None:
    """End a process, and what it began."""
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
    """In a process of `Processes`: stop, with all that it began, when the one that began it is gone."""

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
    """Raises InputError if another process is in this block with the same folder."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        given = f"{folder}, in which another `voxsam compare` is running"
        raise InputError(given, "a folder of its own", "wait for it, or choose another with -o") from error
    with lock:
        yield

"""Worker: the one model, and the one thread that works with it, for every owner in turn.

Everything that touches a session runs on this thread, so that the steps of a session are serial without a lock, and
the model's memory is used by one request at a time. It knows nothing about HTTP.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from voxsam.network.promptable import Promptable
from voxsam.server.errors import TooMany, closed

MAX_WAITING = 64  # requests of one owner

T = TypeVar("T")


Task = tuple[Callable[[], Any], Future[Any]]  # what to do, and where its result or error goes


class Worker:
    """Runs tasks one at a time: owners take turns (round robin), each owner's tasks run in the order given."""

    def __init__(self, model: Promptable) -> None:
        self.model = model
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._news = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="voxsam-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of requests waiting, of all owners."""
        with self._news:
            return sum(map(len, self._waiting.values()))

    def submit(self, owner: str, work: Callable[[], T]) -> Future[T]:
        """Let the thread call `work` when it is the owner's turn; the future holds what it returns or raises.

        A future may be cancelled as long as it waits. Raises TooMany if the owner has too many waiting, Dropped if the
        worker is closed.
        """
        future: Future[T] = Future()
        with self._news:
            if not self._open:
                raise closed()
            queue = self._waiting.setdefault(owner, deque())
            if len(queue) >= MAX_WAITING:
                raise TooMany(
                    f"{len(queue)} requests that wait already", f"at most {MAX_WAITING}", "wait for the answers"
                )
            queue.append((work, future))
            self._news.notify()
        return future

    def drop(self, owner: str) -> None:
        """Drop an owner's waiting tasks (their futures raise Dropped); a running one runs to its end."""
        with self._news:
            tasks = self._waiting.pop(owner, ())
        for _, future in tasks:
            if future.set_running_or_notify_cancel():
                future.set_exception(closed())

    def close(self) -> None:
        """Drop all waiting tasks and wait for the running one to end."""
        with self._news:
            self._open = False
            owners = list(self._waiting)
            self._news.notify()
        for owner in owners:
            self.drop(owner)
        self._thread.join()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            work, future = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # the thread continues
                    future.set_exception(error)
            del task, work, future  # so that the waiting thread holds no arrays of the last task

    def _next(self) -> Task | None:
        """The first task of the owner whose turn it is, who then goes to the end of the queue; None if closed."""
        with self._news:
            while not self._waiting:
                if not self._open:
                    return None
                self._news.wait()
            owner, tasks = self._waiting.popitem(last=False)
            task = tasks.popleft()
            if tasks:
                self._waiting[owner] = tasks
            return task

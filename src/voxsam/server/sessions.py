"""Sessions: the open scans, each held by a client on a lease, and their total memory; no HTTP, no wire format.

A client claims a session, opens a scan in it, and lets it run steps on the worker. It ends when it is released, when it
has not been used for `idle_s`, or when its client gave no sign of life (a request, a heartbeat) for `alive_s`. If
memory is needed, the least recently used features are dropped, and encoded again when they are used.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from voxsam.network.promptable import Promptable
from voxsam.server.errors import Full, NotThere, Refused, TooMany, closed
from voxsam.server.settings import Settings
from voxsam.server.worker import Worker
from voxsam.volume import Volume

MAX_LISTENERS = 8  # to the progress of one session
MAX_UNDO_BYTES = 64 << 20  # of a session's past steps

T = TypeVar("T")
S = TypeVar("S", bound="OpenSession")
Clock = Callable[[], float]


class Memory:
    """The server's memory limit, and what requests, files being read, open scans, steps and masks have reserved."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self.spare: Callable[[], None] = lambda: None  # frees what is not needed yet
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """The bytes that may be reserved now."""
        return max(0, self.limit - self.taken)

    def take(self, nbytes: int, freed: int = 0) -> Part:
        """Reserve a part of the memory until it is closed; `freed` are the bytes that it replaces. Raises Full."""
        part = Part(self)
        part.resize(nbytes, freed)
        return part

    def _change(self, by: int, freed: int) -> None:
        if by > 0 and self.taken + by - freed > self.limit:
            self.spare()
        with self._lock:
            if by > 0 and self.taken + by - freed > self.limit:
                given = f"{by >> 20} MiB beside {self.taken >> 20} MiB that are taken"
                remedy = "close a session, or start the server with more --memory"
                raise Full(given, f"at most {self.limit >> 20} MiB together", remedy)
            self.taken += by


class Part:
    """A reserved part of the memory, as a context manager that closes it."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.nbytes = memory, 0

    def resize(self, nbytes: int, freed: int = 0) -> None:
        """Reserve more, or give some back. Raises Full, leaving the part as it was."""
        self.memory._change(nbytes - self.nbytes, freed)
        self.nbytes = nbytes

    def note(self, nbytes: int) -> None:
        """Count memory that is already in use, however much it is."""
        self.resize(nbytes, freed=max(0, nbytes - self.nbytes) + self.memory.taken)

    def close(self) -> None:
        """Give the part back."""
        self.resize(0)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Busy:
    """What is being done for a session now; `fraction` from 0 to 1."""

    stage: str
    fraction: float


WAITING = Busy("waiting", 0.0)  # for its turn on the worker

Listener = Callable[[Busy | None], None]


class Segmenter(Protocol):
    """What carries out a session's steps; used on the worker's thread only."""

    @property
    def features_bytes(self) -> int: ...

    @property
    def predictions_bytes(self) -> int: ...

    def forget_features(self) -> None: ...


class OpenSession:
    """One client's place: its lease and, once a scan is open, its segmenter. Made by `Sessions.claim`.

    Each protocol has a class of its own, which makes the segmenter (`make`) and keeps what else a client needs.
    """

    kind: ClassVar[str] = "a session of another protocol"

    def __init__(self, sessions: Sessions, name: str) -> None:
        self.id, self.sessions = name, sessions
        self.volume: Volume | None = None
        self.segmenter: Any = None
        self.part: Part | None = None
        self.busy: Busy | None = None
        self.released = False
        self.pending = 0  # steps that wait or run: such a session does not expire
        self.features_bytes = 0
        self._listeners: set[Listener] = set()
        self.seen = self.used = sessions.clock()

    def make(self, model: Promptable, volume: Volume, undo_bytes: int) -> Segmenter:
        """Make the segmenter of a scan."""
        raise NotImplementedError

    @property
    def kept_bytes(self) -> int:
        """The memory of what is kept besides the scan and its masks."""
        return 0

    @property
    def lease_s(self) -> float:
        """Seconds until the session ends if nothing is heard from its client."""
        limits, now = self.sessions.limits, self.sessions.clock()
        return max(0.0, min(self.seen + limits.alive_s, self.used + limits.idle_s) - now)

    def open(self, volume: Volume, part: Part) -> None:
        """Open a scan, for which `part` was reserved, and close the previous one. Raises Dropped.

        Steps still waiting for the previous one are dropped.
        """
        with self.sessions._lock:
            if self.released:
                part.close()
                raise closed()
            self.sessions.worker.drop(self.id)
            self._forget()
            self.volume, self.part = volume, part
            self.segmenter = self.make(self.sessions.worker.model, volume, self.sessions.undo_bytes)
            self.seen = self.used = self.sessions.clock()
            with suppress(Refused):  # by a server that is shutting down
                self.sessions.worker.submit("", lambda: self.sessions.make_room(self))

    def require_volume(self) -> Volume:
        """The scan. Raises Dropped if the session was released, NotThere if no scan is open."""
        volume = self.volume
        if self.released:
            raise closed()
        if volume is None:
            raise NotThere("a session without a scan", "an open scan", "open a scan first")
        return volume

    def run(self, work: Callable[[Any], T], memory_bytes: int = 0) -> Future[T]:
        """Let the worker call `work` with the segmenter when it is this session's turn, which counts as a use.

        `memory_bytes` are reserved for it until it is done. The future raises what `work` raises, and Dropped if the
        session is released before its turn comes. Raises NotThere, Dropped, Full, and TooMany if too many steps wait.
        """
        sessions = self.sessions
        with sessions._lock:
            self.require_volume()
            segmenter = self.segmenter
            self.seen = self.used = sessions.clock()
            part = sessions.memory.take(memory_bytes)
            try:
                future = sessions.worker.submit(self.id, lambda: self._step(segmenter, work))
            except BaseException:
                part.close()
                raise
            if self.busy is None:
                self._notify(WAITING)
            self.pending += 1
        future.add_done_callback(lambda _: (part.close(), self._done()))
        return future

    def check_growth(self) -> None:
        """Raises Full if the memory is full and this session's masks and steps take more than their share."""
        part, volume = self.part, self.volume
        grown = 0 if part is None or volume is None else part.nbytes - volume.array.nbytes
        if grown > 2 * self.sessions.undo_bytes and not self.sessions.memory.free:
            given, expected = f"a session with {grown >> 20} MiB of masks and steps", "room in the server's memory"
            raise Full(given, expected, "reset it, close a session, or start the server with more --memory")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the session from timing out within the block, while its client waits for the server."""
        with self.sessions._lock:
            self.pending += 1
        try:
            yield
        finally:
            self._done()

    def report(self, stage: str, fraction: float) -> None:
        """Report the progress of the current step; the segmenter calls it."""
        self._notify(Busy(stage, fraction))

    def report_idle(self) -> None:
        """Report that nothing is running, again if something has changed since."""
        self._notify(None)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each change of `busy`, on the thread where it happens; returns a function to end that.

        Raises TooMany.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooMany(f"{MAX_LISTENERS} who listen already", f"at most {MAX_LISTENERS}", "close one")
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _notify(self, busy: Busy | None) -> None:
        self.busy = busy
        for listener in tuple(self._listeners):
            listener(busy)

    def _step(self, segmenter: Any, work: Callable[[Any], T]) -> T:
        """One turn on the worker's thread."""
        self.sessions.on_work()
        try:
            return work(segmenter)
        finally:
            with self.sessions._lock:
                if self.segmenter is segmenter and self.volume is not None and self.part is not None:
                    self.features_bytes = segmenter.features_bytes
                    self.part.note(self.volume.array.nbytes + segmenter.predictions_bytes + self.kept_bytes)
            self.sessions.make_room(self)
            self._notify(None)

    def _done(self) -> None:
        with self.sessions._lock:
            self.pending -= 1
            self.seen = self.used = self.sessions.clock()

    def _forget(self) -> None:
        """Drop the scan and everything made from it."""
        part, self.part, self.segmenter, self.volume, self.features_bytes = self.part, None, None, None, 0
        if part is not None:
            part.close()


class Sessions:
    """All open sessions, within `capacity`, `memory_bytes`, `idle_s` and `alive_s`. For calls on any thread."""

    def __init__(self, worker: Worker, limits: Settings, clock: Clock = time.monotonic) -> None:
        self.worker, self.limits, self.clock = worker, limits, clock
        self.memory = Memory(limits.memory_bytes)
        self.on_work: Callable[[], None] = lambda: None  # called on the worker's thread before each step
        self.expired = self.forgotten = 0  # sessions that timed out; those whose features were dropped
        self._open: dict[str, OpenSession] = {}
        self._lock = threading.RLock()

    @property
    def undo_bytes(self) -> int:
        """The limit on each session's past steps: all sessions together take at most a quarter of the memory."""
        return min(MAX_UNDO_BYTES, self.limits.memory_bytes // (4 * self.limits.capacity))

    @property
    def open(self) -> tuple[OpenSession, ...]:
        """The sessions that are held now."""
        with self._lock:
            return tuple(self._open.values())

    @property
    def nbytes(self) -> int:
        """The memory that is reserved plus that of the features, which are dropped if it is needed."""
        return self.memory.taken + sum(session.features_bytes for session in self.open)

    def claim(self, kind: type[S], name: str | None = None) -> S:
        """Open a new session, named at random unless a `name` is given (to resume earlier work). Raises Full."""
        self.expire()
        with self._lock:
            if len(self._open) >= self.limits.capacity:
                raise Full(f"{len(self._open)} open sessions", "a free place", "close one, or try again in a minute")
            session = kind(self, name or secrets.token_urlsafe(18))
            assert session.id not in self._open, "this name is held"
            self._open[session.id] = session
            return session

    def find(self, kind: type[S], name: str) -> S | None:
        """The session of this name, None if it is not, or no longer, held; asking for it counts as a sign of life.

        Raises NotThere for a session of another protocol.
        """
        with self._lock:
            session = self._open.get(name)
            if session is None or self._is_over(session):
                return None
            if not isinstance(session, kind):
                raise NotThere("a session of another protocol", kind.kind, "open the scan again")
            session.seen = self.clock()
            return session

    def release(self, name: str) -> bool:
        """End a session: its scan is freed, steps waiting for it are dropped. False if there was none."""
        with self._lock:
            session = self._open.pop(name, None)
            if session is None:
                return False
            session.released = True
            session._forget()
        self.worker.drop(name)
        session._notify(None)
        return True

    def expire(self) -> list[str]:
        """End the sessions that have timed out and return their names; to be called every few seconds."""
        with self._lock:
            over = [session.id for session in self._open.values() if self._is_over(session)]
        ended = [name for name in over if self.release(name)]
        self.expired += len(ended)
        return ended

    def close(self) -> None:
        """Release all sessions."""
        for session in self.open:
            self.release(session.id)

    def _is_over(self, session: OpenSession) -> bool:
        return not session.pending and session.lease_s <= 0

    def make_room(self, latest: OpenSession) -> None:
        """Drop the least recently used features until everything fits; on the worker's thread."""
        for session in sorted(self.open, key=lambda session: session.used):
            if self.nbytes <= self.memory.limit:
                return
            segmenter = session.segmenter  # once: another thread may release the session now
            if session is not latest and session.features_bytes and segmenter is not None:
                segmenter.forget_features()
                session.features_bytes = 0
                self.forgotten += 1

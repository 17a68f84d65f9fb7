"""Store: the sessions that are open, each in a slot that its client holds on a lease; no HTTP, no wire format.

A client claims a slot, opens a scan in it, and lets it run steps on the device. A slot ends when it is released, when
nobody used it for `idle_s`, or when its client gave no sign of life for `alive_s` (a request, a heartbeat). All slots
together keep to a budget of memory: features that were used least recently are forgotten and encoded again when needed.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from voxsam.interactive.session import Session
from voxsam.server.device import Device
from voxsam.server.errors import Dropped, Full, NotThere
from voxsam.volume import Volume

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """What all slots together may take, and for how long one lasts by itself (seconds)."""

    capacity: int = 16
    memory_bytes: int = 4 << 30
    idle_s: float = 1800.0
    alive_s: float = 60.0
    undo_bytes: int = 64 << 20  # of each session's past steps


@dataclass(frozen=True)
class Busy:
    """What is being done for a slot now; `fraction` from 0 to 1."""

    stage: str
    fraction: float


WAITING = Busy("waiting", 0.0)  # for its turn on the device

Listener = Callable[[Busy | None], None]


class Slot:
    """One client's place: its lease, and once it has opened a scan, its Session. Made by `Store.claim`.

    `session` must be touched on the device's thread only, that is, inside `run`; what never changes of it (model,
    volume) may be read anywhere. `notes` is for whoever claimed it: what a protocol keeps beside the session.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.id = name
        self.session: Session | None = None
        self.busy: Busy | None = None
        self.notes: dict[str, Any] = {}
        self.released = False
        self.pending = 0  # steps that wait or run: such a slot does not expire
        self.volume_bytes = self.features_bytes = self.answers_bytes = 0
        self._store = store
        self._listeners: set[Listener] = set()
        self.seen = self.used = store.clock()

    @property
    def owner(self) -> str:
        """Under which the device queues its requests."""
        return self.id

    @property
    def lease_s(self) -> float:
        """Seconds until it ends by itself if nothing is heard of its client."""
        limits, now = self._store.limits, self._store.clock()
        return max(0.0, min(self.seen + limits.alive_s, self.used + limits.idle_s) - now)

    def open(self, volume: Volume) -> None:
        """Begin a session on a scan; one that was open in the slot is closed. Raises Full, Dropped.

        What still waits for the old session is dropped.
        """
        self._store._open(self, volume)

    def run(self, work: Callable[[Session], T]) -> Future[T]:
        """Let the device's thread call `work` with the session when it is this slot's turn: a use of the slot.

        The future raises what `work` raises, and Dropped if the slot is released before its turn comes. Raises
        NotThere if no scan is open, Dropped if the slot was released, TooMany if too much waits already.
        """
        return self._store._run(self, work)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it the slot does not end by a time-out: its client waits for the server."""
        with self._store._lock:
            self.pending += 1
        try:
            yield
        finally:
            self._store._done(self)

    def report(self, stage: str, fraction: float) -> None:
        """Progress of what runs; Session calls it."""
        self._report(Busy(stage, fraction))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each change of `busy`, on the thread where it happens; returns how to end that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _report(self, busy: Busy | None) -> None:
        self.busy = busy
        for listener in tuple(self._listeners):
            listener(busy)


class Store:
    """All slots. Its methods may be called on any thread."""

    def __init__(self, device: Device, limits: Limits | None = None, clock: Clock = time.monotonic) -> None:
        self.device, self.limits, self.clock = device, limits or Limits(), clock
        self.expired = self.forgotten = 0  # slots that ended by a time-out; sessions whose features made room
        self._slots: dict[str, Slot] = {}
        self._lock = threading.RLock()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Those that are held now."""
        with self._lock:
            return tuple(self._slots.values())

    @property
    def nbytes(self) -> int:
        """Memory of the open scans, of their answers with the steps back, and of the features that are kept."""
        return sum(slot.volume_bytes + slot.answers_bytes + slot.features_bytes for slot in self.slots)

    def claim(self, name: str | None = None) -> Slot:
        """A new slot, named at random unless a `name` is given (to take up earlier work). Raises Full."""
        self.expire()
        with self._lock:
            if len(self._slots) >= self.limits.capacity:
                raise Full(f"{len(self._slots)} open sessions", "a free place", "close one, or try again in a minute")
            slot = Slot(self, name or secrets.token_urlsafe(18))
            assert slot.id not in self._slots, "this name is held"
            self._slots[slot.id] = slot
            return slot

    def find(self, name: str) -> Slot | None:
        """The slot of a name, None if it is not, or no longer, held; asking for it is a sign of life."""
        with self._lock:
            slot = self._slots.get(name)
            if slot is None or self._is_over(slot):
                return None
            slot.seen = self.clock()
            return slot

    def get(self, name: str) -> Slot:
        """As `find`, but raises NotThere."""
        slot = self.find(name)
        if slot is None:
            raise NotThere("a session that is not open", "the id of an open session", "open the scan again")
        return slot

    def release(self, name: str) -> bool:
        """End a slot: its session is freed, what waits for it is dropped. False if there was none."""
        with self._lock:
            slot = self._slots.pop(name, None)
            if slot is None:
                return False
            slot.released = True
        self.device.drop(slot.owner)
        slot.session, slot.volume_bytes, slot.answers_bytes, slot.features_bytes = None, 0, 0, 0
        slot._report(None)
        return True

    def expire(self) -> list[str]:
        """End the slots whose time is over, and return their names; call it every few seconds."""
        with self._lock:
            over = [slot.id for slot in self._slots.values() if self._is_over(slot)]
        ended = [name for name in over if self.release(name)]
        self.expired += len(ended)
        return ended

    def close(self) -> None:
        """Release all slots."""
        for slot in self.slots:
            self.release(slot.id)

    def _is_over(self, slot: Slot) -> bool:
        return not slot.pending and slot.lease_s <= 0

    def _open(self, slot: Slot, volume: Volume) -> None:
        with self._lock:
            if slot.released:
                raise _released()
            others = sum(other.volume_bytes for other in self._slots.values() if other is not slot)
            if others + volume.array.nbytes > self.limits.memory_bytes:
                raise Full(
                    f"a scan of {volume.array.nbytes >> 20} MiB beside {others >> 20} MiB of open ones",
                    f"at most {self.limits.memory_bytes >> 20} MiB together",
                    "close a session, or start the server with more --memory",
                )
            self.device.drop(slot.owner)
            slot.session = Session(self.device.model, volume, progress=slot.report, undo_bytes=self.limits.undo_bytes)
            slot.volume_bytes, slot.answers_bytes, slot.features_bytes = volume.array.nbytes, 0, 0
            slot.seen = slot.used = self.clock()

    def _run(self, slot: Slot, work: Callable[[Session], T]) -> Future[T]:
        with self._lock:
            session = slot.session
            if slot.released:
                raise _released()
            if session is None:
                raise NotThere("a session without a scan", "an open scan", "open a scan first")
            slot.seen = slot.used = self.clock()
            if slot.busy is None:
                slot._report(WAITING)
            future = self.device.submit(slot.owner, lambda: self._step(slot, session, work))
            slot.pending += 1
        future.add_done_callback(lambda _: self._done(slot))
        return future

    def _step(self, slot: Slot, session: Session, work: Callable[[Session], T]) -> T:
        """One turn on the device's thread."""
        try:
            return work(session)
        finally:
            if slot.session is session:
                slot.features_bytes, slot.answers_bytes = session.features_bytes, session.predictions_bytes
                self._make_room(slot)
            slot._report(None)

    def _done(self, slot: Slot) -> None:
        with self._lock:
            slot.pending -= 1
            slot.seen = slot.used = self.clock()

    def _make_room(self, latest: Slot) -> None:
        """Forget the features that were used least recently until all fits; on the device's thread."""
        for slot in sorted(self.slots, key=lambda slot: slot.used):
            if self.nbytes <= self.limits.memory_bytes:
                return
            session = slot.session  # once: another thread may release the slot now
            if slot is not latest and slot.features_bytes and session is not None:
                session.forget_features()
                slot.features_bytes = 0
                self.forgotten += 1


def _released() -> Dropped:
    return Dropped("a session that was closed", "an open session", "open the scan again")

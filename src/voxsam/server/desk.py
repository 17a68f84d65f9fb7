"""Desk: the sessions of the page and of programs. Opened, stepped through, saved after every step, brought back.

Async, for it is called from the event loop, which it never blocks: scans are read and numbers measured on threads,
sessions are touched on the device's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from voxsam.boxes import NOWHERE
from voxsam.errors import FileError
from voxsam.interactive.session import Session
from voxsam.preprocess import Slices
from voxsam.server.answers import (
    Answer,
    BusyState,
    Numbers,
    Seen,
    State,
    changed_box,
    object_states,
    packed,
    see,
    whole,
)
from voxsam.server.archive import Archive, Work
from voxsam.server.device import MAX_WAITING
from voxsam.server.downloads import report_facts
from voxsam.server.errors import Dropped, NotThere, TooMany
from voxsam.server.observe import LOG
from voxsam.server.reading import Reader
from voxsam.server.sources import Source
from voxsam.server.steps import Script
from voxsam.server.store import Slot, Store
from voxsam.volume import Volume

SITTING = "sitting"  # where a slot keeps it
MAX_READING = 2  # scans at once: each is large
NOT_SAVED = "the work could not be saved: it would not outlive the server"

Play = Callable[[Script, Session], None]


@dataclass(eq=False)
class Sitting:
    """What a slot of the desk keeps beside its session."""

    work: Work
    ready: asyncio.Task[None] | None = None  # done when the scan is read and the steps are played again
    numbers: Numbers = field(default_factory=Numbers)
    notes: list[str] = field(default_factory=list)
    waiting: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    left: bool = False  # for good: its work is not saved any more
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)  # while its work is saved, or deleted

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One request of a session at a time, from its step to its answer. Raises TooMany if too many wait."""
        if self.waiting >= MAX_WAITING:
            raise TooMany(f"{self.waiting} requests that wait already", f"at most {MAX_WAITING}", "wait for answers")
        self.waiting += 1
        try:
            async with self.lock:
                yield
        finally:
            self.waiting -= 1


class Desk:
    """All sessions that have a Work."""

    def __init__(
        self, store: Store, reader: Reader, archive: Archive, on_step: Callable[[str, float], None] | None = None
    ) -> None:
        self.store, self.reader, self.archive = store, reader, archive
        self.on_step = on_step or (lambda name, seconds: None)
        self._reading = asyncio.Semaphore(MAX_READING)

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self.store.device.model.card.name

    async def open(self, source: Source, name: str | None) -> Slot:
        """Claim a slot and read a scan into it. Raises InputError; then the slot is free again."""
        name = name or await asyncio.to_thread(self.reader.name, source)
        slot = self.store.claim()
        work = Work(id=slot.id, name=name, model=self.model, source=source)
        sitting = Sitting(work)
        await self._begin(slot, sitting)
        await self._save(sitting)
        return slot

    async def find(self, name: str, *, wait: bool = True) -> Slot:
        """The slot of a session, brought back from the archive if it is not open. Raises NotThere, Full, InputError.

        With `wait=False` it may still be on its way back.
        """
        slot = self.store.find(name)
        if slot is None:
            work = await asyncio.to_thread(self.archive.load, name)
            slot = self.store.find(name) or self._bring_back(name, work)  # someone else may have asked meanwhile
        ready = sitting_of(slot).ready
        if wait and ready is not None:
            await asyncio.shield(ready)
        return slot

    async def step(self, slot: Slot, name: str, play: Play) -> Answer:
        """Do a step, save the work, and answer. Raises InputError, with the session as it was."""
        sitting = sitting_of(slot)

        def work(session: Session) -> tuple[Seen, float]:
            start = time.perf_counter()
            play(sitting.work.script, session)
            sitting.work.revision += 1
            seen = see(session, session.changed, session.changed, sitting.numbers.known)
            return seen, time.perf_counter() - start

        async with sitting.turn():
            seen, seconds = await asyncio.wrap_future(slot.run(work))
            self.on_step(name, seconds)
            await self._save(sitting)
            return await asyncio.to_thread(_answer, slot, sitting, seen, seconds)

    async def state(self, slot: Slot) -> State:
        """The session as it is."""
        sitting = sitting_of(slot)
        async with sitting.turn():
            seen = await self._look(slot, lambda session: NOWHERE)
            return await asyncio.to_thread(lambda: State(**_facts(slot, sitting, seen)))

    async def labels(self, slot: Slot, full: bool) -> Answer:
        """The session as it is with all labels: of the whole scan, or of the box outside which there are none."""
        sitting = sitting_of(slot)
        async with sitting.turn():
            seen = await self._look(slot, lambda session: whole(session.volume.grid) if full else session.extent)
            return await asyncio.to_thread(_answer, slot, sitting, seen, 0.0)

    async def _look(self, slot: Slot, box: Callable[[Session], Slices]) -> Seen:
        known = sitting_of(slot).numbers.known
        return await asyncio.wrap_future(slot.run(lambda session: see(session, box(session), NOWHERE, known)))

    async def report(self, slot: Slot) -> tuple[Volume, dict[str, Any]]:
        """The mask, and the facts of evaluation.report."""
        sitting = sitting_of(slot)
        mask, answers = await asyncio.wrap_future(slot.run(lambda session: (session.mask, dict(session.predictions))))
        name, scan = sitting.work.name, volume_of(slot)
        return mask, await asyncio.to_thread(report_facts, name, self.model, scan, mask, answers)

    async def leave(self, name: str) -> None:
        """Release a session and forget its work. Raises NotThere, also for a slot of another protocol."""
        slot = self.store.find(name)
        if slot is None:
            await asyncio.to_thread(self.archive.delete, name)
            return
        sitting = sitting_of(slot)
        sitting.left = True
        try:
            async with sitting.saving:
                with suppress(NotThere):
                    await asyncio.to_thread(self.archive.delete, name)
        finally:
            self.store.release(name)

    async def _save(self, sitting: Sitting) -> None:
        """Keep the work, unless its client has left. A disk that is full is no reason to lose a step: it is noted."""
        async with sitting.saving:
            if sitting.left:  # saved now, the work that was forgotten would be back
                raise _closed()
            sitting.notes[:] = [note for note in sitting.notes if note != NOT_SAVED]
            try:
                await asyncio.to_thread(self.archive.save, sitting.work)
            except FileError as error:
                LOG.error("not saved", extra={"facts": {"error": type(error.__cause__).__name__}})
                sitting.notes.append(NOT_SAVED)

    async def _begin(self, slot: Slot, sitting: Sitting) -> None:
        slot.notes[SITTING] = sitting
        try:
            with slot.held():
                async with self._reading:  # not a lock of threads: those who wait would keep others from theirs
                    volume = await asyncio.to_thread(self.reader.read, sitting.work.source)
                slot.open(volume)
        except BaseException:
            self.store.release(slot.id)
            raise

    def _bring_back(self, name: str, work: Work) -> Slot:
        """Claim the slot of a saved work, and begin to fill it."""
        slot = self.store.claim(name)
        sitting = Sitting(work)
        slot.notes[SITTING] = sitting
        sitting.ready = asyncio.create_task(self._refill(slot, sitting))
        sitting.ready.add_done_callback(lambda task: task.cancelled() or task.exception())  # maybe nobody waits for it
        return slot

    async def _refill(self, slot: Slot, sitting: Sitting) -> None:
        """Read the scan and play the steps again. If that fails the work stays saved, and the slot is free."""
        await self._begin(slot, sitting)
        work = sitting.work
        try:
            with slot.held():
                for piece in work.script.replay():
                    await asyncio.wrap_future(slot.run(piece))
        except BaseException:
            self.store.release(slot.id)
            raise
        if work.model != self.model:
            sitting.notes.append(f"made with the model {work.model}, computed again with {self.model}")
            work.model = self.model
        sitting.ready = None


def sitting_of(slot: Slot) -> Sitting:
    """The desk's part of a slot. Raises NotThere for a slot of another protocol."""
    if SITTING not in slot.notes:
        raise NotThere("a session of another protocol", "a session opened at /api/sessions", "open the scan again")
    return slot.notes[SITTING]


def volume_of(slot: Slot) -> Volume:
    """The scan of a slot. Raises Dropped if it was released."""
    session = slot.session
    if session is None:
        raise _closed()
    return session.volume


def _closed() -> Dropped:
    return Dropped("a session that was closed", "an open session", "open the scan again")


def _answer(slot: Slot, sitting: Sitting, seen: Seen, seconds: float) -> Answer:
    facts = _facts(slot, sitting, seen)
    return Answer(**facts, seconds=round(seconds, 4), changed=changed_box(seen.box), labels=packed(seen.labels))


def _facts(slot: Slot, sitting: Sitting, seen: Seen) -> dict[str, Any]:
    volume, busy = volume_of(slot), slot.busy
    return {
        "id": slot.id,
        "name": sitting.work.name,
        "lease_s": round(slot.lease_s, 1),
        "shape": volume.grid.shape,
        "spacing_mm": tuple(volume.grid.spacing_mm.tolist()),
        "affine": volume.grid.affine.tolist(),
        "modality": volume.modality,
        "dicom": "dicom" in volume.header,
        "revision": sitting.work.revision,
        "objects": object_states(seen, sitting.numbers, volume.grid),
        "current": seen.current,
        "can_undo": seen.can_undo,
        "can_redo": seen.can_redo,
        "busy": None if busy is None else BusyState(stage=busy.stage, fraction=busy.fraction),
        "notes": sitting.notes,
    }

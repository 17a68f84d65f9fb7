"""Saved sessions, of the page and of programs: opened, stepped through, saved at every step, and restored.

Async, because it is called from the event loop, which it never blocks: scans are read and objects measured on threads,
segmenters are used on the worker's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from voxsam.boxes import NOWHERE, whole
from voxsam.errors import FileError
from voxsam.interactive.session import Session
from voxsam.io.guarded import Reading
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Slices
from voxsam.region import Region
from voxsam.report.metrics import Measurement
from voxsam.server.edits import Description, KeptMask, check_work
from voxsam.server.errors import LOG, NotThere, OtherScan, Taken, TooMany, closed
from voxsam.server.messages import (
    AnySource,
    BusyState,
    CaseSource,
    Earlier,
    FolderSource,
    SessionState,
    Source,
    StepState,
    View,
    work_bytes,
)
from voxsam.server.scans import Reader, Scan
from voxsam.server.sessions import OpenSession, Sessions
from voxsam.server.store import Event, Journal, Store, Work
from voxsam.server.worker import MAX_WAITING
from voxsam.volume import Volume

MAX_EARLIER = 20  # sessions on the same scan that are listed
NOT_SAVED = "the work could not be saved: it would not outlive the server"
OTHER_MASKS = (
    "saved by an earlier version: objects now keep their voxels, and of what the network finds only the clicked "
    "components are kept; look at the masks again"
)
UNKNOWN_SCAN = "saved by an earlier version, which did not note what the scan held: check that it is the right one"


class SavedSession(OpenSession):
    """A session with a journal: the steps are on disk before they are answered."""

    kind = "a session opened at /api/sessions"
    journal: Journal

    def __init__(self, sessions: Sessions, name: str) -> None:
        super().__init__(sessions, name)
        self.ready: asyncio.Task[None] | None = None  # until the scan is read and the steps are replayed
        self.measured: dict[int, tuple[Region, Measurement]] = {}  # objects, until their voxels change
        self.seconds = 0.0  # of all steps
        self.model = ""  # its name
        self.notes: list[str] = []
        self.earlier: list[Earlier] = []
        self.reading = Reading(partial(self.report, "reading"))  # of its scan
        self.left = False  # for good: its work is no longer saved
        self.saving = asyncio.Lock()  # while its work is saved, or deleted
        self._waiting = 0
        self._turn = asyncio.Lock()

    def make(self, model: Promptable, volume: Volume, undo_bytes: int) -> Session:
        """Make the session that carries out the steps."""
        self.model = model.card.name
        return Session(model, volume, progress=self.report, undo_bytes=undo_bytes)

    @property
    def kept_bytes(self) -> int:
        """The memory of lines that are not on disk yet."""
        return self.journal.waiting_bytes

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Let one request of a session run at a time, from step to response. Raises TooMany if too many wait."""
        if self._waiting >= MAX_WAITING:
            raise TooMany(f"{self._waiting} requests that wait already", f"at most {MAX_WAITING}", "wait for answers")
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def step(self, event: Event, on_step: Callable[[str, float], None]) -> StepState:
        """Carry out an event, save it, and return the new state. Raises InputError, leaving the session as it was."""

        def work(session: Session) -> tuple[View, float, bool]:
            start = time.perf_counter()
            before = session.current
            done = play(event, session)
            event.object = session.current if event.do == "select" else before
            event.current = session.current
            event.seconds = round(time.perf_counter() - start, 4)
            return View.of(session, NOWHERE if event.do == "describe" else session.changed), event.seconds, done

        async with self.turn():
            async with self.saving:
                if self.left:
                    raise closed()
                await asyncio.to_thread(self.journal.check_room, event)
            if event.do in ("prompt", "edit", "mask"):
                self.check_growth()
            view, seconds, done = await asyncio.wrap_future(self.run(work, work_bytes(event.prompts)))
            on_step(event.do, seconds)
            if done:
                self.journal.work.revision += 1
                event.revision = self.journal.work.revision
                self.seconds += event.seconds
                await self.save(lambda: self.journal.add(event))
                self.report_idle()  # again: now with the revision
            return await asyncio.to_thread(self._step_state, view, seconds)

    async def state(self) -> SessionState:
        """The state of the session."""
        async with self.turn():
            view = await self._look(lambda session: NOWHERE)
            return await asyncio.to_thread(lambda: SessionState(**self._facts(view)))

    async def labels(self, full: bool) -> StepState:
        """The state of the session with all labels: of the whole scan, or of the box outside which there are none."""
        voxels = self.require_volume().array.size if full else 0
        async with self.turn():
            with self.sessions.memory.take(2 * voxels):
                view = await self._look(lambda session: whole(session.volume.grid) if full else session.extent)
                return await asyncio.to_thread(self._step_state, view, 0.0)

    async def _look(self, box: Callable[[Session], Slices]) -> View:
        return await asyncio.wrap_future(self.run(lambda session: View.of(session, box(session))))

    async def save(self, write: Callable[[], None]) -> None:
        """Write to the journal, unless the client has left. A failed write only adds a note, so no step is lost."""
        async with self.saving:
            if self.left:  # saving now would bring back the work that was deleted
                raise closed()
            self.notes[:] = [note for note in self.notes if note != NOT_SAVED]
            try:
                await asyncio.to_thread(write)
            except FileError as error:
                LOG.error("not saved", extra={"facts": {"error": type(error.__cause__).__name__}})
                self.notes.append(NOT_SAVED)

    def _step_state(self, view: View, seconds: float) -> StepState:
        return StepState(**self._facts(view), seconds=round(seconds, 4), **view.changes())

    def _facts(self, view: View) -> dict[str, Any]:
        volume, busy, work = self.require_volume(), self.busy, self.journal.work
        return {
            "id": self.id,
            "name": work.name,
            "lease_s": round(self.lease_s, 1),
            "shape": volume.grid.shape,
            "spacing_mm": tuple(volume.grid.spacing_mm.tolist()),
            "affine": volume.grid.affine.tolist(),
            "modality": volume.modality,
            "dicom": "dicom" in volume.header,
            "revision": work.revision,
            "objects": view.object_states(self.measured, volume.grid),
            "current": view.step.current,
            "overlap": view.step.overlap,
            "keep_clicked": view.step.keep_clicked,
            "can_undo": view.can_undo,
            "can_redo": view.can_redo,
            "busy": None if busy is None else BusyState(stage=busy.stage, fraction=busy.fraction),
            "case": work.source.case if isinstance(work.source, CaseSource) else None,
            "notes": self.notes,
            "earlier": self.earlier,
        }


def play(event: Event, session: Session) -> bool:
    """Carry out an event; returns whether anything was done. Raises InputError, leaving the session as it was."""
    before, scan, number = session.step, session.volume, event.number
    if event.do == "prompt":
        session.prompt(*(prompt.on(scan.grid) for prompt in event.prompts))
    elif event.do == "remove_prompt":
        session.remove_prompt(number, event.index)
    elif event.do == "edit":
        check_work(event.edits, scan.grid)
        session.edit(*(edit.on(scan) for edit in event.edits))
    elif event.do == "mask":
        names, notes = [mask.name for mask in event.masks], event.masks[0].notes
        session.load_regions([mask.region for mask in event.masks], names, notes)
    elif event.do == "new_object":
        session.new_object()
    elif event.do == "delete":
        session.delete(number)
    elif event.do == "lock":
        session.lock(number, event.on)
    elif event.do == "overlap":
        session.allow_overlap(event.on)
    elif event.do == "keep_clicked":
        session.set_keep_clicked(event.on)
    elif event.do == "describe":
        session.describe(number, (event.description or Description()).of(session.info(number)))
    elif event.do == "select":
        session.select(event.object)
    else:
        {"undo": session.undo, "redo": session.redo, "reset": session.reset}[event.do]()
    return session.step is not before or event.do in ("select", "describe")


def replay(event: Event, session: Session) -> None:
    """Carry out an event again, with the same object current as before."""
    if event.do == "describe":  # also of an object that only undo or redo may bring back
        session.infos[event.number] = (event.description or Description()).of(session.info(event.number))
        return
    if event.do not in ("undo", "redo", "select"):
        session.select(event.object)
    play(event, session)


class SavedSessions:
    """Opens sessions, finds them again, and deletes them."""

    def __init__(self, sessions: Sessions, reader: Reader, store: Store) -> None:
        self.sessions, self.reader, self.store = sessions, reader, store
        self.reading = asyncio.Semaphore()  # held by whoever reads a scan

    @property
    def model(self) -> str:
        """The name of the model in use."""
        return self.sessions.worker.model.card.name

    async def open(self, source: AnySource, name: str | None, id: str | None = None) -> SavedSession:
        """Open a session on a scan. Raises InputError, freeing its place again; Taken for an `id` that is in use."""
        name = name or await asyncio.to_thread(self.reader.name, source)
        if id is not None and (self.store.work(id) or any(session.id == id for session in self.sessions.open)):
            raise Taken("an id that is in use", "an id of your own, long and random", "choose another, or leave it out")
        session = self.sessions.claim(SavedSession, id)
        session.journal = self.store.create(Work(id=session.id, name=name, model=self.model, source=source))
        await self._begin(session)
        return session

    async def find(self, name: str, *, wait: bool = True) -> SavedSession:
        """A session, restored from the store if it is not open. Raises NotThere, Full, InputError.

        With `wait=False` it may not be fully restored yet.
        """
        session = self.sessions.find(SavedSession, name)
        if session is None:
            journal, events = await asyncio.to_thread(self.store.load, name)
            session = self.sessions.find(SavedSession, name)  # someone else may have asked meanwhile
            if session is None:
                session = self.sessions.claim(SavedSession, name)
                session.journal = journal
                session.ready = asyncio.create_task(self._refill(session, events))
                session.ready.add_done_callback(lambda task: task.cancelled() or task.exception())  # maybe nobody waits
        if wait and session.ready is not None:
            await asyncio.shield(session.ready)
        return session

    def cancel(self, name: str) -> None:
        """Stop reading a session's scan; whoever waits gets Dropped. No effect once it is read. Raises NotThere."""
        session = self.sessions.find(SavedSession, name)
        if session is None:
            raise NotThere("a session that is not being opened", "one that is", "open the scan again")
        session.reading.stop.set()

    async def masks(self, source: Source, session: SavedSession) -> tuple[KeptMask, ...]:
        """The objects of a mask file for a session's scan. Raises InputError."""
        scan = session.require_volume()
        with session.held():
            async with self.reading:
                found = await asyncio.to_thread(self.reader.objects, source, scan)
        return tuple(KeptMask.of(mask.name, mask.region, mask.remarks) for mask in found)

    async def leave(self, name: str) -> None:
        """Release a session and delete its work. Raises NotThere."""
        session = self.sessions.find(SavedSession, name)
        if session is None:
            await asyncio.to_thread(self.store.delete, name)
            return
        session.left = True
        try:
            async with session.saving:
                with suppress(NotThere):
                    await asyncio.to_thread(self.store.delete, name)
        finally:
            self.sessions.release(name)

    async def _begin(self, session: SavedSession, events: Sequence[Event] = ()) -> None:
        """Read the scan, record what it is, and save the work. Raises OtherScan if it is not the one it was."""
        work = session.journal.work
        try:
            with session.held():
                session.report("reading", 0.0)
                async with self.reading:  # not a thread lock: waiting would block threads that others need
                    scan = await asyncio.to_thread(self._read, work, session.reading)
                session.open(scan.volume, scan.part)
                session.report_idle()
            if events and not work.digest and isinstance(work.source, FolderSource):
                session.notes.append(UNKNOWN_SCAN)
            session.notes += scan.volume.remarks
            work.place, work.digest = scan.place, scan.digest
            session.earlier = self._earlier(work)
            await session.save(lambda: session.journal.begin(events))
        except BaseException as error:
            self.sessions.release(session.id)
            if session.reading.stop.is_set():
                raise closed() from error
            raise

    def _read(self, work: Work, reading: Reading) -> Scan:
        """Read the work's scan from where it was, whatever order the folders are in now. Raises OtherScan."""
        if work.place and isinstance(work.source, FolderSource):
            with suppress(NotThere):  # it may lie elsewhere now: its digest will tell
                place = self.reader.folders.source_of(work.place)
                work.source = place.model_copy(update={"series": work.source.series})
        scan = self.reader.read(work.source, reading)
        if reading.stop.is_set():
            scan.part.close()
            raise closed()
        if work.digest and scan.digest != work.digest:
            scan.part.close()
            given = f"a session on {work.name}, where another scan is now"
            raise OtherScan(given, "the scan that it was opened on", "put that scan back, or open the new one")
        return scan

    async def _refill(self, session: SavedSession, events: Sequence[Event]) -> None:
        """Read the scan and replay the steps. If that fails, the work stays saved and the place is freed."""
        work = session.journal.work
        if events and work.format < Work.model_fields["format"].default:
            session.notes.append(OTHER_MASKS)
        work.format = Work.model_fields["format"].default
        await self._begin(session, events)
        try:
            with session.held():
                for event in events:
                    await asyncio.wrap_future(session.run(partial(replay, event), work_bytes(event.prompts)))
        except BaseException:
            self.sessions.release(session.id)
            raise
        work.revision = max([work.revision, *(event.revision for event in events)])
        session.seconds = sum(event.seconds for event in events)
        if work.model != self.model:
            session.notes.append(f"made with the model {work.model}, computed again with {self.model}")
            work.model = self.model
        session.ready = None

    def _earlier(self, work: Work) -> list[Earlier]:
        """Other works on a scan of the same content; readers of a project do not see each other's."""
        if isinstance(work.source, CaseSource):
            return []
        found = [other for other in self.store.with_digest(work.digest) if other.id != work.id]
        return [
            Earlier(id=other.id, name=other.name, saved=self.store.saved(other.id).isoformat(timespec="seconds"))
            for other in found[:MAX_EARLIER]
        ]

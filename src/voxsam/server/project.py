"""Desk: where a server's readers work through its project, each scan with one of them, the next one read ahead.

Async, like voxsam.server.saved: the project's files are read and written on threads.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np

from voxsam.errors import InputError
from voxsam.interactive.session import Session
from voxsam.io import read_volume
from voxsam.network.promptable import Promptable
from voxsam.project import Project
from voxsam.project.records import Reading, check_name
from voxsam.project.summary import summarise
from voxsam.prompts import MaskHint, Point
from voxsam.region import Region
from voxsam.server.edits import KeptMask
from voxsam.server.errors import LOG, NotThere
from voxsam.server.learning import Learner
from voxsam.server.messages import CaseSource
from voxsam.server.saved import SavedSession, SavedSessions
from voxsam.server.store import Event, Work
from voxsam.volume import Volume
from voxsam.weights import load_model

AHEAD = 2  # scans that are read ahead, of different readers
TOUCH_S = 1.0  # between two signals to a learning that somebody is working


class Desk:
    """The project of a server. Raises InputError for anything a reader may not do."""

    def __init__(
        self, project: Project, saved: SavedSessions, learner: Learner, model: Promptable, name: str, device: str
    ) -> None:
        """`name` is what the project calls the loaded `model`."""
        self.project, self.saved, self.learner = project, saved, learner
        self.loaded, self.device = name, device
        self._names = {model.card.name: name}
        self._loading = asyncio.Lock()
        self._next: dict[str, str] = {}  # by reader, what is read ahead
        self._tasks: set[asyncio.Task[None]] = set()
        self._touched = 0.0
        saved.sessions.on_work = self._touch
        cases = {scan.name for scan in project.scans}
        for work, source in saved.store.on_cases(str(project.folder)):
            if source.case not in cases:  # forgotten since, or just before a crash
                saved.store.delete(work.id)

    # Work

    async def open(self, source: CaseSource, id: str | None) -> SavedSession:
        """Take a scan into a reader's work: as the reader left it, as it was done, or untouched."""
        case, reader = source.case, check_name("reader", source.reader)
        self._touch()
        await self.follow()
        before = await asyncio.to_thread(self.project.scan, case)
        await asyncio.to_thread(self.project.take, case, reader)
        try:
            session = await self._open(source, id)
        except BaseException:
            if before.state == "to do":
                await asyncio.to_thread(self.project.release, case)
            raise
        self._read_ahead(reader, case)
        return session

    async def _open(self, source: CaseSource, id: str | None) -> SavedSession:
        """The reader's session on a scan, if it has steps that were not saved as done; else a new one."""
        case, reader = source.case, source.reader
        reading = await asyncio.to_thread(lambda: self.project.readings(case).get(reader))
        for work in self._works(case, reader):
            if reading is None or self._is_newer(work.id, reading):
                return await self.saved.find(work.id)
            await self.saved.leave(work.id)  # a crash kept it from being closed
        session = await self.saved.open(source, case, id)
        if reading is not None:
            masks = await asyncio.to_thread(self._masks, case, reader)
            await session.step(Event(do="mask", masks=masks), lambda *_: None)
        return session

    def _works(self, case: str, reader: str | None = None) -> list[Work]:
        """The saved sessions on a scan, of one reader or of all, most recently used first."""
        works = self.saved.store.on_cases(str(self.project.folder))
        return [work for work, source in works if source.case == case and reader in (None, source.reader)]

    def _is_newer(self, id: str, reading: Reading) -> bool:
        """Whether a session has steps that are newer than the reading."""
        return self.saved.store.saved(id) > datetime.fromisoformat(reading.finished)

    def _masks(self, case: str, reader: str) -> tuple[KeptMask, ...]:
        labels = read_volume(self.project.mask_path(case, reader), labels=True).array
        numbers = [int(n) for n in np.unique(labels) if n]
        return tuple(KeptMask.of("", Region.of(labels == number)) for number in numbers)

    async def done(self, id: str, seconds: float | None) -> Reading:
        """Save a session's mask and clicks as done, close the session, and start learning if it is due."""
        work = self.saved.store.work(id)
        source = None if work is None else work.source
        if not isinstance(source, CaseSource):
            raise NotThere("a session that is on no scan of the project", "one that is", "open the scan again")
        case, reader = source.case, source.reader
        before = await asyncio.to_thread(lambda: self.project.readings(case).get(reader))
        if before is not None and not self._is_newer(id, before):  # it was saved, and the response lost
            await self.saved.leave(id)
            return before
        session = await self.saved.find(id)
        volume = session.require_volume()
        mask, clicks = await asyncio.wrap_future(session.run(_taken))

        if before is not None:  # a scan that is opened again has its mask back, but not its clicks
            clicks = [*(click.point for click in before.clicks), *clicks]
        spent = sum(filter(None, [seconds, before and before.seconds])) or None
        facts = {"reader": reader, "seconds": spent, "model": self._names.get(session.model), "scan": volume}
        with session.held():
            reading = await asyncio.to_thread(self.project.done, case, mask, clicks, **facts)
        await self.saved.leave(id)
        await asyncio.to_thread(self._learn_if_due)
        return reading

    async def skip(self, case: str, reader: str) -> None:
        """Leave a scan out; what was done in it is kept for when it is opened again."""
        await asyncio.to_thread(self.project.skip, case, check_name("reader", reader))
        for work in self._works(case, reader):
            self.saved.sessions.release(work.id)

    async def forget(self, case: str) -> tuple[str, ...]:
        """Delete a case, including its sessions, and retire the models trained on it; returns their names."""
        works = self._works(case)
        retired = await asyncio.to_thread(self.project.forget, case)
        for work in works:
            with suppress(NotThere):  # its reader was faster
                await self.saved.leave(work.id)
        self.saved.reader.drop_ahead()
        await self.follow()
        return retired

    def _read_ahead(self, reader: str, case: str) -> None:
        """Read what this reader will probably open next, during the work on this case."""

        async def read() -> None:
            others = set(list(self._next.values())[-AHEAD:])
            found = await asyncio.to_thread(self.project.upcoming, reader, case)
            self._next[reader] = next((name for name in found if name not in others and name != case), "")
            wanted = [name for name in list(self._next.values())[-AHEAD:] if name]
            async with self.saved.reading:
                await asyncio.to_thread(self.saved.reader.read_ahead, wanted)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                LOG.error("not read ahead", extra={"facts": {"error": type(error).__name__}})

        self._next.pop(reader, None)
        task = asyncio.create_task(read())
        self._tasks.add(task)
        task.add_done_callback(ended)

    # Models

    async def follow(self) -> None:
        """Switch to the model that the project has in use, whoever chose it. Open sessions keep theirs."""
        await self._load(await asyncio.to_thread(lambda: self.project.in_use))

    async def use(self, name: str) -> None:
        """Switch to a model. Raises InputError for one that is missing or cannot be read, changing nothing."""
        await asyncio.to_thread(self.project.check_model, name)
        await self._load(name, lambda: self.project.use(name))

    async def back(self) -> None:
        """Switch back to the model that was in use before."""
        await asyncio.to_thread(self.project.back)
        await self.follow()

    async def _load(self, name: str, then: Any = lambda: None) -> None:
        async with self._loading:
            worker = self.saved.sessions.worker
            if name != self.loaded:
                model = await asyncio.to_thread(lambda: load_model(self.project.model_source(name), self.device))
                await asyncio.to_thread(then)
                self._names[model.card.name] = name
                await asyncio.wrap_future(worker.submit("", lambda: setattr(worker, "model", model)))
                self.loaded = name
            else:
                await asyncio.to_thread(then)

    # Learning

    def _learn_if_due(self) -> None:
        """Start learning if the project has enough new scans; after a failed attempt, wait for as many again."""
        every = self.project.settings.learn_every
        if not every or self.learner.reason:
            return
        found = summarise(self.project)
        if min(found.new, found.counts["done"] - self.learner.tried) >= every:
            with suppress(InputError):  # what was done is kept all the same
                self.learner.start()

    def _touch(self) -> None:
        """Make a running learning pause."""
        now = time.monotonic()
        if now - self._touched > TOUCH_S:
            self._touched = now
            self.project.touch_busy()


def _taken(session: Session) -> tuple[Volume, list[Point]]:
    """The mask and the clicks of all objects, on the worker's thread; a box or a stroke counts as one click."""
    prompts = [prompt for found in session.segmented.values() for prompt in found.prediction.prompts]
    given = [prompt.points(session.volume.grid) for prompt in prompts if not isinstance(prompt, MaskHint)]
    return session.mask, [points[0] for points in given]

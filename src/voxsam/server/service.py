"""Service: the parts of one running server, made from its settings and given to every router."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

from voxsam.kernels.warm_up import warm_up
from voxsam.network.promptable import Promptable
from voxsam.project import Project
from voxsam.server.errors import LOG
from voxsam.server.folders import Folders
from voxsam.server.learning import Learner
from voxsam.server.observe import Metrics
from voxsam.server.project import Desk
from voxsam.server.saved import SavedSessions
from voxsam.server.scans import Reader, Uploads
from voxsam.server.sessions import Limits, Sessions
from voxsam.server.settings import Settings
from voxsam.server.store import Store
from voxsam.server.worker import Worker
from voxsam.weights import load_model

SWEEP_S = 1.0  # how often leases are checked; more often if they are short
TIDY_S = 600.0  # how often the store is tidied


@dataclass(frozen=True)
class Service:
    """What runs: `worker` and `sessions` serve every protocol, `saved` the page and programs, `desk` a project."""

    settings: Settings
    worker: Worker
    sessions: Sessions
    folders: Folders
    store: Store
    uploads: Uploads
    saved: SavedSessions
    metrics: Metrics
    desk: Desk | None = None
    sending: asyncio.Semaphore = field(default_factory=asyncio.Semaphore)  # held while a file is made: it takes memory
    _ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def start(cls, settings: Settings, model: Promptable | None = None) -> Service:
        """Load the model (unless one is given) and start. Raises InputError for anything that cannot be used."""
        Folders(settings.folders)  # errors in them are reported before the model is loaded
        project = None if settings.project is None else Project(settings.project)
        name = settings.model if project is None else project.in_use
        model = model or load_model(name if project is None else project.model_source(name), settings.device)
        store = Store(settings.state)
        folders = Folders(settings.folders, store.scratch, settings.upload_bytes)
        warm_up(model)
        worker = Worker(model)
        limits = Limits(settings.capacity, settings.memory_bytes, settings.idle_s, settings.alive_s)
        sessions = Sessions(worker, limits)
        reader = Reader(settings, folders, store, sessions.memory, project)
        saved, uploads = SavedSessions(sessions, reader, store), Uploads(store, settings.upload_bytes)
        desk = None
        if project is not None:
            learner = Learner(project, settings.learn_minutes, settings.learn_command)
            desk = Desk(project, saved, learner, model, name, settings.device)
        service = cls(settings, worker, sessions, folders, store, uploads, saved, Metrics(sessions), desk)
        threading.Thread(target=service._sweep, name="voxsam-sweep", daemon=True).start()
        return service

    @property
    def private(self) -> tuple[str, ...]:
        """The folders that no response may name, the state folder first."""
        projects = () if self.desk is None else (str(self.desk.project.folder),)
        return (str(self.store.folder), *projects, *map(str, self.folders.roots.values()))

    def close(self) -> None:
        """Release all sessions, whose work stays saved, and stop the worker. Calling it again does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            if self.desk is not None:
                self.desk.learner.close()
            self.sessions.close()
            self.worker.close()
            self.store.close()

    def _sweep(self) -> None:
        """End the sessions that have timed out and, less often, tidy the store.

        A thread, not a task of the event loop, because a mounted application is not told when it starts.
        """
        next_tidying = 0.0
        while not self._ended.wait(min(SWEEP_S, self.settings.alive_s / 4)):
            try:
                self.sessions.expire()
                if time.monotonic() >= next_tidying:
                    next_tidying = time.monotonic() + TIDY_S
                    self.store.tidy()
            except Exception as error:  # an occasional disk failure must not keep all sessions open for ever
                LOG.error("sweeping failed", extra={"facts": {"error": type(error).__name__}})

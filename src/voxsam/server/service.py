"""Service: the parts of one running server, made from its settings and given to every router."""

from __future__ import annotations

import asyncio
import threading
import time

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
from voxsam.server.sessions import Sessions
from voxsam.server.settings import Settings
from voxsam.server.store import Store
from voxsam.server.worker import Worker
from voxsam.weights import load_model

SWEEP_S = 1.0  # how often leases are checked; more often if they are short
TIDY_S = 600.0  # how often the store is tidied


class Service:
    """What runs: `worker` and `sessions` serve every protocol, `saved` the page and programs, `desk` a project.

    Loads the model, unless one is given. Raises InputError for anything that cannot be used.
    """

    def __init__(self, settings: Settings, model: Promptable | None = None) -> None:
        self.settings = settings
        Folders(settings.folders)  # errors in them are reported before the model is loaded
        project = None if settings.project is None else Project(settings.project)
        name = settings.model if project is None else project.in_use
        model = model or load_model(name if project is None else project.model_source(name), settings.device)
        self.store = Store(settings.state)
        self.folders = Folders(settings.folders, self.store.scratch, settings.upload_bytes)
        self.uploads = Uploads(self.store, settings.upload_bytes)
        warm_up(model)
        self.worker = Worker(model)
        self.sessions = Sessions(self.worker, settings)
        self.metrics = Metrics(self.sessions)
        reader = Reader(settings, self.folders, self.store, self.sessions.memory, project)
        self.saved = SavedSessions(self.sessions, reader, self.store)
        self.desk = None
        if project is not None:
            learner = Learner(project, settings.learn_minutes, settings.learn_command)
            self.desk = Desk(project, self.saved, learner, model, name, settings.device)
        self.sending = asyncio.Semaphore()  # held while a file is made: it takes memory
        self._ended = threading.Event()
        threading.Thread(target=self._sweep, name="voxsam-sweep", daemon=True).start()

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

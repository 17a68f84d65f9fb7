"""Learner: the one low-priority process in which a project's model learns, and its progress.

The process outlives a server that is killed, and the next server finds it by the project's lock. A server that is
stopped stops it; what it has done is kept, and the next server resumes it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from typing import Literal

from pydantic import BaseModel, Field

from voxsam.errors import InputError
from voxsam.extras import require_extra
from voxsam.project import Project
from voxsam.project.records import LEAST

COMMAND = (sys.executable, "-m", "voxsam.cli", "project", "learn")
ERROR = "voxsam: "  # starts the line with the command's error
STOP_S = 20.0  # that finishing a step may take


class Progress(BaseModel):
    """The progress of learning; `said` is its last message: what it does, what it found, or why it ended."""

    stage: Literal["idle", "beginning", "running", "paused", "cut off"]
    fraction: float = 0.0
    minutes: float = Field(description="That all of it takes, or may take where that is not measured yet.")
    said: str = Field(default="", description="What it has said last.")
    failed: bool = False


class Learner:
    """Starts and stops the learning of a project, and reports its progress. Not to be called on the event loop."""

    def __init__(self, project: Project, minutes: float, command: tuple[str, ...] = ()) -> None:
        self.project, self.minutes, self.command = project, minutes, command or COMMAND
        self.log = project.folder / ".learning.log"
        self.tried = 0  # cases that were done when it was last started
        self._is_own = not command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        if self.was_cut_off and not self.reason:
            self.start()

    @property
    def reason(self) -> str:
        """Why it cannot learn now, in words; "" if it can."""
        count = len(self.project.done_cases())
        if count < LEAST:
            return f"{LEAST - count} more scan{'s' * (LEAST - count != 1)} must be done first"
        try:
            if self._is_own:
                require_extra("lab", "learning")
        except InputError as error:
            return f"{error.given}: {error.remedy}"
        return ""

    @property
    def was_cut_off(self) -> bool:
        """Whether a learning was begun that is not running now."""
        return (self.project.learning / "plan.json").is_file() and self.project.learning_now() is None

    def start(self) -> None:
        """Start learning, or resume what was cut off; no effect while it runs. Raises InputError if it cannot start."""
        with self._lock:
            if self._runs or self.project.learning_now() is not None:
                return
            if reason := self.reason:
                raise InputError(
                    f"a learning that cannot begin ({reason})", "scans that are done", "see docs/project.md"
                )
            self.tried = len(self.project.done_cases())
            options = [str(self.project.folder), "--minutes", str(self.minutes)]
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*self.command, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl+C in the server's terminal is for the server
                )

    def progress(self) -> Progress:
        """The progress now."""
        found = self.project.learning_now()
        if found:
            known = {name: found[name] for name in ("fraction", "minutes", "said") if name in found}
            stage = "paused" if self.project.is_busy() else "running"
            return Progress(stage=stage, **{"minutes": self.minutes, **known})
        if found is not None or self._runs:
            return Progress(stage="beginning", minutes=self.minutes)
        stage = "cut off" if self.was_cut_off else "idle"
        if self._process is None or self._process.returncode == 0:
            return Progress(stage=stage, minutes=self.minutes)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        said = errors[-1] if errors else "its process was ended; press the button to go on"
        return Progress(stage=stage, minutes=self.minutes, said=said, failed=True)

    def stop(self) -> None:
        """Stop learning, whoever started it, and delete what it has done."""
        with self._lock:
            with self.project.locked():
                shutil.rmtree(self.project.learning, ignore_errors=True)  # without its plan it ends at the next step
            self._end()

    def close(self) -> None:
        """Stop what this server has started, so that the next one can resume it."""
        with self._lock:
            self._end()

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

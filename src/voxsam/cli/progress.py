"""Progress on stderr: nothing for two seconds, then a bar on a terminal, or otherwise one plain line per stage."""

from __future__ import annotations

import sys
import threading
from typing import Any

DELAY_S = 2.0


class ProgressBar:
    """A context manager to call with a stage's name and, if known, the fraction done (0..1).

    Session takes it as its `progress`. With `quiet` it never shows anything.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._stage, self._fraction = "", None
        self._lock = threading.RLock()
        self._open = False
        self._visible = False
        self._bar: Any = None
        self._task: Any = None
        self._timer = None if quiet else threading.Timer(DELAY_S, self._appear)

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        """Report what is being done now."""
        with self._lock:
            is_new = stage != self._stage
            self._stage, self._fraction = stage, fraction
            if self._visible:
                self._draw(is_new)

    def __enter__(self) -> ProgressBar:
        self._open = True
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._open = self._visible = False
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _appear(self) -> None:
        with self._lock:
            if not self._open:
                return
            if sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bar

                columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
                self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
                self._task = self._bar.add_task("", total=None)
                self._bar.start()
            self._visible = True
            self._draw(is_new=True)

    def _draw(self, is_new: bool) -> None:
        if self._bar is not None:
            total, done = (None, 0.0) if self._fraction is None else (1.0, self._fraction)
            self._bar.update(self._task, description=self._stage, total=total, completed=done)
        elif is_new and self._stage:
            print(f"voxsam: {self._stage} ...", file=sys.stderr, flush=True)

"""Store: the state folder of one server: what clients did, what they sent, and files in transit, for its owner alone.

    STATE/.lock               held by the one server that uses the folder
    STATE/works/ID.jsonl      a client's work: a line that names its scan, then a line for each event
    STATE/works/ID.json       the same from an earlier version, with all steps in one object; read, then replaced
    STATE/uploads/ID/FILE     what a client sent; removed with its work, or after an hour if no work needs it
    STATE/scratch/            downloads and unpacked files, while they are in use

A line is on disk before its event is answered; one that a crash cut off is ignored. Long lines are compressed. When a
work is resumed, its file is rewritten with what its session still needs.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from voxsam.atomic import make_folder
from voxsam.errors import FileError
from voxsam.interactive.history import UNDO_STEPS
from voxsam.server.edits import AnyEdit, Description, KeptMask
from voxsam.server.errors import NotThere, TooLarge
from voxsam.server.messages import AnyPrompt, AnySource, CaseSource, UploadSource

NAME = re.compile(r"[A-Za-z0-9_-]{8,64}")
KEPT_DAYS = 30  # that a work is kept after it was last opened
DAY_S = 86400.0
ORPHAN_S = 3600.0  # that an upload may wait to be opened
PACKED_BYTES = 1024  # longer lines are compressed
MAX_WORK_BYTES = 16 << 20  # of a work's lines, uncompressed


class Event(BaseModel):
    """Something that a client did. `object` was current before it (for "select": the one selected), `current` after it.

    `number` is the object that is deleted, locked or described, or loses its prompt `index`; `on` is what a switch
    ("lock", "overlap", "keep_clicked") is set to. "select" and "describe" are not undo steps.
    """

    model_config = ConfigDict(extra="forbid")

    do: Literal[
        "prompt",
        "remove_prompt",
        "edit",
        "mask",
        "new_object",
        "delete",
        "lock",
        "overlap",
        "keep_clicked",
        "reset",
        "undo",
        "redo",
        "select",
        "describe",
    ]
    object: int = Field(default=1, ge=1)
    prompts: tuple[AnyPrompt, ...] = ()
    edits: tuple[AnyEdit, ...] = ()
    masks: tuple[KeptMask, ...] = ()
    number: int = Field(default=1, ge=1)
    index: int = 0
    on: bool = True
    description: Description | None = None
    current: int = Field(default=1, ge=1)
    revision: int = 0
    seconds: float = 0.0  # that it took


class Work(BaseModel):
    """What one client works on: the scan it opened, the scan's location and digest, and the model.

    `place` and `digest` are empty in works of earlier versions, which identified a scan by its path alone. Those of
    format 2 gave a voxel to the most probable object, and kept components without a click.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = 3
    id: str
    name: str
    model: str
    source: AnySource
    place: str = ""
    digest: str = ""
    revision: int = 0


def compact(events: Iterable[Event]) -> list[Event]:
    """The fewest events that bring a session to the same state, with the same undo and redo.

    Steps that were undone and then replaced are left out, and so are those before a reset that undo cannot reach.
    """
    past: list[Event] = []
    future: list[Event] = []
    described: dict[int, Event] = {}
    last: Event | None = None
    for last in events:
        if last.do == "undo":
            future += [past.pop()] if past else []
        elif last.do == "redo":
            past += [future.pop()] if future else []
        elif last.do == "describe":
            before = described.get(last.number, last).description or Description()
            changes = last.description or Description()
            both = before.model_dump(exclude_none=True) | changes.model_dump(exclude_none=True)
            described[last.number] = last.model_copy(update={"description": Description.model_validate(both)})
        elif last.do != "select":
            if last.do == "new_object":
                described.pop(last.current, None)
            past.append(last)
            future.clear()
    if last is None:
        return []
    resets = [at for at, event in enumerate(past[: max(0, len(past) - UNDO_STEPS)]) if event.do == "reset"]
    kept = past[resets[-1] :] if resets else past
    end = Event(do="select", object=last.current, current=last.current, revision=last.revision)
    return [*kept, *reversed(future), *described.values(), *[Event(do="undo")] * len(future), end]


class Journal:
    """A work's file, to which lines are added. Lines that could not be written wait, and are written with the next."""

    def __init__(self, path: Path, work: Work, known: dict[str, Work]) -> None:
        self.path, self.work, self._known = path, work, known
        self.size = 0  # of what is complete on disk
        self.text_bytes = 0  # of all lines, uncompressed
        self._waiting = b""

    @property
    def waiting_bytes(self) -> int:
        """The bytes that are not on disk yet."""
        return len(self._waiting)

    def begin(self, events: Iterable[Event] = ()) -> None:
        """Write the file afresh, whole or not at all. Raises FileError."""
        self.size = self.text_bytes = 0
        self._waiting = b"".join(map(self._line, (self.work, *events)))
        self._known[self.work.id] = self.work
        self._write()
        self.path.with_suffix(".json").unlink(missing_ok=True)  # of an earlier version

    def add(self, event: Event) -> None:
        """Add a line. Raises FileError if it cannot be written."""
        self._waiting += self._line(event)
        self._write()

    def check_room(self, event: Event) -> None:
        """Raises TooLarge if the event would make the work too large, even without events that nothing needs."""
        room = MAX_WORK_BYTES - len(event.model_dump_json())
        if self.text_bytes > room and self.size and not self._waiting:
            self.begin(compact(_read(self.path)[1]))
        if self.text_bytes > room:
            given, expected = "a session of too many steps", f"at most {MAX_WORK_BYTES >> 20} MiB of them"
            raise TooLarge(given, expected, "close this session, and open the scan again")

    def _line(self, item: Work | Event) -> bytes:
        text = item.model_dump_json().encode()
        self.text_bytes += len(text)
        return (b"z" + base64.b64encode(zlib.compress(text, 1)) if len(text) > PACKED_BYTES else text) + b"\n"

    def _write(self) -> None:
        try:
            if self.size:
                with open(self.path, "r+b") as file:
                    _append(file, self.size, self._waiting)
            else:
                _replace(self.path, self._waiting)
        except OSError as error:
            raise FileError("a step that could not be saved", "a disk with room", "see the server's log") from error
        self.size += len(self._waiting)
        self._waiting = b""


class Store:
    """A state folder, locked until `close`; None: a temporary one, which is removed when the server stops.

    Raises FileError if the folder cannot be made or written, or if another server works in it.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="voxsam-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or "").absolute()
        self.works, self.uploads, self.scratch = (self.folder / name for name in ("works", "uploads", "scratch"))
        for part in (self.folder, self.works, self.uploads, self.scratch):
            make_folder(part)
            try:
                part.chmod(0o700)
            except OSError as error:
                given = f"{part} ({error.strerror})"
                raise FileError(given, "a state folder of your own", "choose another with --state") from error
        self._lock = FileLock(self.folder / ".lock", timeout=0, mode=0o600, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            given = f"the state folder {self.folder}, in which another server works"
            raise FileError(given, "a folder for each server", "stop the other, or choose another --state") from None
        for left in self.scratch.iterdir():  # left by a server that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._in_use: Counter[str] = Counter()  # uploads that are being sent or read
        self._known = {work.id: work for work in map(_work_of, self.works.glob("*.json*")) if work is not None}

    # Works

    def create(self, work: Work) -> Journal:
        """The journal of a new work; its file is made by `begin`."""
        return Journal(self._file(work.id), work, self._known)

    def load(self, name: str) -> tuple[Journal, list[Event]]:
        """A work and those of its events that its session needs; it then counts as opened today.

        Raises NotThere, and FileError if its file is damaged.
        """
        file = self._file(name)
        file = file if file.exists() else file.with_suffix(".json")
        work, events = _read(file)
        with suppress(OSError):
            os.utime(file)
        return self.create(work), compact(events)

    def work(self, name: str) -> Work | None:
        """The work of this name, if there is one."""
        return self._known.get(name)

    def saved(self, name: str) -> datetime:
        """When a work was last saved."""
        return datetime.fromtimestamp(time.time() - _age_s(self._file(name)), UTC)

    def with_digest(self, digest: str) -> list[Work]:
        """The works on a scan with this digest, most recently used first, except those on a project's scans."""
        works = [work for work in tuple(self._known.values()) if not isinstance(work.source, CaseSource)]
        return self._latest(work for work in works if digest and work.digest == digest)

    def on_cases(self, project: str) -> list[tuple[Work, CaseSource]]:
        """The works on scans of the project at this path, most recently used first."""
        works = self._latest(work for work in tuple(self._known.values()) if work.place == project)
        return [(work, work.source) for work in works if isinstance(work.source, CaseSource)]

    def _latest(self, works: Iterable[Work]) -> list[Work]:
        return sorted(works, key=lambda work: _age_s(self._file(work.id)))

    def delete(self, name: str) -> None:
        """Delete a work, and its upload unless another work needs it. Raises NotThere if there is none."""
        file = self._file(name)
        work = self._known.pop(name, None)
        if work is None:
            raise _no_work()
        for path in (file, file.with_suffix(".json")):
            path.unlink(missing_ok=True)
        if isinstance(work.source, UploadSource) and work.source.upload not in self._needed():
            shutil.rmtree(self.uploads / work.source.upload, ignore_errors=True)

    def tidy(self) -> None:
        """Remove works that were not opened for long, uploads that no work needs, and files cut off by a crash."""
        for file in self.works.iterdir():
            is_work = file.suffix in (".jsonl", ".json") and not file.name.startswith(".")
            if _age_s(file) > (KEPT_DAYS * DAY_S if is_work else ORPHAN_S):
                file.unlink(missing_ok=True)
                self._known.pop(file.stem, None)
        needed = self._needed()
        for folder in (*self.uploads.iterdir(), *self.scratch.iterdir()):
            if folder.name not in needed and not self._in_use[folder.name] and _age_s(folder) > ORPHAN_S:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Unlock the folder for another server; a temporary one is removed."""
        self._lock.release()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _file(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise _no_work()
        return self.works / f"{name}.jsonl"

    def _needed(self) -> set[str]:
        """The uploads of all works."""
        sources = [work.source for work in tuple(self._known.values())]
        return {source.upload for source in sources if isinstance(source, UploadSource)}

    # Files

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """A new folder that exists for the duration of the block."""
        with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def new_upload(self) -> str:
        """Make the folder of a new upload and return its name."""
        name = secrets.token_urlsafe(18)
        (self.uploads / name).mkdir(mode=0o700)
        return name

    def upload_folder(self, name: str) -> Path:
        """The folder of an upload. Raises NotThere if there is none of that name."""
        folder = self.uploads / name
        if not NAME.fullmatch(name) or not folder.is_dir():
            raise NotThere("an upload that is not here", "the id of an upload", "send the file again")
        return folder

    @contextmanager
    def using(self, upload: str) -> Iterator[None]:
        """Keep an upload from being tidied away within the block."""
        self._in_use[upload] += 1
        try:
            yield
        finally:
            self._in_use[upload] -= 1


# Lines


def _unpacked(line: bytes) -> bytes:
    return zlib.decompress(base64.b64decode(line[1:], validate=True)) if line.startswith(b"z") else line


def _read(file: Path) -> tuple[Work, list[Event]]:
    """A work and its events; a last line that was cut off is ignored. Raises NotThere, FileError for damage."""
    try:
        content = file.read_bytes()
        if file.suffix == ".json":
            return _earlier(json.loads(content))
        work, *events = [_unpacked(line[:-1]) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
        return Work.model_validate_json(work), [Event.model_validate_json(event) for event in events]
    except FileNotFoundError:
        raise _no_work() from None
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error, OSError) as error:
        raise FileError("a work whose file is damaged", "a work of this server", "open the scan again") from error


def _earlier(kept: dict[str, Any]) -> tuple[Work, list[Event]]:
    """A work of format 1: `script` has all steps, of which the first `done` are in effect, and the current object."""
    script = {"steps": [], "done": 0, "current": 1, **kept.pop("script", {})}
    steps = [Event.model_validate(step) for step in script["steps"]]
    undone = [Event(do="undo")] * (len(steps) - script["done"])
    end = Event(do="select", object=script["current"], current=script["current"], revision=kept.get("revision", 0))
    return Work.model_validate({**kept, "format": 2}), [*steps, *undone, end]


def _work_of(file: Path) -> Work | None:
    """The work in a file, without its events; None for a damaged file."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, OSError, zlib.error, NotThere, FileError):
        if file.suffix == ".json":
            return _read(file)[0]
        with open(file, "rb") as stream:
            return Work.model_validate_json(_unpacked(stream.readline()))
    return None


def _append(file: Any, size: int, data: bytes) -> None:
    """Write data after the first `size` bytes, which are complete, and sync it to disk."""
    file.truncate(size)  # drops what was cut off before
    file.seek(size)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _replace(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, for its owner alone."""
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        with open(temporary, "xb", opener=private) as file:
            _append(file, 0, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def private(path: str, flags: int) -> int:
    """An opener that makes new files accessible to their owner alone."""
    return os.open(path, flags, 0o600)


def _age_s(path: Path) -> float:
    """Seconds since a file was changed; 0 if it no longer exists."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _no_work() -> NotThere:
    return NotThere("a session that is not here", "the id of an open or saved session", "open the scan again")

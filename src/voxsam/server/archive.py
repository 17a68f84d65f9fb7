"""Archive: the state folder. The works, one JSON file each, and uploads under random names; a restart finds them again.

    STATE/works/ID.json       what a client opened and did, written whole or not at all after every step
    STATE/uploads/ID/FILE     what a client sent; removed with its work, or after an hour if no work needs it
    STATE/scratch/            downloads while they are sent
    STATE/.lock               held by the one server that works here

The folder is for its owner alone: it may hold patients' scans.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import FileError
from voxsam.server.errors import NotThere
from voxsam.server.sources import Source, UploadSource
from voxsam.server.steps import Script

NAME = re.compile(r"[A-Za-z0-9_-]{8,64}")
KEPT_DAYS = 30  # that a work nobody opened stays
DAY_S = 86400.0
ORPHAN_S = 3600.0  # that an upload may wait to be opened


class Work(BaseModel):
    """What one client does: the scan it opened, under which name, with which model, and every step."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    id: str
    name: str
    model: str
    source: Source
    script: Script = Script()
    revision: int = 0


class Archive:
    """A state folder, locked until `close`; None: a temporary one, which is gone when the server stops.

    Raises FileError if the folder cannot be made or written, or if another server works in it.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="voxsam-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or "")
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

    def save(self, work: Work) -> None:
        """Keep a work as it is now. Raises FileError."""
        with atomic_path(self._file(work.id)) as temporary:
            temporary.write_text(work.model_dump_json(), encoding="utf-8")

    def load(self, name: str) -> Work:
        """The work of a name, which then counts as opened today. Raises NotThere, FileError if its file is damaged."""
        try:
            work = Work.model_validate_json(self._file(name).read_bytes())
        except FileNotFoundError:
            raise _no_work() from None
        except (ValidationError, OSError) as error:
            raise FileError("a work whose file is damaged", "a work of this server", "open the scan again") from error
        with suppress(OSError):
            os.utime(self._file(name))
        return work

    def delete(self, name: str) -> None:
        """Forget a work, and its upload unless another work needs it. Raises NotThere if there is none."""
        work = self.load(name)
        self._file(name).unlink(missing_ok=True)
        if isinstance(work.source, UploadSource) and work.source.upload not in self._needed():
            shutil.rmtree(self.upload_folder(work.source.upload), ignore_errors=True)

    def new_upload(self) -> str:
        """A name for an upload, its folder made."""
        name = secrets.token_urlsafe(18)
        (self.uploads / name).mkdir(mode=0o700)
        return name

    def upload_folder(self, name: str) -> Path:
        """Where an upload lies. Raises NotThere if there is none of that name."""
        folder = self.uploads / name
        if not NAME.fullmatch(name) or not folder.is_dir():
            raise NotThere("an upload that is not here", "the id of an upload", "send the file again")
        return folder

    def tidy(self, kept_days: float = KEPT_DAYS, orphan_s: float = ORPHAN_S) -> None:
        """Remove works that nobody opened for long, uploads that no work needs, and files cut off by a crash."""
        for file in self.works.iterdir():
            limit = kept_days * DAY_S if file.suffix == ".json" and not file.name.startswith(".") else orphan_s
            if _age_s(file) > limit:
                file.unlink(missing_ok=True)
        needed = self._needed()
        for folder in (*self.uploads.iterdir(), *self.scratch.iterdir()):
            if folder.name not in needed and _age_s(folder) > orphan_s:
                shutil.rmtree(folder, ignore_errors=True)

    def scratch_folder(self) -> Path:
        """A new folder for a file that is made to be sent; whoever asked removes it."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def close(self) -> None:
        """Let another server work in the folder; a temporary one is removed."""
        self._lock.release()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _file(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise _no_work()
        return self.works / f"{name}.json"

    def _needed(self) -> set[str]:
        """The uploads of all works."""
        needed = set()
        for file in self.works.glob("*.json"):
            try:
                source = Work.model_validate_json(file.read_bytes()).source
            except (ValidationError, OSError):
                continue
            if isinstance(source, UploadSource):
                needed.add(source.upload)
        return needed


def _age_s(path: Path) -> float:
    """Seconds since it was changed; 0 for what went away meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _no_work() -> NotThere:
    return NotThere("a session that is not here", "the id of an open or saved session", "open the scan again")

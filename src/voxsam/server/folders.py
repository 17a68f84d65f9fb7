"""Served folders: the contents of the folders and DICOMweb archives that a server offers, and nothing else."""

from __future__ import annotations

import hashlib
import re
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from voxsam.batch.listing import SCAN_SUFFIXES
from voxsam.errors import FileError
from voxsam.io import is_address
from voxsam.io.dicom import has_dicom
from voxsam.io.dicom.web import UID, Archive
from voxsam.server.errors import Forbidden, NotThere, TooLarge
from voxsam.server.messages import FolderSource

MAX_ENTRIES = 10_000  # of a folder that are examined
MAX_FILES = 20_000  # of a series, or of one upload
ODD_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")  # of a name that is not UTF-8, as it is shown


class Folder(BaseModel):
    """A folder that the server offers."""

    id: str
    name: str


class Entry(BaseModel):
    """An entry of a folder: a folder, a scan in one file, or a folder that is one DICOM series."""

    name: str
    kind: Literal["folder", "scan", "series"]
    path: str = Field(description="Relative to the served folder; send it back to open the entry.")
    bytes: int = Field(description="Of a scan's file; 0 otherwise.")


def shown(name: str) -> str:
    """A file's name as valid UTF-8: other bytes are written as `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _hidden(name: str) -> str:
    """The file's name, from its shown form: the inverse of `shown`."""
    return ODD_BYTE.sub(lambda byte: chr(0xDC00 + int(byte[1], 16)), name)


class Folders:
    """The folders named on the command line, and the DICOMweb archives, whose series are fetched into `scratch` when
    they are opened. Raises FileError for anything else.
    """

    def __init__(self, folders: tuple[Path, ...], scratch: Path | None = None, max_bytes: int = 0) -> None:
        named = {str(number): folder for number, folder in enumerate(folders)}
        self.roots = {number: folder.resolve() for number, folder in named.items() if not is_address(folder)}
        self.archives = {number: Archive.at(folder) for number, folder in named.items() if is_address(folder)}
        self.scratch, self.max_bytes = scratch, max_bytes
        for root in self.roots.values():
            if not root.is_dir():
                raise FileError(f"{root} is no folder", "a folder of scans", "check the path")

    @property
    def listed(self) -> list[Folder]:
        """The folders and archives that a client may open."""
        folders = [Folder(id=number, name=shown(root.name or str(root))) for number, root in self.roots.items()]
        return [*folders, *(Folder(id=number, name=archive.host) for number, archive in self.archives.items())]

    def find(self, number: str, relative: str) -> Path:
        """The file or folder at a path under a served folder; links are followed only if they stay inside.

        Raises NotThere, and Forbidden for anything outside, which is decided by the path alone where that shows it.
        """
        root = self.roots.get(number)
        if root is None:
            raise NotThere("a folder that is not served", "the id of a folder in /api/info", "choose one of those")
        relative = _hidden(relative)
        if "\0" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts or "\\" in relative:
            raise _outside()
        try:
            path = (root / relative).resolve()
            if not path.is_relative_to(root):
                raise _outside()
            if not path.exists():
                raise NotThere("a path that is not here", "a path listed by /api/files", "list the folder again")
        except (OSError, RuntimeError, ValueError) as error:  # a cycle of links, a name that is too long
            raise NotThere("a path that cannot be looked up", "a path listed by /api/files", "list it again") from error
        return path

    def find_scan(self, number: str, relative: str) -> Path:
        """As `find`, for something to read: no file of a series may lie outside either."""
        if number in self.archives:
            return self._fetched(self.archives[number], relative)
        path = self.find(number, relative)
        if path.is_dir():
            for count, file in enumerate(path.rglob("*")):
                if count >= MAX_FILES:
                    raise TooLarge("a folder of too many files", f"at most {MAX_FILES:,}", "open one series of it")
                if file.is_symlink() and not file.resolve().is_relative_to(self.roots[number]):
                    raise _outside()
        return path

    def source_of(self, place: str) -> FolderSource:
        """The source of a path, whatever order the folders are named in now. Raises NotThere if it is not served."""
        path = Path(_hidden(place))
        key, _, uids = path.name.partition("-")
        for number, archive in self.archives.items():
            if key == _key(archive):
                return FolderSource(folder=number, path=uids.replace("-", "/"))
        for number, root in self.roots.items():
            if path.is_relative_to(root):
                return FolderSource(folder=number, path=shown(path.relative_to(root).as_posix()))
        raise NotThere("a session on a scan that is not served now", "its folder", "start the server with that folder")

    def entries(self, number: str, relative: str) -> list[Entry]:
        """The entries of a folder, folders first, by name; hidden files, non-scans and links out of it are left out.

        For an archive, its studies, latest first, or the series of a study.
        """
        if number in self.archives:
            archive = self.archives[number]
            if not relative:
                return [Entry(name=f.description, kind="folder", path=f.uid, bytes=0) for f in archive.studies()]
            if not UID.fullmatch(relative):
                raise NotThere("no study", "one that the archive lists", "list it again")
            found = archive.series_of(relative)
            return [Entry(name=f.description, kind="series", path=f"{relative}/{f.uid}", bytes=0) for f in found]
        folder, root = self.find(number, relative), self.roots[number]
        if not folder.is_dir():
            raise NotThere("a file", "a folder", "open it as a scan")
        try:
            paths = list(islice(folder.iterdir(), MAX_ENTRIES))
        except OSError as error:  # not readable, or just removed
            raise NotThere("a folder that cannot be read", "one that the server may read", "choose another") from error
        found = [self._entry(path, root, Path(relative)) for path in paths]
        return sorted((entry for entry in found if entry), key=lambda e: (e.kind == "scan", e.name.lower()))

    def _fetched(self, archive: Archive, relative: str) -> Path:
        """A folder with the files of an archive's series; one fetched within the last hour is used again."""
        study, _, series = relative.partition("/")
        if self.scratch is None or not UID.fullmatch(study) or not UID.fullmatch(series):
            raise NotThere("no series of an archive", "one that it lists", "list it again")
        folder = self.scratch / f"{_key(archive)}-{study}-{series}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=self.scratch) as temporary:
                coming = Path(temporary) / "series"
                coming.mkdir(mode=0o700)
                archive.retrieve(study, series, coming, self.max_bytes)
                with suppress(FileExistsError, OSError):  # someone else was faster
                    coming.rename(folder)
        folder.touch()
        return folder

    def _entry(self, path: Path, root: Path, relative: Path) -> Entry | None:
        try:
            if path.name.startswith(".") or not path.resolve().is_relative_to(root):
                return None
            name, place = shown(path.name), shown((relative / path.name).as_posix())
            if path.is_dir():
                files = (p for p in islice(path.iterdir(), MAX_ENTRIES) if p.is_file() and p.name[0] != ".")
                return Entry(name=name, kind="series" if has_dicom(files) else "folder", path=place, bytes=0)
            if path.name.lower().endswith(SCAN_SUFFIXES):
                return Entry(name=name, kind="scan", path=place, bytes=path.stat().st_size)
        except (OSError, RuntimeError):  # just removed, or not readable
            pass
        return None


def _key(archive: Archive) -> str:
    """A short name of an archive, the same each time the server runs."""
    return hashlib.sha256(archive.address.encode()).hexdigest()[:16]


def _outside() -> Forbidden:
    return Forbidden("a path outside the served folders", "a path inside one", "name its folder on the command line")

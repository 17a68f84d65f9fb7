"""The folders that were named on the command line: what is in them, and nothing that lies outside."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from voxsam.errors import FileError
from voxsam.io import SUFFIXES
from voxsam.server.errors import Forbidden, NotThere, TooLarge

SCAN_SUFFIXES = (*SUFFIXES, ".zip")
MAX_ENTRIES = 10_000  # of a folder that are looked at
MAX_FILES = 20_000  # of a series; their places are checked
LOOKED_AT = 4  # files of a folder whose first bytes say whether they are DICOM
MAGIC = slice(128, 132)  # where "DICM" stands (PS3.10 7.1)


class Folder(BaseModel):
    """A folder that the server was told to offer."""

    id: str
    name: str


class Entry(BaseModel):
    """What a folder holds: a folder, a scan in one file, or a folder that is one DICOM series."""

    name: str
    kind: Literal["folder", "scan", "series"]
    path: str = Field(description="Relative to the served folder; send it back to open the entry.")
    bytes: int = Field(description="Of a scan's file; 0 otherwise.")


class Folders:
    """Raises FileError for a folder that is none."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._roots = {str(number): folder.resolve() for number, folder in enumerate(folders)}
        for root in self._roots.values():
            if not root.is_dir():
                raise FileError(f"{root} is no folder", "a folder of scans", "check the path")

    @property
    def listed(self) -> list[Folder]:
        """What a client may ask for."""
        return [Folder(id=number, name=root.name or str(root)) for number, root in self._roots.items()]

    def find(self, number: str, relative: str) -> Path:
        """The file or folder at a path under a served folder, through links only as far as they stay inside.

        Raises NotThere, and Forbidden for whatever lies outside: told apart by the path alone where it says so.
        """
        root = self._roots.get(number)
        if root is None:
            raise NotThere("a folder that is not served", "the id of a folder in /api/info", "choose one of those")
        if "\0" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts or "\\" in relative:
            raise _outside()
        try:
            path = (root / relative).resolve()
            if not path.is_relative_to(root):
                raise _outside()
            if not path.exists():
                raise NotThere("a path that is not here", "a path listed by /api/files", "list the folder again")
        except (OSError, RuntimeError, ValueError) as error:  # a ring of links, a name that is too long
            raise NotThere("a path that cannot be looked up", "a path listed by /api/files", "list it again") from error
        return path

    def find_scan(self, number: str, relative: str) -> Path:
        """As `find`, for something to read: no file of a series may lie outside either."""
        path = self.find(number, relative)
        if path.is_dir():
            for count, file in enumerate(path.rglob("*")):
                if count >= MAX_FILES:
                    raise TooLarge("a folder of too many files", f"at most {MAX_FILES:,}", "open one series of it")
                if file.is_symlink() and not file.resolve().is_relative_to(self._roots[number]):
                    raise _outside()
        return path

    def entries(self, number: str, relative: str) -> list[Entry]:
        """What is in a folder: folders first, by name; what is hidden, or no scan, or leads outside, is left out."""
        folder, root = self.find(number, relative), self._roots[number]
        if not folder.is_dir():
            raise NotThere("a file", "a folder", "open it as a scan")
        try:
            paths = list(islice(folder.iterdir(), MAX_ENTRIES))
        except OSError as error:  # may not be looked into, or has just gone
            raise NotThere("a folder that cannot be read", "one that the server may read", "choose another") from error
        found = [self._entry(path, root, Path(relative)) for path in paths]
        return sorted((entry for entry in found if entry), key=lambda e: (e.kind == "scan", e.name.lower()))

    def _entry(self, path: Path, root: Path, relative: Path) -> Entry | None:
        try:
            if path.name.startswith(".") or not path.resolve().is_relative_to(root):
                return None
            place = (relative / path.name).as_posix()
            if path.is_dir():
                return Entry(name=path.name, kind="series" if _is_series(path) else "folder", path=place, bytes=0)
            if path.name.lower().endswith(SCAN_SUFFIXES):
                return Entry(name=path.name, kind="scan", path=place, bytes=path.stat().st_size)
        except (OSError, RuntimeError):  # it went away, or may not be looked at
            pass
        return None


def _is_series(folder: Path) -> bool:
    """Whether the first files of a folder are DICOM."""
    files = (path for path in islice(folder.iterdir(), MAX_ENTRIES) if path.is_file() and path.name[0] != ".")
    return any(_is_dicom(file) for file in islice(files, LOOKED_AT))


def _is_dicom(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(MAGIC.stop)[MAGIC] == b"DICM"


def _outside() -> Forbidden:
    return Forbidden("a path outside the served folders", "a path inside one", "name its folder on the command line")

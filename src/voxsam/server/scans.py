"""Read scans from folders, a project and uploads within the server's limits, and receive uploads."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from voxsam.batch.listing import SCAN_SUFFIXES
from voxsam.errors import ImageError, InputError
from voxsam.io import NIFTI_SUFFIXES, guarded, read_volume
from voxsam.io.checks import at_most
from voxsam.io.dicom import has_dicom
from voxsam.io.objects import MaskObject
from voxsam.project import Project
from voxsam.seen import content
from voxsam.server.errors import Full, NotThere, OtherScan, TooLarge, no_project, no_room
from voxsam.server.folders import MAX_FILES, Folders, shown
from voxsam.server.messages import AnySource, CaseSource, DemoSource, FolderSource, Source, UploadSource
from voxsam.server.sessions import Memory, Part
from voxsam.server.settings import Settings
from voxsam.server.store import Store, private
from voxsam.volume import Volume

DEMO_NAME, SENT_SERIES = "generated scan", "DICOM series"
SMALL_VOXELS = 1 << 24  # of a NIfTI file that is read in this process: starting another would take longer
VOXEL_BYTES = 12  # that a voxel of it may take while reading: stored as float64, converted to float32
UNPACKED_RATIO = 12  # a scan that takes more than half of the memory takes at most this many times its file's size
SPARE_BYTES = 1 << 30  # that must stay free on the disk
PIECE_BYTES = 1 << 20  # of an upload that are written at once
UNSAFE = re.compile(r"[^\w.\-]+", re.ASCII)
LONGEST_NAME = 100
# Names that any file system accepts as they are; Windows has devices of the excluded names.
PLAIN = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))\w([\w.,+=@~#%&'!()\[\]{}\- ]{0,59}\w)?")
PREFIX = re.compile(r"[0-9a-f]{12}-")  # put before a name that was not plain, or was taken
DETACHED_HEADERS = (".mhd", ".nhdr", ".hdr", ".hdr.gz")  # their voxels lie in another file

T = TypeVar("T")


@dataclass(frozen=True)
class Scan:
    """A scan that was read, the memory reserved for it, where it was, and a digest of its voxels and grid."""

    volume: Volume
    part: Part
    place: str
    digest: str


class Reader:
    """Reads scans from every kind of source; to be called by one thread at a time, as scans are large."""

    def __init__(
        self, settings: Settings, folders: Folders, store: Store, memory: Memory, project: Project | None = None
    ) -> None:
        self.settings, self.folders, self.store, self.memory = settings, folders, store, memory
        self.project = project
        self._ahead: dict[str, tuple[Volume, Part]] = {}  # by case
        memory.spare = self.drop_ahead

    def read(self, source: AnySource, reading: guarded.Reading | None = None) -> Scan:
        """Read a scan. Raises InputError if it is not a scan, missing, outside the served folders, or too large; Full.

        If `reading` is stopped, it ends with an InputError too.
        """
        with self._using(source):
            if isinstance(source, DemoSource):
                volume, place = self._demo, ""
                part = self.memory.take(volume.array.nbytes)
            elif isinstance(source, CaseSource):
                volume, part = self._ahead.pop(source.case, None) or self._case(source.case, reading)
                place = "" if self.project is None else str(self.project.folder)
            else:
                path = self._path(source)
                place = shown(str(path)) if isinstance(source, FolderSource) else ""
                volume, part = self._read(path, self.name(source), source.series, reading)
        return Scan(volume, part, place, digest_of(volume))

    def objects(self, source: Source, scan: Volume) -> list[MaskObject]:
        """The objects of a mask file, on a scan. Raises InputError as `read` does."""
        if isinstance(source, DemoSource):
            raise NotThere("the demo scan as a mask", "a mask", "choose a file")
        with self._using(source):
            path = self._path(source)
            if path.is_dir() and len(files := [file for file in path.iterdir() if file.name[0] != "."]) == 1:
                path = files[0]  # a DICOM-SEG or RTSTRUCT
            return self._in_half(guarded.read_objects, path, scan, name=self.name(source))

    def label(self, file: Path, name: str) -> Volume:
        """Read a label map that a client sent, from a file of the server's own. Raises InputError as `read` does."""
        return self._in_half(guarded.read_volume, file, name=name, labels=True)

    def read_ahead(self, cases: Collection[str]) -> None:
        """Preload these scans of the project, and drop all others, as long as half of the memory is free."""
        self.drop_ahead(cases)
        for case in cases:
            if case not in self._ahead and self.memory.free > self.memory.limit // 2:
                with suppress(InputError):  # reported when the scan is opened
                    self._ahead[case] = self._case(case, None)

    def drop_ahead(self, but: Collection[str] = ()) -> None:
        """Free the memory of the preloaded scans, but for these."""
        for case in set(self._ahead) - set(but):
            if kept := self._ahead.pop(case, None):
                kept[1].close()

    def _case(self, case: str, reading: guarded.Reading | None) -> tuple[Volume, Part]:
        """A scan of the project, and the memory that it takes. Raises OtherScan if it is not the one that was added."""
        if self.project is None:
            raise no_project()
        known = self.project.scan(case)
        path = self.project.path_of(known)
        if not path.exists():
            given = f"the scan {case}, whose file is not where it was"
            raise NotThere(given, "the file", "let `voxsam project add` look where it lies now")
        volume, part = self._read(path, case, "", reading)
        if content(volume) != known.content:
            part.close()
            given = f"the scan {case}, whose file has other voxels than when it was added"
            raise OtherScan(given, "the same scan", "put the file back, or forget the case and add it anew")
        return volume, part

    def _using(self, source: AnySource) -> AbstractContextManager[None]:
        return self.store.using(source.upload) if isinstance(source, UploadSource) else nullcontext()

    def name(self, source: AnySource) -> str:
        """The name of the scan if the client gives none."""
        if isinstance(source, CaseSource):
            return source.case
        if isinstance(source, DemoSource):
            return DEMO_NAME
        path = self._path(source)
        if isinstance(source, FolderSource):
            return shown(path.name) if source.folder in self.folders.roots else SENT_SERIES
        return SENT_SERIES if path.is_dir() else PREFIX.sub("", path.name, count=1)

    def _read(self, path: Path, name: str, series: str, reading: guarded.Reading | None) -> tuple[Volume, Part]:
        """The scan at a path, and its part of the memory, which is the limit for reading while it is read."""
        limit, size = self.memory.limit, path.stat().st_size if path.is_file() else self.memory.limit
        part = self.memory.take(min(self.memory.free, max(limit // 2, UNPACKED_RATIO * size)))
        try:
            more = {"name": name, "series": series, "reading": reading}
            volume = self._small(path, name, part.nbytes) or self._guarded(guarded.read_volume, part, path, **more)
            part.resize(volume.array.nbytes)
        except BaseException:
            part.close()
            raise
        return volume, part

    def _small(self, path: Path, name: str, nbytes: int) -> Volume | None:
        """A small NIfTI file, read here by nibabel, every length checked first. None if it is large, or not a scan.

        `_guarded` then reports that it is not a scan.
        """
        if not path.name.lower().endswith(NIFTI_SUFFIXES):
            return None
        try:
            with at_most(min(SMALL_VOXELS, nbytes // VOXEL_BYTES, self.settings.max_voxels)):
                return read_volume(path)
        except ImageError:
            return None
        except InputError as error:
            raise type(error)(error.given.replace(path.name, name), error.expected, error.remedy) from error

    def _in_half(self, read: Callable[..., T], *given: object, **more: object) -> T:
        """The result of `read` for a mask, within half of the memory, or what is free of it."""
        with self.memory.take(min(self.memory.free, self.memory.limit // 2)) as part:
            return self._guarded(read, part, *given, **more)

    def _guarded(self, read: Callable[..., T], part: Part, *given: object, **more: object) -> T:
        """The result of `read` (of voxsam.io.guarded) for a file, in a separate process, within a part of the memory.

        The result exists twice while it is sent: the part grows for that, by at most two fifths of the memory beyond
        what is free. Raises InputError, and Full if the part is too small.
        """
        try:
            return read(
                *given,
                **more,
                memory_bytes=part.nbytes,
                max_voxels=self.settings.max_voxels,
                time_s=self.settings.read_s,
                temporary=self.store.scratch,
                accept=lambda nbytes: part.resize(max(part.nbytes, 2 * nbytes), freed=2 * self.memory.limit // 5),
            )
        except guarded.MemoryNeeded as error:
            remedy = "close a session, or start the server with more --memory"
            raise Full(error.given, "a scan that fits beside what is open", remedy) from error

    @cached_property
    def _demo(self) -> Volume:
        if not self.settings.demo:
            raise NotThere("the demo scan", "an upload or a served folder", "this server offers no demo scan")
        from voxsam.phantoms import demo_phantom

        return demo_phantom().scan

    def _path(self, source: FolderSource | UploadSource) -> Path:
        if isinstance(source, FolderSource):
            return self.folders.find_scan(source.folder, source.path)
        folder = self.store.upload_folder(source.upload)
        files = [file for file in folder.iterdir() if not file.name.startswith(".")]  # not what is still arriving
        wanted = SCAN_SUFFIXES if len(files) == 1 else DETACHED_HEADERS
        scans = [file for file in files if file.name.lower().endswith(wanted)]
        return scans[0] if len(scans) == 1 and not has_dicom(files) else folder


def digest_of(volume: Volume) -> str:
    """SHA-256 of a scan's voxels (k slowest), their type, and its grid: the same for files of the same content."""
    array, grid = volume.array, volume.grid
    digest = hashlib.sha256(f"{array.dtype.name} {grid.shape}".encode() + grid.affine.astype("<f8").tobytes())
    for k in range(array.shape[2]):
        digest.update(np.asfortranarray(array[:, :, k]).T.data)
    return digest.hexdigest()


# Uploads


@dataclass
class Tally:
    """The size of an upload, including what is still arriving."""

    files: int = 0
    bytes: int = 0


class Uploads:
    """Receives bodies into the store, with one limit for each upload. To be used on one event loop."""

    def __init__(self, store: Store, limit: int) -> None:
        self.store, self.limit = store, limit
        self._tallies: dict[str, Tally] = {}

    async def take(self, body: AsyncIterator[bytes], name: str, upload: str | None) -> tuple[str, Tally]:
        """Write a body into a new upload, or the one with the id `upload`; returns its id and its size now.

        Raises TooLarge beyond the limit, Full if the disk is full, NoRoom if it cannot be written, NotThere for an
        unknown id; nothing of the body is kept then.
        """
        try:
            key = upload or self.store.new_upload()
            with self.store.using(key):
                return key, await self._take(body, name, key, is_new=upload is None)
        except OSError as error:
            raise no_room() from error

    async def _take(self, body: AsyncIterator[bytes], name: str, key: str, is_new: bool) -> Tally:
        folder = self.store.upload_folder(key)
        tally = self._tallies.get(key) or await asyncio.to_thread(_count, folder)
        tally = self._tallies.setdefault(key, tally)
        if tally.files >= MAX_FILES:
            raise TooLarge(f"an upload of {tally.files} files", f"at most {MAX_FILES}", "send one series, or a zip")
        tally.files += 1
        target, nbytes, waiting = folder / _stored_name(name, folder), 0, bytearray()
        coming = target.with_name(f".{target.name}")

        def flush() -> None:
            if shutil.disk_usage(self.store.uploads).free < SPARE_BYTES + len(waiting):
                given, expected = "an upload beyond the free disk space", "a disk with room"
                raise Full(given, expected, "delete sessions, then try again")
            stream.write(bytes(waiting))
            waiting.clear()

        try:
            with open(coming, "xb", buffering=0, opener=private) as stream:
                async for piece in body:
                    nbytes += len(piece)
                    tally.bytes += len(piece)
                    if tally.bytes > self.limit:
                        given, expected = "an upload that is too large", f"at most {self.limit:,} bytes"
                        raise TooLarge(given, expected, "send less, or start the server with more --upload-limit")
                    waiting += piece
                    if len(waiting) >= PIECE_BYTES:
                        await asyncio.to_thread(flush)
                await asyncio.to_thread(flush)
            coming.rename(target)
        except BaseException:
            coming.unlink(missing_ok=True)
            tally.files, tally.bytes = tally.files - 1, tally.bytes - nbytes
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
                self._tallies.pop(key, None)
            raise
        return tally


def _stored_name(name: str, folder: Path) -> str:
    """A name for the disk: if plain and new, the client's own, so that a header finds its voxels beside it.

    Otherwise a random prefix and the safe characters of the client's name, including its suffixes.
    """
    if PLAIN.fullmatch(name) and not any((folder / f"{dot}{name}").exists() for dot in ("", ".")):
        return name
    return f"{secrets.token_hex(6)}-{UNSAFE.sub('_', name)[-LONGEST_NAME:].lstrip('.')}"


def _count(folder: Path) -> Tally:
    sizes = [file.stat().st_size for file in folder.iterdir() if not file.name.startswith(".")]
    return Tally(len(sizes), sum(sizes))

"""Uploads: files taken in as they come, each upload within one limit; a file is there when it is whole."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from voxsam.server.archive import Archive
from voxsam.server.errors import Full, TooLarge

MAX_FILES = 20_000  # of one upload
SPARE_BYTES = 1 << 30  # that must stay free on the disk
PIECE_BYTES = 1 << 20  # that are written at once
UNSAFE = re.compile(r"[^\w.\-]+", re.ASCII)
LONGEST_NAME = 100


@dataclass
class Tally:
    """How much an upload has, what is still coming included."""

    files: int = 0
    bytes: int = 0


class Uploads:
    """Writes bodies into the archive. To be used on one event loop."""

    def __init__(self, archive: Archive, limit: int) -> None:
        self.archive, self.limit = archive, limit
        self._tallies: dict[str, Tally] = {}

    async def take(self, body: AsyncIterator[bytes], name: str, upload: str | None) -> tuple[str, Tally]:
        """Write a body into an upload, a new one or that of the id `upload`; returns its id and what it has now.

        Raises TooLarge beyond the limit, Full if the disk is, NotThere for an unknown id; then nothing is left of it.
        """
        key = upload or self.archive.new_upload()
        folder = self.archive.upload_folder(key)
        tally = self._tallies.get(key) or await asyncio.to_thread(_count, folder)
        tally = self._tallies.setdefault(key, tally)
        if tally.files >= MAX_FILES:
            raise TooLarge(f"an upload of {tally.files} files", f"at most {MAX_FILES}", "send one series, or a zip")
        tally.files += 1
        target, own = folder / _stored_name(name), Tally()
        coming = target.with_name(f".{target.name}")
        try:
            await self._write(body, coming, tally, own)
            coming.rename(target)
        except BaseException:
            coming.unlink(missing_ok=True)
            tally.files, tally.bytes = tally.files - 1, tally.bytes - own.bytes
            if upload is None:
                shutil.rmtree(folder, ignore_errors=True)
                self._tallies.pop(key, None)
            raise
        return key, tally

    async def _write(self, body: AsyncIterator[bytes], file: Path, tally: Tally, own: Tally) -> None:
        """Write the body, counting it in the upload's tally and in its own."""
        waiting = bytearray()

        def flush() -> None:
            if shutil.disk_usage(self.archive.uploads).free < SPARE_BYTES + len(waiting):
                given, expected = "an upload beyond the free disk space", "a disk with room"
                raise Full(given, expected, "delete sessions, then try again")
            stream.write(bytes(waiting))
            waiting.clear()

        with open(file, "xb", buffering=0) as stream:
            async for piece in body:
                own.bytes += len(piece)
                tally.bytes += len(piece)
                if tally.bytes > self.limit:
                    given, expected = "an upload that is too large", f"at most {self.limit:,} bytes"
                    raise TooLarge(given, expected, "send less, or start the server with more --upload-limit")
                waiting += piece
                if len(waiting) >= PIECE_BYTES:
                    await asyncio.to_thread(flush)
            await asyncio.to_thread(flush)


def sent_name(path: Path) -> str:
    """What the client called a file of an upload, as far as it could be kept."""
    return path.name.partition("-")[2] or "the upload"


def _stored_name(name: str) -> str:
    """A name for the disk: a random word, and of the client's name what no file system minds, its suffixes kept."""
    return f"{secrets.token_hex(6)}-{UNSAFE.sub('_', name)[-LONGEST_NAME:].lstrip('.')}"


def _count(folder: Path) -> Tally:
    sizes = [file.stat().st_size for file in folder.iterdir() if not file.name.startswith(".")]
    return Tally(len(sizes), sum(sizes))

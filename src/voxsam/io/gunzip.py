"""Read gzip files straight into the caller's memory, in pieces that stay in cache; with ISA-L if it is installed."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

try:  # zlib's interface, decompresses in less than half the time; the extra "speed"
    from isal import isal_zlib as inflate
except ImportError:
    inflate: Any = zlib

PIECE = 1 << 18  # bytes, read and unpacked at once: a quarter of a core's cache
GZIP_FORMAT = 16 + zlib.MAX_WBITS  # header and checksum are parsed and verified, not only the stream between them
ANY_FORMAT = 32 + zlib.MAX_WBITS  # gzip or zlib
MAGIC = b"\x1f\x8b"
MAX_MEMBERS, MEMBER_BYTES = 1000, 1024  # one more is allowed per MEMBER_BYTES: beginning a member costs as much


class GunzipReader(io.RawIOBase):
    """The unpacked bytes of a file of one or more gzip members (RFC 1952), which begin at byte `start`.

    Anything after the last member that is not gzip is ignored, as gzip does. With `zlib_too` the first member may be a
    zlib stream (RFC 1950).

    `gzip.open` gives the same bytes but takes longer, because it copies them three times. Reading raises BadGzipFile
    for a file that does not begin as gzip, EOFError if it ends too early, and zlib.error for damage, for a wrong
    checksum (once the end is read), and for a flood of nearly empty members.
    """

    def __init__(self, path: Path, start: int = 0, zlib_too: bool = False) -> None:
        self._start, self._format = start, ANY_FORMAT if zlib_too else GZIP_FORMAT
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, closed by `close`
        self._restart()

    def _restart(self) -> None:
        self._file.seek(self._start)
        self._member: Any = None
        self._members = self._made = 0  # members begun and bytes unpacked so far
        self._packed = b""  # read from the file, not yet unpacked
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek from the beginning or the current position; going backwards unpacks everything again."""
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the length is known when all is unpacked")
        if target < self._at:
            self._restart()
        while self._at < target and self.read(min(PIECE, target - self._at)):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, short only at the end of the file; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (piece := self._unpack(min(PIECE, len(view) - done))):
            view[done : done + len(piece)] = piece
            done += len(piece)
        self._at += done
        return done

    def _unpack(self, most: int) -> bytes:
        """The next bytes, at most `most` of them; empty at the end."""
        while (member := self._member or self._begins()) is not None:
            self._packed = self._packed or self._file.read(PIECE)
            try:
                piece = member.decompress(self._packed, most)
            except inflate.error as error:
                raise zlib.error(str(error)) from error
            ends, ended = not self._packed, member.eof
            self._packed = member.unused_data if ended else member.unconsumed_tail
            if ended:
                self._member = None
            if piece:
                self._made += len(piece)
                return piece
            if ends and not ended:
                raise EOFError("the file ends within its gzip stream")
        return b""

    def _begins(self) -> Any:
        """Begin the next member; None if there is none. Zeros after a member are padding."""
        padding = b"\0" if self._members else b""
        self._packed = self._packed.lstrip(padding)
        while len(self._packed) < len(MAGIC) and (more := self._file.read(PIECE)):
            self._packed = (self._packed + more).lstrip(padding)
        if not self._packed:
            return None
        if not self._packed.startswith(MAGIC):
            if self._members:
                return None
            if self._format == GZIP_FORMAT:
                raise gzip.BadGzipFile("not a gzip file")
        self._member = inflate.decompressobj(self._format)
        self._members += 1
        if self._members > MAX_MEMBERS + self._made // MEMBER_BYTES:
            raise zlib.error(f"{self._members:,} gzip members of {self._made:,} bytes")
        return self._member

    def close(self) -> None:
        self._file.close()
        super().close()

"""A zip of a DICOM series: checked before it is unpacked; a member's name never becomes a path."""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxsam.errors import FileError
from voxsam.io.checks import truncated
from voxsam.io.dicom.files import HEAD_BYTES, MAX_FILES, Slice, may_be_dicom, read_slice

MAX_UNZIPPED_BYTES = 4 * 2**30  # eight times a CT of 512 x 512 x 1000
MAX_RATIO = 50  # of a zip's unpacked size to its own: scans are noisy, none shrinks to a fiftieth ...
RATIO_COUNTS_BYTES = 64 * 2**20  # ... and a small zip may
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # LZMA takes as much memory as its header asks for
MAX_DIRECTORY_BYTES = MAX_FILES * 1024  # an entry has 46 bytes and the names of a path


@contextmanager
def unzipped_slices(path: Path) -> Iterator[Iterator[Slice]]:
    """The images of a zip, unpacked for as long as the block lasts.

    Raises FileError if the zip is broken, encrypted, or declares more than MAX_FILES, MAX_UNZIPPED_BYTES, MAX_RATIO.
    """
    try:
        with (
            _Reader(path) as file,
            zipfile.ZipFile(file) as archive,
            tempfile.TemporaryDirectory(prefix="voxsam-") as folder,
        ):
            members = [m for m in archive.infolist() if not m.filename.endswith("/")]
            _check(path, members)
            yield _unpacked(archive, members, Path(folder))
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise truncated(path.name, f"it cannot be unzipped: {error}") from error


class _Reader(io.FileIO):
    """The file of a zip. zipfile reads the whole directory in one piece, and makes half a kilobyte of each entry."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise _too_many(Path(str(self.name)).name, f"a directory of {size:,} bytes")
        return super().read(-1 if size is None else size)


def _unpacked(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> Iterator[Slice]:
    for number, member in enumerate(members):
        file = folder / f"{number}.dcm"
        # zipfile gives no more bytes than the directory declares, so the sum that was checked holds
        with archive.open(member) as source:
            head = source.read(HEAD_BYTES)
            if not may_be_dicom(head):
                continue
            with open(file, "wb") as target:
                target.write(head)
                shutil.copyfileobj(source, target)
        image = read_slice(file, Path(member.filename).name)
        if image is None:
            file.unlink()
        else:
            yield image


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    name, total = path.name, sum(m.file_size for m in members)
    if total > MAX_UNZIPPED_BYTES:
        given = f"{name} would unpack to {total / 2**30:.1f} GiB"
        raise FileError(
            given, f"at most {MAX_UNZIPPED_BYTES / 2**30:.0f} GiB", "zip one series alone, or give its folder"
        )
    ratio = total / max(1, path.stat().st_size)
    if total > RATIO_COUNTS_BYTES and ratio > MAX_RATIO:
        given = f"{name} would unpack to {ratio:.0f} times its size"
        raise FileError(given, f"at most {MAX_RATIO} times", "give the folder, or check the file")
    if len(members) > MAX_FILES:
        raise _too_many(name, f"{len(members):,} files")
    if any(m.flag_bits & 1 for m in members):
        raise FileError(f"{name} is encrypted", "a zip without a password", "unpack it and give the folder")
    if any(m.compress_type not in METHODS for m in members):
        raise FileError(f"{name} is packed with LZMA or bzip2", "a common zip (deflate)", "pack it anew")


def _too_many(name: str, what: str) -> FileError:
    return FileError(f"{name} holds {what}", f"at most {MAX_FILES:,} files", "zip one series alone")

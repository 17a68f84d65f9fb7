"""Find the DICOM images in a folder or a zip, and read their headers without the pixels.

Headers are read by pydicom, which can read single elements, keeps positions in double precision, and tells an image
from the SEG, RTSTRUCT or junk beside it. No other parser sees a file: pixels.py copies the pixels' bytes out of it.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from voxsam.errors import FileError, GeometryError
from voxsam.io.checks import links_allowed, truncated

MAX_FILES = 20_000
HEAD_BYTES = 132
MAX_INFLATED_BYTES = 2**30  # of a file in the deflated transfer syntax
MAX_UNZIPPED_BYTES = 4 * 2**30  # eight times a CT of 512 x 512 x 1000
MAX_RATIO = 50  # of a zip's unpacked size to its own: scans are noisy, none shrinks to a fiftieth ...
RATIO_COUNTS_BYTES = 64 * 2**20  # ... but a small zip may
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # LZMA takes as much memory as its header asks for
MAX_DIRECTORY_BYTES = MAX_FILES * 1024  # an entry takes 46 bytes plus its path
# Modalities of objects stored beside a series: segmentations, radiotherapy, presentation states, reports, ...
NOT_IMAGES = frozenset(
    [*("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "RTIMAGE", "PLAN"), *("PR", "KO", "SR", "REG", "FID", "DOC")]
)
# What pydicom raises for a damaged file, often only when an element is accessed.
BROKEN = (
    *(InvalidDicomError, BytesLengthException, EOFError, OSError, struct.error, zlib.error),
    *(AttributeError, KeyError, IndexError, NotImplementedError, OverflowError, RecursionError, TypeError, ValueError),
    *(AssertionError, MemoryError),
)
COUNTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
)


@dataclass(frozen=True)
class Stored:
    """The bytes of one DICOM file: a file on disk, or part of an anonymous file (an unpacked zip)."""

    place: Path | IO[bytes]
    start: int
    size: int

    def open(self) -> IO[bytes]:
        """A stream of these bytes alone."""
        if isinstance(self.place, Path):
            return open(self.place, "rb")
        self.place.seek(self.start)
        return io.BytesIO(self.place.read(self.size))

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes from byte `at` on."""
        with self.open() as stream:
            stream.seek(at)
            return stream.read(count)


@dataclass(frozen=True, eq=False)
class Slice:
    """One DICOM image: its file, its name for the user, its header without the pixels, and where the pixels are.

    The pixel element begins at byte `element` of `stored`, unless `pixels` already holds the pixels (of a frame of a
    multi-frame file, `packed` if compressed, or of a deflated file). `frame` counts from 1 in a multi-frame file and is
    0 in a single-frame one.
    """

    stored: Stored
    name: str
    header: pydicom.Dataset
    element: int
    frame: int = 0
    pixels: bytes | None = None
    packed: bool = False

    @property
    def series(self) -> str:
        """The SeriesInstanceUID, "" if it is absent."""
        return str(self.header.get("SeriesInstanceUID", ""))

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return int(self.header.Columns), int(self.header.Rows)

    @property
    def scaling(self) -> tuple[float, float]:
        """Rescale slope and intercept; 1 and 0 where absent. Raises GeometryError as numbers() does."""
        slope, intercept = (
            float(self.numbers(tag, 1)[0]) if self.header.get(tag) is not None else absent
            for tag, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        return slope, intercept

    def numbers(self, tag: str, count: int) -> NDArray[np.float64]:
        """(count,) numbers of an element. Raises GeometryError if it is absent or malformed."""
        try:
            values = np.array(self.header.get(tag), dtype=np.float64).ravel()
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (count,) or not np.isfinite(values).all():
            given = f"the DICOM image {self.name} has no valid {tag}"
            raise GeometryError(given, f"{count} number(s) there", "export the original series again")
        return values


def is_marked(head: bytes) -> bool:
    """Whether the first HEAD_BYTES of a file end with the DICM prefix (PS3.10 7.1)."""
    return head[128:HEAD_BYTES] == b"DICM"


def may_be_dicom(head: bytes) -> bool:
    """As `is_marked`, and also for old files without the prefix, which begin with an element of group 0002 or 0008."""
    return is_marked(head) or head[:2] in (b"\x02\x00", b"\x08\x00")


def read_slices(path: Path) -> Iterator[Slice]:
    """The images in and below a folder. Raises FileError for a truncated image, or for too many files.

    Links are followed, each folder once, except broken ones and, for untrusted files, those that lead out of `path`.
    """
    count, seen, root = 0, set(), path.resolve()
    for folder, folders, files in os.walk(path, followlinks=links_allowed()):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders.sort()
        for file in sorted(files):
            count += 1
            if count > MAX_FILES:
                given = f"{path.name} holds over {MAX_FILES:,} files"
                raise FileError(given, "one series", "give the folder of the series")
            path_of_file = Path(folder, file)
            try:
                status = path_of_file.stat()
                if not stat.S_ISREG(status.st_mode):  # a pipe would never end
                    continue
                if not (links_allowed() or path_of_file.resolve().is_relative_to(root)):
                    continue
                image = read_slice(Stored(path_of_file, 0, status.st_size), file)
            except FileNotFoundError:  # a broken link
                continue
            except OSError as error:
                given = f"{file} could not be read ({error.strerror or error})"
                raise FileError(given, "files that can be read", "check its permissions or copy it again") from error
            if image is not None:
                yield image


def read_slice(stored: Stored, name: str) -> Slice | None:
    """Read the header of a DICOM image; None if the file is something else. Raises FileError if it is truncated."""
    with stored.open() as stream:
        start = stream.read(HEAD_BYTES)
        marked = is_marked(start)
        if not may_be_dicom(start):
            return None
        stream.seek(0)
        try:
            deflated = marked and check_deflated(stream, name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd values in elements that the image does not depend on
                header = pydicom.dcmread(
                    stream, stop_before_pixels=not deflated, specific_tags=[*TAGS, "PixelData"], force=True
                )
                pixels = header.get("PixelData")
                header.pop("PixelData", None)
                _ = list(header.file_meta), list(header)  # decodes every element now: a malformed one is found here
                if not _is_image(header, name, marked):
                    return None
                image = Slice(stored, name, header, stream.tell(), pixels=pixels)
                _check_pixels(image)
        except BROKEN as error:
            if marked:
                raise truncated(name, "its DICOM header cannot be read") from error
            return None
    return image


def _is_image(header: pydicom.Dataset, name: str, marked: bool) -> bool:
    """Whether a DICOM object has an image of its own. Raises FileError for an image whose header is truncated."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if str(header.get("Modality")) in NOT_IMAGES:
        return False
    has_size = "Rows" in header and "Columns" in header
    if not has_size and marked and (kind is None or UID(kind).name.endswith("Image Storage")):
        raise truncated(name, "its DICOM header ends too early")
    if has_size and min(int(header.get(tag) or 1) for tag in COUNTS) < 1:
        raise truncated(name, "its DICOM header declares negative counts")
    return has_size


def _check_pixels(image: Slice) -> None:
    """Raises FileError unless all pixels are there."""
    from voxsam.io.dicom.pixels import ITEM, fragments, frame_bytes, frame_count, value_of

    header, there = image.header, image.pixels
    needed = frame_bytes(header) * frame_count(header)
    if there is None:
        at, length = value_of(image)
        if length is None:
            fragments(image, at)
            return
        count = min(length, image.stored.size - at)
    else:
        count = len(there)
    if count < needed:
        raise truncated(image.name, f"{needed} bytes of pixels are declared, {max(0, count)} are there")
    if there is None and count > needed and image.stored.read(at, len(ITEM)) == ITEM:
        raise truncated(image.name, "its pixels are compressed, and its transfer syntax says that they are not")


def check_deflated(stream: IO[bytes], name: str) -> bool:
    """Whether a file with the DICM prefix has the deflated transfer syntax; `stream` is at its start before and after.

    Raises FileError if it unpacks to more than MAX_INFLATED_BYTES: pydicom unpacks all of it at once, so it is unpacked
    here first, piece by piece, and discarded.
    """
    head = stream.read(HEAD_BYTES + 1024)
    stream.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return False
    if head[HEAD_BYTES : HEAD_BYTES + 8] != b"\x02\0\0\0UL\4\0":
        raise truncated(name, "its file meta information has no length")
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    stream.seek(HEAD_BYTES + 12 + struct.unpack_from("<I", head, HEAD_BYTES + 8)[0])
    while not inflate.eof and (piece := inflate.unconsumed_tail or stream.read(2**16)):
        total += len(inflate.decompress(piece, 2**20))
        if total > MAX_INFLATED_BYTES:
            given = f"{name} unpacks to more than {MAX_INFLATED_BYTES / 2**30:g} GiB"
            raise FileError(given, "a DICOM file of common size", "export it uncompressed")
    stream.seek(0)
    return True


# Zip


@contextmanager
def unzipped_slices(path: Path) -> Iterator[Iterator[Slice]]:
    """The images of a zip, unpacked into one anonymous file for as long as the block lasts.

    A process that is killed leaves no patient data behind. A member's name never becomes a path.
    Raises FileError if the zip is broken, encrypted, or declares more than MAX_FILES, MAX_UNZIPPED_BYTES, MAX_RATIO.
    """
    try:
        with _Reader(path) as file, zipfile.ZipFile(file) as archive, tempfile.TemporaryFile() as unpacked:
            members = [m for m in archive.infolist() if not m.filename.endswith("/")]
            _check_members(path, members)
            yield _unpacked(archive, members, unpacked)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise truncated(path.name, f"it cannot be unzipped: {error}") from error


class _Reader(io.FileIO):
    """A zip file with a bounded directory, which zipfile reads in one piece and turns into 0.5 kB for each entry."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise _too_many(Path(str(self.name)).name, f"a directory of {size:,} bytes")
        return super().read(-1 if size is None else size)


def _unpacked(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], target: IO[bytes]) -> Iterator[Slice]:
    end = 0
    for member in members:
        # zipfile gives no more bytes than the directory declares, so the sum that was checked holds
        with archive.open(member) as source:
            head = source.read(HEAD_BYTES)
            if not may_be_dicom(head):
                continue
            target.seek(end)
            target.write(head)
            shutil.copyfileobj(source, target)
        stored = Stored(target, end, target.tell() - end)
        image = read_slice(stored, Path(member.filename).name)
        if image is not None:
            end += stored.size
            yield image


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    name, total = path.name, sum(m.file_size for m in members)
    if total > MAX_UNZIPPED_BYTES:
        given = f"{name} would unpack to {total / 2**30:.1f} GiB"
        expected = f"at most {MAX_UNZIPPED_BYTES / 2**30:.0f} GiB"
        raise FileError(given, expected, "zip one series alone, or give its folder")
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

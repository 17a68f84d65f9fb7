"""Finding DICOM images in a folder or zip, and reading their headers without their pixels.

Headers come through pydicom, which reads single elements without touching the pixels, keeps positions in double
precision, and tells an image from the SEG, RTSTRUCT or junk beside it; pixels come through GDCM (dicom.py).
"""

from __future__ import annotations

import os
import shutil
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
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from voxsam.errors import FileError, GeometryError
from voxsam.io.checks import truncated

MAX_FILES = 20_000
MAX_UNZIPPED_BYTES = 4 * 2**30  # eight times a CT of 512 x 512 x 1000
# Modalities of the objects that lie beside a series: segmentations, radiotherapy, presentation states, reports, ...
NOT_IMAGES = frozenset(
    [*("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "RTIMAGE", "PLAN"), *("PR", "KO", "SR", "REG", "FID", "DOC")]
)
SEQUENCE_END = b"\xfe\xff\xdd\xe0"  # the last item of compressed pixel data (PS3.5 A.4)
TAGS = (
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Rows", "Columns"),
    *("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """One DICOM image: where it lies, what the user calls it, and its header without the pixels."""

    file: Path
    name: str
    header: pydicom.Dataset

    @property
    def series(self) -> str:
        """The series it belongs to."""
        return str(self.header.get("SeriesInstanceUID", ""))

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


def read_slices(path: Path) -> Iterator[Slice]:
    """The images below a folder. Raises FileError for one that is cut off, or for too many files."""
    count = 0
    for folder, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            count += 1
            if count > MAX_FILES:
                raise FileError(
                    f"{path.name} holds over {MAX_FILES:,} files", "one series", "give the folder of the series"
                )
            image = read_slice(Path(folder, file), file)
            if image is not None:
                yield image


@contextmanager
def unzipped_slices(path: Path) -> Iterator[Iterator[Slice]]:
    """The images of a zip, unpacked for as long as the block lasts; the name of a member never becomes a path.

    Raises FileError if the zip is broken, encrypted, or declares more than MAX_FILES or MAX_UNZIPPED_BYTES.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="voxsam-") as folder:
            members = [m for m in archive.infolist() if not m.is_dir()]
            _check_zip(path.name, members)
            yield _unpacked(archive, members, Path(folder))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise truncated(path.name, f"it cannot be unzipped: {error}") from error


def _unpacked(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> Iterator[Slice]:
    for number, member in enumerate(members):
        file = folder / f"{number}.dcm"
        # zipfile gives no more bytes than the directory declares, so the sum that was checked holds
        with archive.open(member) as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target)
        image = read_slice(file, Path(member.filename).name)
        if image is None:
            file.unlink()
        else:
            yield image


def _check_zip(name: str, members: list[zipfile.ZipInfo]) -> None:
    total = sum(m.file_size for m in members)
    if total > MAX_UNZIPPED_BYTES:
        given = f"{name} would unpack to {total / 2**30:.1f} GiB"
        raise FileError(
            given, f"at most {MAX_UNZIPPED_BYTES / 2**30:.0f} GiB", "zip one series alone, or give its folder"
        )
    if len(members) > MAX_FILES:
        raise FileError(f"{name} holds {len(members):,} files", f"at most {MAX_FILES:,}", "zip one series alone")
    if any(m.flag_bits & 1 for m in members):
        raise FileError(f"{name} is encrypted", "a zip without a password", "unpack it and give the folder")


def read_slice(file: Path, name: str) -> Slice | None:
    """The header of a DICOM image, or None if the file is something else. Raises FileError if it is cut off."""
    with open(file, "rb") as stream:
        start = stream.read(132)
        marked = start[128:] == b"DICM"
        # Old files lack the mark and begin with an element of group 0002 or 0008.
        if not marked and start[:2] not in (b"\x02\x00", b"\x08\x00"):
            return None
        stream.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd values in elements that the image does not hang on
                header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
                _ = list(header.file_meta), list(header)  # decodes every element now: a malformed one is found here
        except (
            InvalidDicomError,
            EOFError,
            OSError,
            TypeError,
            ValueError,
            NotImplementedError,
            struct.error,
        ) as error:
            if marked:
                raise truncated(name, "its DICOM header cannot be read") from error
            return None
        if not _is_image(header, name, marked):
            return None
        _check_pixels(header, stream, name)
    return Slice(file, name, header)


def _is_image(header: pydicom.Dataset, name: str, marked: bool) -> bool:
    """False for a DICOM object without an image of its own. Raises FileError for an image whose header is cut off."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if header.get("Modality") in NOT_IMAGES:
        return False
    has_size = "Rows" in header and "Columns" in header
    if not has_size and marked and (kind is None or kind.name.endswith("Image Storage")):
        raise truncated(name, "its DICOM header ends too early")
    return has_size


def _check_pixels(header: pydicom.Dataset, stream: IO[bytes], name: str) -> None:
    """Raises FileError unless the pixels, at which `stream` stands, are all there."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        return  # its pixels are packed with its header; the decoder finds out whether they are whole
    if syntax is not None and syntax.is_compressed:
        if SEQUENCE_END not in stream.read():
            raise truncated(name, "its compressed pixels end too early")
        return
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    needed = header.Rows * header.Columns * frames * samples * int(header.get("BitsAllocated") or 16) // 8
    element_start = 8 if syntax is None or syntax.is_implicit_VR else 12
    there = max(0, os.fstat(stream.fileno()).st_size - stream.tell() - element_start)
    if there < needed:
        raise truncated(name, f"{needed} bytes of pixels are declared, {there} are there")

"""Finding DICOM images in a folder, and reading their headers without their pixels.

Headers come through pydicom, which reads single elements without touching the pixels, keeps positions in double
precision, and tells an image from the SEG, RTSTRUCT or junk beside it; pixels come through GDCM (dicom.py).
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from voxsam.errors import FileError, GeometryError
from voxsam.io.checks import truncated
from voxsam.io.dicom.codestream import declared_size

MAX_FILES = 20_000
HEAD_BYTES = 132
MAX_INFLATED_BYTES = 2**30  # of a file in the deflated transfer syntax
# Modalities of the objects that lie beside a series: segmentations, radiotherapy, presentation states, reports, ...
NOT_IMAGES = frozenset(
    [*("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "RTIMAGE", "PLAN"), *("PR", "KO", "SR", "REG", "FID", "DOC")]
)
SEQUENCE_END = b"\xfe\xff\xdd\xe0"  # the last item of compressed pixel data (PS3.5 A.4)
# What pydicom raises where a file is damaged, often only when an element is looked at.
BROKEN = (
    *(InvalidDicomError, BytesLengthException, EOFError, OSError, struct.error, zlib.error),
    *(AttributeError, KeyError, IndexError, NotImplementedError, OverflowError, RecursionError, TypeError, ValueError),
)
COUNTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *(
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "BitsAllocated",
        "PixelRepresentation",
    ),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """One DICOM image: the file of its pixels, what the user calls it, and its header without the pixels.

    `frame` counts from 1 in a multi-frame file (`whole`), out of which `file` was taken; 0: the file has one frame.
    """

    file: Path
    name: str
    header: pydicom.Dataset
    frame: int = 0
    whole: Path | None = None

    @property
    def origin(self) -> Path:
        """The file that came in."""
        return self.whole or self.file

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


def is_marked(head: bytes) -> bool:
    """Whether the first HEAD_BYTES of a file have the mark of DICOM (PS3.10 7.1)."""
    return head[128:HEAD_BYTES] == b"DICM"


def may_be_dicom(head: bytes) -> bool:
    """Also old files, which lack the mark and begin with an element of group 0002 or 0008."""
    return is_marked(head) or head[:2] in (b"\x02\x00", b"\x08\x00")


def read_slice(file: Path, name: str) -> Slice | None:
    """The header of a DICOM image, or None if the file is something else. Raises FileError if it is cut off."""
    with open(file, "rb") as stream:
        start = stream.read(HEAD_BYTES)
        marked = is_marked(start)
        if not may_be_dicom(start):
            return None
        stream.seek(0)
        try:
            if marked:
                check_deflated(file, name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd values in elements that the image does not hang on
                header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
                _ = list(header.file_meta), list(header)  # decodes every element now: a malformed one is found here
                if not _is_image(header, name, marked):
                    return None
                _check_pixels(header, stream, name)
        except BROKEN as error:
            if marked:
                raise truncated(name, "its DICOM header cannot be read") from error
            return None
    return Slice(file, name, header)


def _is_image(header: pydicom.Dataset, name: str, marked: bool) -> bool:
    """False for a DICOM object without an image of its own. Raises FileError for an image whose header is cut off."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if str(header.get("Modality")) in NOT_IMAGES:
        return False
    has_size = "Rows" in header and "Columns" in header
    if not has_size and marked and (kind is None or UID(kind).name.endswith("Image Storage")):
        raise truncated(name, "its DICOM header ends too early")
    if has_size and min(int(header.get(tag) or 1) for tag in COUNTS) < 1:
        raise truncated(name, "its DICOM header declares negative counts")
    return has_size


def _check_pixels(header: pydicom.Dataset, stream: IO[bytes], name: str) -> None:
    """Raises FileError unless the pixels, at which `stream` stands, are all there."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        return  # its pixels are packed with its header; the decoder finds out whether they are whole
    if syntax is not None and syntax.is_compressed:
        pixels = stream.read()
        if SEQUENCE_END not in pixels:
            raise truncated(name, "its compressed pixels end too early")
        if int(header.get("NumberOfFrames") or 1) == 1:
            check_codestream(_first_frame(pixels, name), header, name)
        return
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    needed = header.Rows * header.Columns * frames * samples * int(header.get("BitsAllocated") or 16) // 8
    element_start = 8 if syntax is None or syntax.is_implicit_VR else 12
    there = max(0, os.fstat(stream.fileno()).st_size - stream.tell() - element_start)
    if there < needed:
        raise truncated(name, f"{needed} bytes of pixels are declared, {there} are there")


def check_codestream(frame: bytes, header: pydicom.Dataset, name: str) -> None:
    """Raises FileError for a compressed frame that declares another size than its header: it could fill the memory."""
    declared = declared_size(frame)
    expected = (header.Rows, header.Columns, int(header.get("SamplesPerPixel") or 1))
    if declared is not None and declared != expected:
        given = (
            f"its compressed pixels are {declared[1]} x {declared[0]}, its header says {expected[1]} x {expected[0]}"
        )
        raise truncated(name, given)


def _first_frame(element: bytes, name: str) -> bytes:
    """The one frame of encapsulated pixel data, which begins with tag, VR and an undefined length: 12 bytes."""
    try:
        return next(generate_frames(element[12:], number_of_frames=1))
    except (ValueError, StopIteration, struct.error) as error:
        raise truncated(name, "its compressed pixels cannot be told apart") from error


def check_deflated(file: Path, name: str) -> None:
    """Raises FileError for a file in the deflated transfer syntax that unpacks to more than MAX_INFLATED_BYTES.

    pydicom and GDCM unpack all of it at once; here it is done piece by piece, and thrown away.
    """
    meta = read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(file, "rb") as stream:
        stream.seek(HEAD_BYTES + 12 + int(meta.get("FileMetaInformationGroupLength") or 0))
        while not inflate.eof and (piece := inflate.unconsumed_tail or stream.read(2**16)):
            total += len(inflate.decompress(piece, 2**20))
            if total > MAX_INFLATED_BYTES:
                given = f"{name} unpacks to more than {MAX_INFLATED_BYTES / 2**30:g} GiB"
                raise FileError(given, "a DICOM file of common size", "export it uncompressed")

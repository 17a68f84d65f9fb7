"""The pixels of DICOM images and the frames of multi-frame ones.

Uncompressed pixels are copied straight from the file. Compressed ones are decoded by GDCM through SimpleITK, which
supports every transfer syntax in use without further packages. It never sees the file, whose lengths it would trust,
but one frame after a header written here, and only once the size that the frame itself declares is right: decoders
trust the codestream, and 250 bytes of JPEG 2000 that declare 30000 x 30000 pixels take gigabytes.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import config
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, CTImageStorage, generate_uid

from voxsam.errors import FileError, UnsupportedError
from voxsam.io.checks import check_size, truncated
from voxsam.io.dicom.files import BROKEN, Slice

PIXELS = b"\xe0\x7f\x10\x00"  # the tag (7FE0,0010), little-endian
ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # of compressed pixel data (PS3.5 A.4)
UNDEFINED = 0xFFFFFFFF
GE_PRIVATE_SYNTAX = "1.2.840.113619.5.2"  # implicit VR little-endian, but its pixels are big-endian
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
JPEG_FRAMES = frozenset([*range(0xC0, 0xD0), 0xF7]) - {0xC4, 0xC8, 0xCC}  # SOF markers; F7 is JPEG-LS's
BOXES_BYTES = 4096  # a JP2 file wraps the codestream in boxes; DICOM forbids it, but some files have it


def frame_count(header: pydicom.Dataset) -> int:
    """The number of frames of an image."""
    return int(header.get("NumberOfFrames") or 1)


def frame_bytes(header: pydicom.Dataset) -> int:
    """The size of an uncompressed frame in bytes."""
    samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.get("BitsAllocated") or 16)
    return header.Rows * header.Columns * samples * bits // 8


def value_of(image: Slice) -> tuple[int, int | None]:
    """Where the value of an image's pixel element begins, and its length; None: undefined, as for compressed pixels.

    Raises FileError if there are no pixels, UnsupportedError for floating-point ones.
    """
    little = image.header.original_encoding[1]
    head = image.stored.read(image.element, 12)
    implicit = head[4:6] not in (b"OW", b"OB", b"UN")
    if head[:4] in (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00"):
        given = f"{image.name} holds floating-point pixels"
        raise UnsupportedError(given, "whole numbers", "convert it to NIfTI first")
    if len(head) < 12 or head[:4] != (PIXELS if little else b"\x7f\xe0\x00\x10"):
        raise truncated(image.name, "it has no pixels where they are to be")
    order = "<" if little else ">"
    length = struct.unpack(f"{order}I", head[4:8] if implicit else head[8:12])[0]
    return image.element + (8 if implicit else 12), None if length == UNDEFINED else length


def split(image: Slice) -> list[Slice]:
    """The frames of a multi-frame image, each as an image of its own with the values of its functional groups.

    These give a frame's position and scaling, per frame or shared (DICOM PS3.3 C.7.6.16).
    Raises UnsupportedError for frames without positions, FileError for missing pixels.
    """
    count, name = frame_count(image.header), image.name
    check_size(name, (*image.size, count), 1, image.stored.size, compressed=True)
    try:
        with image.stored.open() as stream:
            whole = pydicom.dcmread(stream, force=True)
        if not all(group_item(whole, n, "PlanePositionSequence") for n in range(count)):
            given = f"{name} is a multi-frame DICOM file of {count} frames without their positions"
            expected = "an enhanced CT or MR image, or one file per slice"
            raise UnsupportedError(given, expected, "convert it to NIfTI first")
        packed, found = bool(whole["PixelData"].is_undefined_length), []
        for n, pixels in enumerate(_frames(whole, count, name)):
            header = shallow_copy(image.header)  # becomes that of a single-frame image
            header.file_meta = image.header.file_meta
            header.set_original_encoding(*image.header.original_encoding)
            header.NumberOfFrames = 1
            for keyword, group in GROUPS.items():
                item = group_item(whole, n, group)
                if keyword in item:
                    header[keyword] = item[keyword]
            title = f"frame {n + 1} of {name}"
            found.append(replace(image, name=title, header=header, frame=n + 1, pixels=pixels, packed=packed))
        return found
    except BROKEN as error:
        raise truncated(name, f"its frames cannot be read: {error}") from error


def group_item(header: pydicom.Dataset, frame: int, name: str) -> pydicom.Dataset:
    """The item of functional group `name` of frame 0, 1, ...: its own, or the shared one; empty if there is neither."""
    for sequence, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(sequence) or []
        if at < len(items) and items[at].get(name):
            return items[at][name][0]
    return pydicom.Dataset()


def shallow_copy(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """A new dataset with the same elements; pydicom's own copies share the dictionary with the original."""
    return pydicom.Dataset(dict(dataset.items()))


def check_frames(whole: pydicom.Dataset, name: str) -> None:
    """Raises FileError if pixels are missing, or a compressed frame declares another size than the header."""
    if whole["PixelData"].is_undefined_length:
        for pixels in _frames(whole, frame_count(whole), name):
            check_codestream(pixels, whole, name)
        return
    bits = whole.Rows * whole.Columns * int(whole.get("SamplesPerPixel") or 1) * int(whole.get("BitsAllocated") or 1)
    needed, there = -(-bits * frame_count(whole) // 8), len(whole.PixelData or b"")
    if there < needed:
        raise truncated(name, f"{needed} bytes of pixels are declared, {there} are there")


def _frames(whole: pydicom.Dataset, count: int, name: str) -> Iterator[bytes]:
    if whole["PixelData"].is_undefined_length:
        try:
            yield from generate_frames(whole.PixelData, number_of_frames=count)
        except ValueError as error:
            raise truncated(name, f"its {count} frames cannot be told apart") from error
        return
    length = frame_bytes(whole)
    for start in range(0, count * length, length):
        yield whole.PixelData[start : start + length]


# Decoding


def decode(slices: Sequence[Slice], shape: tuple[int, int, int]) -> NDArray[np.generic]:
    """(i, j, k) voxels: as stored if no slice is rescaled and all have the same type, otherwise float32."""
    kinds = {(s.scaling, s.header.get("BitsAllocated"), s.header.get("PixelRepresentation")) for s in slices}
    as_stored = len(kinds) == 1 and slices[0].scaling == (1.0, 0.0)
    array: NDArray[np.generic] | None = None
    with _nameless_file() as (file, path):
        for k, image in enumerate(slices):
            try:
                pixels = _stored_numbers(image, file, path)
            except (RuntimeError, *BROKEN) as error:
                raise _undecodable(image) from error
            if pixels.size != shape[0] * shape[1]:
                raise truncated(image.name, f"{pixels.size} pixels were decoded, {shape[0] * shape[1]} are declared")
            if array is None:
                array = np.empty(shape[::-1], pixels.dtype if as_stored else np.float32)
            slope, intercept = image.scaling
            pixels = pixels.reshape(shape[1], shape[0])
            array[k] = pixels if (slope, intercept) == (1, 0) else pixels.astype(np.float64) * slope + intercept
    assert array is not None
    return array.T


def _stored_numbers(image: Slice, file: int, path: Path) -> NDArray[np.generic]:
    """The pixels of an image, row by row, not rescaled; compressed ones are decoded through `file` (at `path`)."""
    data, packed = image.pixels, image.packed
    if data is None:
        at, length = value_of(image)
        packed = length is None
        parts = fragments(image, at) if packed else [(at, frame_bytes(image.header))]
        data = b"".join(image.stored.read(*part) for part in parts)
    syntax, header = _syntax(image.header), image.header
    try:
        contradicts = syntax.is_encapsulated != packed
    except ValueError:  # an unknown syntax
        contradicts = False
    if contradicts:
        raise _undecodable(image)
    if not packed:
        return _uncompressed(data, image)
    check_codestream(data, header, image.name)
    shades = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    start = _single_frame_file(syntax, shades, int(header.Rows), int(header.Columns), *_bits(header))
    # the element of compressed pixels, with this one frame
    element = PIXELS + b"OB\0\0" + b"\xff" * 4 + encapsulate([data]) + SEQUENCE_END + b"\0" * 4
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    with os.fdopen(file, "wb", closefd=False) as stream:
        stream.write(start + element)
    reader.SetFileName(str(path))
    return sitk.GetArrayFromImage(reader.Execute())


def _uncompressed(data: bytes, image: Slice) -> NDArray[np.generic]:
    """The values of uncompressed pixels; bits above the ones in use are ignored (PS3.5 8.1.1)."""
    header = image.header
    bits, used, high, signed = _bits(header)
    if bits not in (8, 16, 32):
        raise _undecodable(image, f"{bits} bits for a pixel")
    big = not header.original_encoding[1] or _syntax(header) == GE_PRIVATE_SYNTAX
    kind = np.dtype(f"{'>' if big else '<'}{'i' if signed else 'u'}{bits // 8}")
    numbers = np.frombuffer(data[: frame_bytes(header)], kind).astype(kind.newbyteorder("="), copy=False)
    if not 0 < used <= high + 1 <= bits:
        raise truncated(image.name, f"{used} bits of {bits}, the highest of them bit {high}")
    if used < bits:
        numbers = (numbers << (bits - 1 - high)) >> (bits - used)  # an arithmetic shift extends the sign
    return numbers


def _bits(header: pydicom.Dataset) -> tuple[int, int, int, int]:
    """Bits of a pixel: allocated, in use, and the highest in use; and 1 for signed numbers, 0 for unsigned ones."""
    bits = int(header.get("BitsAllocated") or 16)
    used = int(header.get("BitsStored") or bits)
    high = int(header.get("HighBit") if header.get("HighBit") is not None else used - 1)
    return bits, used, high, int(header.get("PixelRepresentation") or 0)


def fragments(image: Slice, at: int) -> list[tuple[int, int]]:
    """(start, length) of each item of the encapsulated pixel data at byte `at`, without its offset table.

    Raises FileError if they end early.
    """
    found, size = [], image.stored.size
    with image.stored.open() as stream:
        while True:
            stream.seek(at)
            head = stream.read(8)
            length = int.from_bytes(head[4:], "little")
            if head[:4] != ITEM or at + 8 + length > size:
                break
            found.append((at + 8, length))
            at += 8 + length
    if head[:4] != SEQUENCE_END:
        raise truncated(image.name, "its compressed pixels end too early")
    if len(found) < 2:
        raise truncated(image.name, "its compressed pixels cannot be told apart")
    return found[1:]


def check_codestream(frame: bytes, header: pydicom.Dataset, name: str) -> None:
    """Raises FileError for a compressed frame that declares another size than its header: it could exhaust memory.

    Also for one of more bits than the header allocates, which would be cut off.
    """
    found = declared_size(frame)
    if found is None:
        return
    *declared, bits = found
    expected = [header.Rows, header.Columns, int(header.get("SamplesPerPixel") or 1)]
    if declared != expected:
        sizes = f"{declared[1]} x {declared[0]}, its header says {expected[1]} x {expected[0]}"
        raise truncated(name, f"its compressed pixels are {sizes}")
    if bits > (allocated := int(header.get("BitsAllocated") or 16)):
        raise truncated(name, f"its compressed pixels have {bits} bits, its header has room for {allocated}")


def declared_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, samples per pixel, bits of the first; None for other compression (such as RLE), or if not found.

    JPEG and JPEG-LS: the frame header (ITU-T T.81 B.2.2, T.87 C.2.2). JPEG 2000: the SIZ segment (T.800 A.5.1).
    """
    if frame.startswith(JPEG_START):
        at = 2
        while at + 10 <= len(frame) and frame[at] == 0xFF:
            marker = frame[at + 1]
            if marker in JPEG_FRAMES:
                bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
                return rows, columns, samples, bits
            # 0xFF may be repeated before a marker
            at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
        return None
    start = frame.find(JPEG_2000_START, 0, BOXES_BYTES)
    segment = frame[start + 4 : start + 43]
    if start < 0 or len(segment) < 39:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", segment, 4)
    samples, bits = struct.unpack_from(">HB", segment, 36)
    return bottom - top, right - left, samples, (bits & 0x7F) + 1


@lru_cache(maxsize=8)
def _single_frame_file(
    syntax: str, shades: str, rows: int, columns: int, bits: int, used: int, high: int, signed: int
) -> bytes:
    """A DICOM file up to its pixels: a plain CT image without rescaling, so that GDCM returns the stored values."""
    dataset, meta = pydicom.Dataset(), FileMetaDataset()
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, shades
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = rows, columns, bits
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = used, high, signed
    meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta = meta
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return stream.getvalue()


@contextmanager
def _nameless_file() -> Iterator[tuple[int, Path]]:
    """A file in memory and a path to it; where the system has no such files, one in a temporary folder."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        file = os.memfd_create("frame")
        try:
            yield file, Path(f"/proc/self/fd/{file}")
        finally:
            os.close(file)
        return
    with tempfile.TemporaryDirectory(prefix="voxsam-") as folder:
        path = Path(folder) / "frame.dcm"
        file = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
        try:
            yield file, path
        finally:
            os.close(file)


def _syntax(header: pydicom.Dataset) -> UID:
    return UID(str(header.file_meta.get("TransferSyntaxUID", "")), validation_mode=config.IGNORE)


def _undecodable(image: Slice, what: str = "") -> FileError:
    syntax = f"transfer syntax {_syntax(image.header).name or 'unknown'}"
    given = f"the pixels of {image.name} cannot be decoded ({what or syntax})"
    return FileError(given, "undamaged pixels in a common transfer syntax", "export the series again, uncompressed")

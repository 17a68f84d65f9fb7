"""Multi-frame DICOM images (enhanced CT and MR): every frame as an image of its own, in a small file of its own.

So that frames go through the same checks, the same sorting and the same decoder as files of one slice. Where a frame
lies and how it is scaled stands in functional groups, per frame or shared (DICOM PS3.3 C.7.6.16).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from voxsam.errors import UnsupportedError
from voxsam.io.checks import check_size, truncated
from voxsam.io.dicom.files import Slice, check_codestream

GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
IMAGE = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)


def frame_count(header: pydicom.Dataset) -> int:
    """How many frames an image has."""
    return int(header.get("NumberOfFrames") or 1)


def group_item(header: pydicom.Dataset, frame: int, name: str) -> pydicom.Dataset:
    """The item of functional group `name` of frame 0, 1, ...: its own, or the shared one; empty if there is neither."""
    for sequence, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(sequence) or []
        if at < len(items) and items[at].get(name):
            return items[at][name][0]
    return pydicom.Dataset()


def shallow_copy(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Another dataset of the same elements; pydicom's own copies share the dictionary with the original."""
    return pydicom.Dataset(dict(dataset.items()))


def split(image: Slice, folder: Path) -> Iterator[Slice]:
    """The frames of a multi-frame image, each written as a file into `folder`.

    Raises UnsupportedError for frames that do not say where they lie, FileError for pixels that are not all there.
    """
    count, name = frame_count(image.header), image.name
    size = image.file.stat().st_size
    check_size(name, (image.header.Columns, image.header.Rows, count), 1, size, compressed=True)
    whole = pydicom.dcmread(image.file, force=True)
    if not all(group_item(whole, n, "PlanePositionSequence") for n in range(count)):
        given = f"{name} is a multi-frame DICOM file of {count} frames without their positions"
        raise UnsupportedError(given, "an enhanced CT or MR image, or one file per slice", "convert it to NIfTI first")
    for number, pixels in enumerate(_pixels(whole, count, name), 1):
        header = _header(image.header, whole, number - 1)
        check_codestream(pixels, header, name)
        file = folder / f"{generate_uid()}.dcm"
        _write(file, header, whole, pixels)
        yield Slice(file, f"frame {number} of {name}", header, number, image.file)


def check_frames(whole: pydicom.Dataset, name: str) -> None:
    """Raises FileError if a compressed frame of a multi-frame object declares another size than its header."""
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        for pixels in _pixels(whole, frame_count(whole), name):
            check_codestream(pixels, whole, name)


def _header(image: pydicom.Dataset, whole: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """The image's header as that of a single-frame image."""
    header = shallow_copy(image)
    header.file_meta = image.file_meta
    header.NumberOfFrames = 1
    for keyword, group in GROUPS.items():
        item = group_item(whole, frame, group)
        if keyword in item:
            header[keyword] = item[keyword]
    return header


def _pixels(whole: pydicom.Dataset, count: int, name: str) -> Iterator[bytes]:
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        try:
            yield from generate_frames(whole.PixelData, number_of_frames=count)
        except ValueError as error:
            raise truncated(name, f"its {count} frames cannot be told apart") from error
        return
    length = whole.Rows * whole.Columns * int(whole.get("SamplesPerPixel") or 1) * whole.BitsAllocated // 8
    for start in range(0, count * length, length):
        yield whole.PixelData[start : start + length]


def _write(file: Path, header: pydicom.Dataset, whole: pydicom.Dataset, pixels: bytes) -> None:
    dataset, meta = pydicom.Dataset(), FileMetaDataset()
    for keyword in (*IMAGE, *GROUPS):
        if keyword in header or keyword in whole:
            dataset[keyword] = header[keyword] if keyword in header else whole[keyword]
    # A plain CT image: GDCM then applies the scaling that stands in this header, and nothing else.
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(file.stem)
    syntax = whole.file_meta.TransferSyntaxUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_deflated else syntax
    packed = syntax.is_encapsulated
    dataset.PixelData = encapsulate([pixels]) if packed else pixels
    dataset["PixelData"].VR = "OB" if packed else "OW"
    dataset["PixelData"].is_undefined_length = packed
    dataset.file_meta = meta
    dataset.save_as(file, enforce_file_format=True)

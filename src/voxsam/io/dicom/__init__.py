"""DICOM: read series and multi-frame images; read and write masks as DICOM-SEG or RTSTRUCT."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage

from voxsam.errors import FileError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.io.checks import check_size, truncated
from voxsam.io.dicom import rtstruct, seg
from voxsam.io.dicom.files import BROKEN, HEAD_BYTES, check_deflated, is_marked, may_be_dicom
from voxsam.io.dicom.pixels import check_frames, frame_count
from voxsam.io.dicom.source import DicomSource
from voxsam.io.segments import SegmentInfo
from voxsam.region import Region
from voxsam.volume import Volume

LOOKED_AT = 4  # files of a folder that are checked to see whether it holds a series
RTSTRUCT_SUFFIX = ".rtstruct.dcm"


def is_dicom(path: Path, old: bool = False) -> bool:
    """Whether a file has the DICM prefix, whatever its name; with `old`, also a DICOM file without the prefix."""
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    return may_be_dicom(head) if old else is_marked(head)


def has_dicom(files: Iterable[Path]) -> bool:
    """Whether one of the first files is DICOM, so that their folder holds a series."""
    return any(is_dicom(path) for path in islice(files, LOOKED_AT))


def read_mask(path: Path, grid: Grid | None = None, segment: int | None = None) -> Volume:
    """Read the labels of a DICOM-SEG or RTSTRUCT; `grid` is the scan's, `segment` selects one of them.

    Raises FileError for another kind of file or a damaged one, otherwise as seg.read and rtstruct.read do.
    """
    if not is_dicom(path, old=True):
        raise FileError(f"{path.name} is no DICOM file", "a DICOM-SEG or RTSTRUCT", "check the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values in elements that the mask does not depend on
            with open(path, "rb") as stream:
                check_deflated(stream, path.name)
            dataset = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:  # treatment planning systems export without a preamble
                implicit = dataset.original_encoding[0]  # as detected
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            return _read(path, dataset, grid, segment)
    except RuntimeError as error:  # pydicom names the packages that a transfer syntax needs
        given = f"the compressed pixels of {path.name} ({error})"
        raise UnsupportedError(given, "another transfer syntax", "pip install 'voxsam[dicom]', or export it") from error
    except BROKEN as error:
        raise _unreadable(path.name, error) from error


def _unreadable(name: str, error: Exception) -> FileError:
    """The error for an unreadable file: damage if its bytes end early or are malformed, otherwise what it lacks."""
    if isinstance(error, (EOFError, OSError, struct.error, zlib.error, InvalidDicomError, BytesLengthException)):
        return truncated(name, f"it is not a valid DICOM mask: {error}")
    what = str(error)
    if isinstance(error, AttributeError) and error.name:
        what = f"it has no {error.name}"
    elif isinstance(error, KeyError):
        what = f"it has no {keyword_for_tag(error.args[0]) or error}"
    elif isinstance(error, (IndexError, TypeError)):
        what = "an element that it needs is empty, or of another type"
    given = f"{name} is not a valid DICOM mask: {what}"
    return FileError(given, "a DICOM-SEG or RTSTRUCT with all that it needs", "export it again")


def _read(path: Path, dataset: pydicom.Dataset, grid: Grid | None, segment: int | None) -> Volume:
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if kind is None:
        raise truncated(path.name, "it ends before it says what it is")
    if kind == RTStructureSetStorage:
        return rtstruct.read(path, dataset, grid, segment)
    if kind not in (SegmentationStorage, seg.LABELMAP_STORAGE):
        given = f"{path.name} is a DICOM file of another kind ({kind.name})"
        raise FileError(given, "a DICOM-SEG or RTSTRUCT", "give the file of the mask")
    if int(dataset.get("NumberOfFrames") or 0) < 1:
        raise FileError(f"{path.name} does not say how many frames it has", "NumberOfFrames", "export it again")
    shape = (int(dataset.Columns), int(dataset.Rows), frame_count(dataset))
    # at least one bit per voxel, compressed or not
    check_size(path.name, shape, 1, 8 * path.stat().st_size, compressed=True)
    check_frames(dataset, path.name)
    return seg.read(path, dataset, grid, segment)


def write_mask(
    mask: Volume,
    path: Path,
    source: DicomSource,
    *,
    segments: Sequence[SegmentInfo],
    regions: Sequence[Region] = (),
    model: str = "",
    labelmap: bool = False,
) -> None:
    """Write a mask as RTSTRUCT if the name ends in RTSTRUCT_SUFFIX, otherwise as DICOM-SEG.

    `segments` has one entry per label; `regions` are the labels' voxels on the mask's grid, for labels that overlap.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values of the series that do not quite conform are copied as they are
        if _is_rtstruct(path):
            rtstruct.write(mask, path, source, segments=segments, regions=regions, model=model)
        else:
            seg.write(mask, path, source, segments=segments, regions=regions, model=model, labelmap=labelmap)


def series_of(scan: Volume, path: Path) -> DicomSource:
    """The series that a mask written to `path` refers to.

    Raises FileError if the scan did not come from DICOM or cannot be referred to, UnsupportedError if a DICOM-SEG is
    requested and highdicom is not installed.
    """
    source = scan.header.get("dicom")
    if not isinstance(source, DicomSource):
        given = f"the DICOM output {path.name} for a scan that was not read from DICOM"
        raise FileError(given, "a DICOM series", "give it as source=SERIES in Python, or write .nii.gz")
    source.require()
    if not _is_rtstruct(path):
        seg.highdicom()
    return source


def is_seg(path: Path) -> bool:
    """Whether a mask written to `path` becomes a DICOM-SEG."""
    return path.suffix.lower() == ".dcm" and not _is_rtstruct(path)


def _is_rtstruct(path: Path) -> bool:
    return path.name.lower().endswith(RTSTRUCT_SUFFIX)

"""A DICOM series (CT, MR or another modality of slices), as a folder, a zip or one multi-frame file, into a Volume.

Slices are sorted by their position along the slice normal, never by file name or instance number. Index i is the
column, j the row, k the slice in the direction of the normal (row direction x column direction). stack.py says where
they lie; a stack that no regular grid describes is refused, with the reason. Of several stacks the one is read that is
no localizer, or the one that was asked for.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.uid import MediaStorageDirectoryStorage

from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.io.checks import check_size, colour
from voxsam.io.dicom.files import Slice, Stored, is_marked, read_slice, read_slices, unzipped_slices
from voxsam.io.dicom.pixels import decode, frame_bytes, frame_count, split, value_of
from voxsam.io.dicom.source import DicomSource
from voxsam.io.dicom.stack import stacked
from voxsam.volume import Volume

LISTED = 24  # stacks in a message
FEW = 2  # images of a stack that a scan with more may push aside
PARALLEL = 0.05  # difference of the cosines of two images
SCOUTS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW")  # in ImageType or the description


def read(path: Path, wanted: str = "") -> Volume:
    """The series in `path`, float32 if any slice is rescaled, as stored otherwise; header["dicom"]: a DicomSource.

    `wanted` is a series number or UID. Raises FileError if there is no series, several that could be meant, or a file
    cut off; GeometryError if the slices do not form a regular grid; ImageError for colour; UnsupportedError for
    multi-frame files whose frames have no positions.
    """
    with _images(path) as images:
        name = path.name or str(path)
        slices, remarks = _chosen(images, name, wanted)
        return _volume(slices, name, remarks)


@contextmanager
def _images(path: Path):
    """The images of a folder, of a zip, beside a DICOMDIR, or of one file."""
    if path.is_dir():
        yield read_slices(path)
    elif path.suffix.lower() == ".zip":
        with unzipped_slices(path) as images:
            yield images
    elif _is_directory_file(path):
        yield read_slices(path.parent)
    else:
        image = read_slice(Stored(path, 0, path.stat().st_size), path.name)
        if image is None:
            given = f"{path.name} holds no DICOM image"
            raise FileError(given, "a multi-frame file or the folder of a series", "give it")
        if frame_count(image.header) == 1:
            given = f"{path.name} is a single DICOM file"
            raise FileError(given, "the folder or .zip of its series", "give that folder")
        yield [image]


def _is_directory_file(path: Path) -> bool:
    """Whether a file is the DICOMDIR of a disc (PS3.10 8.6), by its name or by what it says of itself."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    return is_marked(head) and (path.name.upper() == "DICOMDIR" or MediaStorageDirectoryStorage.encode() in head)


# Which stack


def _chosen(images: Iterable[Slice], name: str, wanted: str) -> tuple[list[Slice], list[str]]:
    """The images of the one stack to read, without doubles, and what is to be said of the others."""
    placed, unplaced = [], []
    for image in images:
        has_place = "ImagePositionPatient" in image.header or frame_count(image.header) > 1
        (placed if has_place else unplaced).append(image)
    stacks = _stacks(placed or unplaced)
    if not stacks:
        raise FileError(
            f"{name} holds no DICOM images", "a DICOM series (CT or MR)", "give the folder with its .dcm files"
        )
    labels = _labels(stacks)
    if wanted:
        matching = [n for n, stack in enumerate(stacks) if wanted in (labels[n], stack[0].series)]
        matching = matching or [n for n in range(len(stacks)) if labels[n].partition(".")[0] == wanted]
        if not matching:
            listed = _listed(stacks, labels)
            raise FileError(f"series {wanted!r} of {name}", f"one of its series: {listed}", "choose with --series")
    else:
        matching = list(range(len(stacks)))
    scans = [n for n in matching if not _is_aside(stacks[n])] if len(matching) > 1 else matching
    if len(scans) != 1:
        given = (
            f"{name} holds {len(matching)} image series ({_listed([stacks[n] for n in matching], labels, matching)})"
        )
        raise FileError(given, "one series", "choose with --series N (or series= in Python), N the number or UID")
    others = [n for n in range(len(stacks)) if n != scans[0]]
    remarks = []
    if others:
        left_out = _listed([stacks[n] for n in others], labels, others)
        remarks.append(f"{name}: read {_describe(stacks[scans[0]], labels[scans[0]])}; left out: {left_out}")
    chosen, doubles = _without_doubles(stacks[scans[0]])
    if doubles:
        remarks.append(f"{name} has {doubles} cop{'y' if doubles == 1 else 'ies'} of the same image; each counts once")
    return chosen, remarks


def _stacks(images: Iterable[Slice]) -> list[list[Slice]]:
    """The images by series, those of one series apart where some are localizers or lie across the others."""
    series: dict[str, list[Slice]] = defaultdict(list)
    for image in images:
        series[image.series].append(image)
    found = []
    for members in series.values():
        parts: list[list[Slice]] = []
        for image in members:
            part = next((part for part in parts if _is_like(part[0], image)), None)
            if part is None:
                parts.append([image])
            else:
                part.append(image)
        largest = max(parts, key=len)
        # a slice or two of another size are a fault of the series, not a series: stack.py says which
        apart = all(len(part) > FEW or _is_scout(part[0]) or not _is_parallel(part[0], largest[0]) for part in parts)
        found += parts if apart and not _is_aside(largest) else [members]
    return found


def _is_like(image: Slice, other: Slice) -> bool:
    """Whether two images may be slices of one stack."""
    alike = image.size == other.size and _is_scout(image) == _is_scout(other)
    return alike and _is_parallel(image, other)


def _is_parallel(image: Slice, other: Slice) -> bool:
    """Whether two images have about the same orientation; one that says none is like any other."""
    try:
        turns = [each.numbers("ImageOrientationPatient", 6) for each in (image, other)]
    except GeometryError:
        return True
    return bool(np.abs(turns[0] - turns[1]).max() < PARALLEL)


def _is_scout(image: Slice) -> bool:
    words = f"{image.header.get('ImageType', '')} {image.header.get('SeriesDescription', '')}".upper()
    return any(word in words for word in SCOUTS)


def _is_aside(stack: list[Slice]) -> bool:
    """Whether a stack is a localizer, or too few images to be the scan."""
    if frame_count(stack[0].header) > FEW and not _is_scout(stack[0]):
        return False
    return len(stack) <= FEW or all(_is_scout(image) for image in stack)


def _labels(stacks: list[list[Slice]]) -> list[str]:
    """What each stack is called: its series number, with .1, .2 where several have it."""
    numbers = [str(stack[0].header.get("SeriesNumber") or "0") for stack in stacks]
    counted: dict[str, int] = defaultdict(int)
    labels = []
    for number in numbers:
        counted[number] += 1
        labels.append(number if numbers.count(number) == 1 else f"{number}.{counted[number]}")
    return labels


def _listed(stacks: Sequence[list[Slice]], labels: list[str], numbers: Sequence[int] | None = None) -> str:
    chosen = range(len(stacks)) if numbers is None else numbers
    words = [_describe(stack, labels[n]) for stack, n in zip(stacks[:LISTED], chosen, strict=False)]
    return ", ".join([*words, *["..."] * (len(stacks) > LISTED)])


def _describe(stack: list[Slice], label: str) -> str:
    header = stack[0].header
    title = str(header.get("SeriesDescription", ""))
    label = f"{header.get('Modality', '?')} series {label}"
    return f"{label}{f' {title!r}' if title else ''}: {len(stack)} image{'s' if len(stack) > 1 else ''}"


def _without_doubles(images: list[Slice]) -> tuple[list[Slice], int]:
    """The images, each instance once, and how many copies there were. Raises FileError for two that differ."""
    kept: dict[str, Slice] = {}
    for image in images:
        instance = str(image.header.get("SOPInstanceUID", "")) or f"no UID {len(kept)}"
        first = kept.setdefault(instance, image)
        if first is not image and _content(first) != _content(image):
            given = f"{first.name} and {image.name} have one SOPInstanceUID, but other pixels"
            raise FileError(given, "one file for each instance", "remove the one that does not belong here")
    return list(kept.values()), len(images) - len(kept)


def _content(image: Slice) -> tuple[bytes, str]:
    """A digest of the pixels, and where they lie."""
    at = image.element if image.pixels is None else 0
    data = image.stored.read(at, image.stored.size) if image.pixels is None else image.pixels
    if image.pixels is None and (found := value_of(image))[1] is not None:
        data = image.stored.read(found[0], frame_bytes(image.header))
    return hashlib.sha256(data).digest(), str(image.header.get("ImagePositionPatient", ""))


# The volume


def _volume(files: list[Slice], name: str, remarks: list[str]) -> Volume:
    _check_kind(files)
    slices = [part for file in files for part in (split(file) if frame_count(file.header) > 1 else [file])]
    _check_sizes(slices, name)
    slices, grid, said = stacked(slices, name)
    array = decode(slices, grid.shape)
    modality = str(slices[0].header.get("Modality", ""))
    return Volume(array, grid, modality, {"dicom": DicomSource.of(slices, grid)}, (*remarks, *said))


def _check_kind(files: list[Slice]) -> None:
    """Grey pixels in each file."""
    for image in files:
        if int(image.header.get("SamplesPerPixel") or 1) > 1:
            raise colour(image.name)
        shades = image.header.get("PhotometricInterpretation", "MONOCHROME2")
        if shades != "MONOCHROME2":  # inverted or not: viewers disagree
            raise ImageError(f"{image.name} is stored as {shades}", "MONOCHROME2", "export the original series")


def _check_sizes(slices: list[Slice], name: str) -> None:
    """The same size in each slice, and enough of them for a scan."""
    sizes = sorted({s.size for s in slices})
    if len(sizes) > 1:
        listed = " and ".join(f"{c} x {r}" for c, r in sizes[:2])
        raise GeometryError(f"{name} has slices of {listed} pixels", "one size", "remove the images of another kind")
    if len(slices) < 2:
        raise ImageError(f"{name} holds a single slice ({slices[0].name})", "a 3D scan", "give the whole series")
    file_bytes = sum({s.stored: s.stored.size for s in slices}.values())
    check_size(name, (*sizes[0], len(slices)), 1, file_bytes, compressed=True)

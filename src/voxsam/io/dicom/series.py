"""Read a DICOM series (CT, MR or another sliced modality) from a folder, a zip or one multi-frame file as a Volume.

Slices are sorted by their position along the slice normal, never by file name or instance number. Index i is the
column, j the row, k the slice in the direction of the normal (row direction x column direction). The affine is exact:
ImageOrientationPatient and PixelSpacing in the plane, the mean step of ImagePositionPatient between slices (DICOM PS3.3
C.7.6.2.1.1), LPS turned into RAS. A stack that no regular grid describes is refused, with the reason. Of several stacks
the one asked for is read, otherwise the only one that is not a localizer.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import MediaStorageDirectoryStorage

from voxsam.errors import FileError, GeometryError, ImageError, SeriesError
from voxsam.geometry import Grid
from voxsam.io.checks import check_size, colour
from voxsam.io.dicom.files import Slice, Stored, is_marked, read_slice, read_slices, unzipped_slices
from voxsam.io.dicom.pixels import decode, frame_bytes, frame_count, split, value_of
from voxsam.io.dicom.source import DicomSource
from voxsam.volume import Volume

SAME_POSITION_MM = 1e-3
POSITION_TOLERANCE_MM = 0.11  # rounding to one decimal, in a position and again in the ends that define the step ...
ROUNDING = 0.3  # ... but never more than this fraction of the slice spacing
POSITION_TOLERANCE = 0.05  # of the slice spacing: the mask is then off by a twentieth of a voxel at most
DIRECTION_TOLERANCE = 1e-3  # between the unit vectors of two slices: a drift of 0.05 degrees
ANGLE_TOLERANCE = 4e-3  # from unit length and from a right angle: cosines written with three decimals
TILT_REMARK_DEGREES = 0.5  # anything below is rounding; real gantry tilts are 5 to 30 degrees
MAX_TILT_DEGREES = 60


def stacked(slices: list[Slice], name: str) -> tuple[list[Slice], Grid, list[str]]:
    """The slices sorted along their normal, their grid, and remarks. Raises GeometryError if they do not form one."""
    orientations = np.stack([s.numbers("ImageOrientationPatient", 6) for s in slices])
    spacings = np.stack([s.numbers("PixelSpacing", 2) for s in slices])  # between rows (j), between columns (i)
    positions = np.stack([s.numbers("ImagePositionPatient", 3) for s in slices])
    along_i, along_j = _directions(orientations, name)
    between_rows, between_columns = spacings[0]
    if spacings.min() <= 0 or not np.allclose(spacings, spacings[0], rtol=1e-4, atol=0):
        low, high = spacings.min(), spacings.max()
        given = (
            f"{name} has pixel spacings of {low:.4g} to {high:.4g} mm that are not positive or differ between slices"
        )
        raise GeometryError(given, "the same positive PixelSpacing in all slices", "export the original series")
    normal = np.cross(along_i, along_j)
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    step, remarks = _check_stack(slices, positions, normal, name)
    steps = np.stack([along_i * between_columns, along_j * between_rows, step], axis=1)
    shape = (*slices[0].size, len(slices))
    return slices, Grid.from_lps(shape, steps, positions[0]), remarks


def _directions(orientations: NDArray[np.float64], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) unit vectors along which column (i) and row (j) numbers grow, LPS; the same for all slices."""
    if np.abs(orientations - orientations[0]).max() > DIRECTION_TOLERANCE:
        given = f"the slices of {name} have different orientations"
        raise GeometryError(given, "parallel slices", "remove localizers and other planes")
    along_i, along_j = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(along_i), np.linalg.norm(along_j)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(along_i @ along_j)) > ANGLE_TOLERANCE:
        given = f"ImageOrientationPatient of {name} is not two perpendicular unit vectors"
        raise GeometryError(given, "a valid orientation", "export the original series")
    # the nearest orthonormal pair: cosines that were rounded become exactly perpendicular
    u, _, vt = np.linalg.svd(np.stack([along_i, along_j]), full_matrices=False)
    along_i, along_j = u @ vt
    return along_i, along_j


def _check_stack(
    slices: list[Slice], positions: NDArray[np.float64], normal: NDArray[np.float64], name: str
) -> tuple[NDArray[np.float64], list[str]]:
    """(3,) the step between slices, LPS mm, and remarks. Raises GeometryError unless `positions` (n, 3) follow it."""
    heights = positions @ normal
    gaps = np.diff(heights)
    if gaps.min() < SAME_POSITION_MM:
        k, count = int(gaps.argmin()), int((gaps < SAME_POSITION_MM).sum())
        raise GeometryError(
            f"{name} has duplicate slices: {slices[k].name} and {slices[k + 1].name} lie at the same position, "
            f"{heights[k]:.2f} mm along the normal ({count} such pairs)",
            "one slice at each position",
            "keep one time point, echo or reconstruction",
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off_line = positions - positions[0] - np.arange(len(slices))[:, None] * step
    height = float(step @ normal)
    tolerance = max(POSITION_TOLERANCE * height, min(POSITION_TOLERANCE_MM, ROUNDING * height))
    if np.abs(off_line @ normal).max() > tolerance:
        raise _uneven(gaps, heights, name)
    sideways = np.linalg.norm(step - height * normal)
    tilt = float(np.degrees(np.arctan2(sideways, height)))
    if tilt > MAX_TILT_DEGREES or np.abs(off_line).max() > tolerance:
        shift = float(np.abs(off_line).max())
        raise GeometryError(
            f"the slices of {name} are not stacked in a line: one is shifted by {shift:.3g} mm in its plane "
            f"(the others lean by {tilt:.1f} degrees)",
            "slices that follow one direction",
            "remove the images of another acquisition",
        )
    if tilt <= TILT_REMARK_DEGREES:
        return step, []
    remark = f"the slices of {name} lean by {tilt:.1f} degrees (gantry tilt): each is shifted by {sideways:.3g} mm"
    return step, [f"{remark}; read as the sheared grid that this is, distances across slices are less exact"]


def _uneven(gaps: NDArray[np.float64], heights: NDArray[np.float64], name: str) -> GeometryError:
    """The error for slices that are not evenly spaced: some missing, or no common distance."""
    usual = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    missing = np.rint(gaps / usual) - 1
    k = int(gaps.argmax())
    between = f"between {heights[k]:.2f} and {heights[k + 1]:.2f} mm along the normal"
    if missing.sum() > 0 and np.abs(gaps / usual - missing - 1).max() < 0.1 * (missing.max() + 1):
        given = f"{name} has {missing.sum():.0f} missing slice(s), the largest gap {between}"
        return GeometryError(given, f"a slice every {usual:.4g} mm", "copy or export the whole series again")
    given = f"{name} has uneven slice spacing ({gaps.min():.4g} to {gaps.max():.4g} mm, the largest gap {between})"
    return GeometryError(given, "one slice spacing", "resample it to even slices first and give the NIfTI")


LISTED = 24  # stacks in a message
FEW = 2  # images of a stack that is set aside if there is one with more
PARALLEL = 0.05  # largest difference between the direction cosines of two parallel images
SCOUTS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW")  # in ImageType or the description


def read(path: Path, wanted: str = "") -> Volume:
    """Read the series in `path`, float32 if any slice is rescaled, otherwise as stored; header["dicom"]: a DicomSource.

    `wanted` is a series number or UID. Raises FileError if there is no series, more than one candidate, or a truncated
    file; GeometryError if the slices do not form a regular grid; ImageError for colour; UnsupportedError for
    multi-frame files whose frames have no positions.
    """
    with _images(path) as images:
        name = path.name or str(path)
        files, remarks = _chosen(images, name, wanted)
        for image in files:
            if int(image.header.get("SamplesPerPixel") or 1) > 1:
                raise colour(image.name)
            shades = image.header.get("PhotometricInterpretation", "MONOCHROME2")
            if shades != "MONOCHROME2":  # inverted or not: viewers disagree
                raise ImageError(f"{image.name} is stored as {shades}", "MONOCHROME2", "export the original series")
        slices = [part for file in files for part in (split(file) if frame_count(file.header) > 1 else [file])]
        _check_sizes(slices, name)
        slices, grid, said = stacked(slices, name)
        array = decode(slices, grid.shape)
        modality = str(slices[0].header.get("Modality", ""))
        return Volume(array, grid, modality, {"dicom": DicomSource.of(slices, grid)}, (*remarks, *said))


@contextmanager
def _images(path: Path):
    """The images of a folder, of a zip, beside a DICOMDIR, or of one file."""
    if path.is_dir():
        yield read_slices(path)
        return
    if path.suffix.lower() == ".zip":
        with unzipped_slices(path) as images:
            yield images
        return
    with open(path, "rb") as stream:
        head = stream.read(512)
    # the DICOMDIR of a disc (PS3.10 8.6), by its name or by its storage class
    if is_marked(head) and (path.name.upper() == "DICOMDIR" or MediaStorageDirectoryStorage.encode() in head):
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


# Which stack


def _chosen(images: Iterable[Slice], name: str, wanted: str) -> tuple[list[Slice], list[str]]:
    """The images of the one stack to read, without duplicates, and remarks on what was left out."""
    placed, unplaced = [], []
    for image in images:
        has_place = "ImagePositionPatient" in image.header or frame_count(image.header) > 1
        (placed if has_place else unplaced).append(image)
    stacks = _labelled(_stacks(placed or unplaced))
    if not stacks:
        expected, remedy = "a DICOM series (CT or MR)", "give the folder with its .dcm files"
        raise FileError(f"{name} holds no DICOM images", expected, remedy)
    matching = stacks
    if wanted:
        matching = {label: stack for label, stack in stacks.items() if wanted in (label, stack[0].series)}
        matching = matching or {label: s for label, s in stacks.items() if label.partition(".")[0] == wanted}
    if not matching:
        listed = f"one of its series: {_listed(stacks)}"
        raise FileError(f"series {wanted!r} of {name}", listed, "choose with --series")
    scans = [label for label, stack in matching.items() if len(matching) == 1 or not _is_aside(stack)]
    if len(scans) != 1:
        given = f"{name} holds {len(matching)} image series ({_listed(matching)})"
        error = SeriesError(given, "one series", "choose with --series N (or series= in Python), N the number or UID")
        error.series = tuple(_facts(label, stacks) for label in matching)
        raise error
    label, remarks = scans[0], []
    others = {other: stack for other, stack in stacks.items() if other != label}
    if others:
        remarks.append(f"{name}: read {_describe(label, stacks[label])}; left out: {_listed(others)}")
    chosen, doubles = _without_doubles(stacks[label])
    if doubles:
        remarks.append(f"{name} has {doubles} cop{'y' if doubles == 1 else 'ies'} of the same image; each counts once")
    return chosen, remarks


def _stacks(images: Iterable[Slice]) -> list[list[Slice]]:
    """The images by series; a series is split if some of its images are localizers or lie across the others."""
    series: dict[str, list[Slice]] = defaultdict(list)
    for image in images:
        series[image.series].append(image)
    found = []
    for members in series.values():
        parts: list[list[Slice]] = []
        for image in members:
            for part in parts:
                other = part[0]
                if image.size == other.size and _is_scout(image) == _is_scout(other) and _is_parallel(other, image):
                    part.append(image)
                    break
            else:
                parts.append([image])
        largest = max(parts, key=len)
        # a slice or two of another size are a fault of the series, not another stack: _check_sizes reports it
        apart = all(len(part) > FEW or _is_scout(part[0]) or not _is_parallel(part[0], largest[0]) for part in parts)
        found += parts if apart and not _is_aside(largest) else [members]
    return found


def _is_parallel(image: Slice, other: Slice) -> bool:
    """Whether two images have about the same orientation; an image without one matches any other."""
    try:
        turns = [each.numbers("ImageOrientationPatient", 6) for each in (image, other)]
    except GeometryError:
        return True
    return bool(np.abs(turns[0] - turns[1]).max() < PARALLEL)


def _is_scout(image: Slice) -> bool:
    words = f"{image.header.get('ImageType', '')} {image.header.get('SeriesDescription', '')}".upper()
    return any(word in words for word in SCOUTS)


def _is_aside(stack: list[Slice]) -> bool:
    """Whether a stack is a localizer, or has too few images to be the scan."""
    if frame_count(stack[0].header) > FEW and not _is_scout(stack[0]):
        return False
    return len(stack) <= FEW or all(_is_scout(image) for image in stack)


def _labelled(stacks: list[list[Slice]]) -> dict[str, list[Slice]]:
    """The stacks by label: the series number, with .1, .2, ... where several stacks share it."""
    numbers = [str(stack[0].header.get("SeriesNumber") or "0") for stack in stacks]
    total, counted, found = Counter(numbers), Counter(), {}
    for number, stack in zip(numbers, stacks, strict=True):
        counted[number] += 1
        found[number if total[number] == 1 else f"{number}.{counted[number]}"] = stack
    return found


def _listed(stacks: dict[str, list[Slice]]) -> str:
    words = [_describe(label, stack) for label, stack in islice(stacks.items(), LISTED)]
    return ", ".join([*words, *["..."] * (len(stacks) > LISTED)])


def _facts(label: str, stacks: dict[str, list[Slice]]) -> dict[str, Any]:
    """The facts by which a user chooses a stack; "uid" is what to request: the series UID, or the label if shared."""
    stack = stacks[label]
    header, uid = stack[0].header, stack[0].series
    count = max(len(stack), frame_count(header))
    shared = sum(other[0].series == uid for other in stacks.values()) > 1
    try:
        between_rows, between_columns = stack[0].numbers("PixelSpacing", 2).tolist()
        places = np.array([image.numbers("ImagePositionPatient", 3) for image in stack])
        length = float(np.linalg.norm(places - places[0], axis=1).max())
        spacing = [between_columns, between_rows, length / (len(stack) - 1) if len(stack) > 1 else None]
    except GeometryError:  # a multi-frame file has these elsewhere
        spacing = None
    return {
        "uid": label if shared else uid,
        "number": label,
        "description": str(header.get("SeriesDescription", "")),
        "modality": str(header.get("Modality", "")),
        "count": count,
        "shape": [*stack[0].size, count],
        "spacing_mm": spacing and [None if mm is None else round(mm, 4) for mm in spacing],
        "localizer": _is_aside(stack),
    }


def _describe(label: str, stack: list[Slice]) -> str:
    header = stack[0].header
    title = str(header.get("SeriesDescription", ""))
    series = f"{header.get('Modality', '?')} series {label}{f' {title!r}' if title else ''}"
    return f"{series}: {len(stack)} image{'s' if len(stack) > 1 else ''}"


def _without_doubles(images: list[Slice]) -> tuple[list[Slice], int]:
    """The images, each instance once, and the number of copies dropped. Raises FileError if copies differ."""
    kept: dict[str, Slice] = {}
    for image in images:
        instance = str(image.header.get("SOPInstanceUID", "")) or f"no UID {len(kept)}"
        first = kept.setdefault(instance, image)
        if first is not image and _content(first) != _content(image):
            given = f"{first.name} and {image.name} have one SOPInstanceUID, but other pixels"
            raise FileError(given, "one file for each instance", "remove the one that does not belong here")
    return list(kept.values()), len(images) - len(kept)


def _content(image: Slice) -> tuple[bytes, str]:
    """A digest of the pixels, and the image's position."""
    data = image.pixels
    if data is None:
        at, length = value_of(image)
        part = (image.element, image.stored.size) if length is None else (at, frame_bytes(image.header))
        data = image.stored.read(*part)
    return hashlib.sha256(data).digest(), str(image.header.get("ImagePositionPatient", ""))


def _check_sizes(slices: list[Slice], name: str) -> None:
    """Raises GeometryError for slices of different sizes, ImageError for a single slice, and as `check_size` does."""
    sizes = sorted({s.size for s in slices})
    if len(sizes) > 1:
        listed = " and ".join(f"{c} x {r}" for c, r in sizes[:2])
        raise GeometryError(f"{name} has slices of {listed} pixels", "one size", "remove the images of another kind")
    if len(slices) < 2:
        raise ImageError(f"{name} holds a single slice ({slices[0].name})", "a 3D scan", "give the whole series")
    file_bytes = sum({s.stored: s.stored.size for s in slices}.values())
    check_size(name, (*sizes[0], len(slices)), 1, file_bytes, compressed=True)

"""A DICOM series (CT, MR or another modality of slices), as a folder, a zip or one multi-frame file, into a Volume.

Slices are sorted by their position along the slice normal, never by file name or instance number. Index i is the
column, j the row, k the slice in the direction of the normal (row direction x column direction). dicom_stack.py says
where they lie; a stack that no regular grid describes is refused, with the reason.

Headers are read with pydicom (dicom_files.py says why). Pixels are decoded by GDCM through SimpleITK, because it
decodes every transfer syntax in use, JPEG lossless, JPEG-LS and JPEG 2000 included, without further packages; it
applies the rescale slope and intercept of each slice in double precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.io.checks import check_size, colour, truncated
from voxsam.io.dicom.archive import unzipped_slices
from voxsam.io.dicom.files import BROKEN, Slice, read_slice, read_slices
from voxsam.io.dicom.frames import frame_count, split
from voxsam.io.dicom.source import DicomSource
from voxsam.io.dicom.stack import stacked
from voxsam.volume import Volume

LISTED_SERIES = 8


def read(path: Path) -> Volume:
    """The one series in `path`, float32 if any slice is rescaled, as stored otherwise; header["dicom"]: a DicomSource.

    Raises FileError if there is no series, more than one, or a file cut off; GeometryError if the slices do not
    form a regular grid; ImageError for colour; UnsupportedError for multi-frame files whose frames have no positions.
    """
    if path.is_dir():
        return _volume(read_slices(path), path.name or str(path))
    if path.suffix.lower() == ".zip":
        with unzipped_slices(path) as slices:
            return _volume(slices, path.name)
    image = read_slice(path, path.name)
    if image is None:
        raise FileError(f"{path.name} holds no DICOM image", "a multi-frame file or the folder of a series", "give it")
    if frame_count(image.header) == 1:
        raise FileError(f"{path.name} is a single DICOM file", "the folder or .zip of its series", "give that folder")
    return _volume([image], path.name)


def _volume(images: Iterable[Slice], name: str) -> Volume:
    files = _only_series(images, name)
    _check_kind(files)
    with TemporaryDirectory(prefix="voxsam-") as folder:
        slices = [part for file in files for part in _parts(file, Path(folder))]
        _check_sizes(slices, name)
        slices, grid = stacked(slices, name)
        array = _pixels(slices, grid.shape, name)
        source = DicomSource.of(slices, grid)
    return Volume(array, grid, str(slices[0].header.get("Modality", "")), {"dicom": source})


def _parts(file: Slice, folder: Path) -> Sequence[Slice]:
    """The frames of a multi-frame file; else the file itself."""
    if frame_count(file.header) == 1:
        return [file]
    try:
        return list(split(file, folder))
    except BROKEN as error:
        raise truncated(file.name, f"its frames cannot be read: {error}") from error


def _only_series(images: Iterable[Slice], name: str) -> list[Slice]:
    """The slices of the only series; screenshots and reports (series without any position) do not count as one."""
    series: dict[str, list[Slice]] = defaultdict(list)
    for image in images:
        series[image.series].append(image)
    if not series:
        raise FileError(
            f"{name} holds no DICOM images", "a DICOM series (CT or MR)", "give the folder with its .dcm files"
        )
    placed = {
        uid: s
        for uid, s in series.items()
        if any("ImagePositionPatient" in i.header or frame_count(i.header) > 1 for i in s)
    }
    candidates = list((placed or series).values())
    if len(candidates) > 1:
        listed = ", ".join(_describe(s) for s in candidates[:LISTED_SERIES])
        more = ", ..." if len(candidates) > LISTED_SERIES else ""
        given = f"{name} holds {len(candidates)} image series ({listed}{more})"
        raise FileError(given, "one series", "put the series to segment into a folder of its own")
    return candidates[0]


def _describe(slices: list[Slice]) -> str:
    header = slices[0].header
    number, title = header.get("SeriesNumber"), str(header.get("SeriesDescription", ""))
    label = f"{header.get('Modality', '?')} series {'?' if number is None else number}"
    return f"{label}{f' {title!r}' if title else ''}: {len(slices)} image{'s' if len(slices) > 1 else ''}"


def _check_kind(files: list[Slice]) -> None:
    """Grey pixels in each file."""
    for image in files:
        if int(image.header.get("SamplesPerPixel") or 1) > 1:
            raise colour(image.name)
        shades = image.header.get("PhotometricInterpretation", "MONOCHROME2")
        if shades != "MONOCHROME2":  # GDCM would invert MONOCHROME1, and the numbers were no HU any more
            raise ImageError(f"{image.name} is stored as {shades}", "MONOCHROME2", "export the original series")


def _check_sizes(slices: list[Slice], name: str) -> None:
    """The same size in each slice, and enough of them for a scan."""
    sizes = sorted({(s.header.Columns, s.header.Rows) for s in slices})
    if len(sizes) > 1:
        listed = " and ".join(f"{c} x {r}" for c, r in sizes[:2])
        raise GeometryError(f"{name} has slices of {listed} pixels", "one size", "remove the images of another kind")
    if len(slices) < 2:
        raise ImageError(f"{name} holds a single slice ({slices[0].name})", "a 3D scan", "give the whole series")
    header = slices[0].header
    shape = (header.Columns, header.Rows, len(slices))
    check_size(name, shape, 1, sum(s.file.stat().st_size for s in slices), compressed=True)


def _pixels(slices: list[Slice], shape: tuple[int, int, int], name: str) -> NDArray[np.generic]:
    """(i, j, k) voxels; each slice is decoded straight into its place."""
    kinds = {(s.scaling, s.header.get("BitsAllocated"), s.header.get("PixelRepresentation")) for s in slices}
    as_stored = len(kinds) == 1 and slices[0].scaling == (1.0, 0.0)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    array: NDArray[np.generic] | None = None
    for k, image in enumerate(slices):
        reader.SetFileName(str(image.file))
        try:
            decoded = reader.Execute()
        except RuntimeError as error:
            raise _undecodable(image) from error
        pixels = sitk.GetArrayViewFromImage(decoded)
        if pixels.size != shape[0] * shape[1]:
            raise truncated(image.name, f"{pixels.size} pixels were decoded, {shape[0] * shape[1]} are declared")
        if array is None:
            array = np.empty(shape[::-1], pixels.dtype if as_stored else np.float32)
        array[k] = pixels.reshape(shape[1], shape[0])
    assert array is not None, name
    return array.T


def _undecodable(image: Slice) -> FileError:
    syntax = image.header.file_meta.get("TransferSyntaxUID")
    given = f"the pixels of {image.name} cannot be decoded (transfer syntax {syntax.name if syntax else 'unknown'})"
    return FileError(given, "undamaged pixels in a common transfer syntax", "export the series again, uncompressed")

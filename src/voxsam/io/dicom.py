"""A DICOM series (CT, MR or another slice-by-slice modality), as a folder or zip, into a Volume.

Slices are sorted by their position along the slice normal, never by file name or instance number. Index i is the
column, j the row, k the slice in the direction of the normal (row direction x column direction). The affine is exact:
ImageOrientationPatient and PixelSpacing in the plane, the mean step of ImagePositionPatient between slices (DICOM
PS3.3 C.7.6.2.1.1), LPS turned into RAS. A stack that no such grid describes is refused, with the reason.

Headers are read with pydicom (dicom_files.py says why). Pixels are decoded by GDCM through SimpleITK, because it
decodes every transfer syntax in use, JPEG lossless and JPEG 2000 included, without further packages; it applies the
rescale slope and intercept of each slice in double precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from voxsam.errors import FileError, GeometryError, ImageError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.io.checks import check_size, colour, truncated
from voxsam.io.dicom_files import Slice, read_slices, unzipped_slices
from voxsam.io.lps import grid_from_lps
from voxsam.volume import Volume

SAME_POSITION_MM = 1e-3
POSITION_TOLERANCE_MM = 0.06  # some scanners write positions with one decimal
POSITION_TOLERANCE = 0.05  # of the slice spacing: the mask is then off by a twentieth of a voxel at most
DIRECTION_TOLERANCE = 1e-3  # between the unit vectors of two slices, or from a right angle
SHEAR_TOLERANCE_DEGREES = 0.5  # rounding of the orientation to three decimals; real gantry tilts are 5 to 30 degrees
LISTED_SERIES = 8


def read(path: Path) -> Volume:
    """The one series in `path`, float32 if any slice is rescaled, as stored otherwise.

    Raises FileError if there is no series, more than one, or a file cut off; GeometryError if the slices do not
    form a regular grid; ImageError for colour; UnsupportedError for multi-frame files.
    """
    if path.is_dir():
        return _volume(read_slices(path), path.name or str(path))
    with unzipped_slices(path) as slices:
        return _volume(slices, path.name)


def _volume(images: Iterable[Slice], name: str) -> Volume:
    slices = _only_series(images, name)
    _check_kind(slices, name)
    slices, grid = _stacked(slices, name)
    return Volume(_pixels(slices, grid.shape, name), grid, modality=str(slices[0].header.get("Modality", "")))


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
        uid: s for uid, s in series.items() if any("ImagePositionPatient" in i.header or _frames(i) > 1 for i in s)
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


def _frames(image: Slice) -> int:
    return int(image.header.get("NumberOfFrames") or 1)


def _check_kind(slices: list[Slice], name: str) -> None:
    """One grey frame per file, the same size in each, and enough of them for a scan."""
    for image in slices:
        if _frames(image) > 1:
            given = f"{image.name} is a multi-frame DICOM file of {_frames(image)} frames"
            raise UnsupportedError(given, "one file per slice", "convert it to NIfTI first (dcm2niix, say)")
        if int(image.header.get("SamplesPerPixel") or 1) > 1:
            raise colour(image.name)
        shades = image.header.get("PhotometricInterpretation", "MONOCHROME2")
        if shades != "MONOCHROME2":  # GDCM would invert MONOCHROME1, and the numbers were no HU any more
            raise ImageError(f"{image.name} is stored as {shades}", "MONOCHROME2", "export the original series")
    sizes = sorted({(s.header.Columns, s.header.Rows) for s in slices})
    if len(sizes) > 1:
        listed = " and ".join(f"{c} x {r}" for c, r in sizes[:2])
        raise GeometryError(f"{name} has slices of {listed} pixels", "one size", "remove the images of another kind")
    if len(slices) < 2:
        raise ImageError(f"{name} holds a single slice ({slices[0].name})", "a 3D scan", "give the whole series")
    header = slices[0].header
    shape = (header.Columns, header.Rows, len(slices))
    check_size(name, shape, 1, sum(s.file.stat().st_size for s in slices), compressed=True)


def _stacked(slices: list[Slice], name: str) -> tuple[list[Slice], Grid]:
    """The slices sorted along their normal, and their grid."""
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
    step = _check_stack(slices, positions, normal, name)
    steps = np.stack([along_i * between_columns, along_j * between_rows, step], axis=1)
    shape = (slices[0].header.Columns, slices[0].header.Rows, len(slices))
    return slices, grid_from_lps(shape, steps, positions[0])


def _directions(orientations: NDArray[np.float64], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) unit vectors along which column (i) and row (j) numbers grow, LPS; the same for all slices."""
    if np.abs(orientations - orientations[0]).max() > DIRECTION_TOLERANCE:
        raise GeometryError(
            f"the slices of {name} have different orientations", "parallel slices", "remove localizers and other planes"
        )
    along_i, along_j = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(along_i), np.linalg.norm(along_j)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(along_i @ along_j)) > DIRECTION_TOLERANCE:
        given = f"ImageOrientationPatient of {name} is not two perpendicular unit vectors"
        raise GeometryError(given, "a valid orientation", "export the original series")
    return along_i / lengths[0], along_j / lengths[1]


def _check_stack(
    slices: list[Slice], positions: NDArray[np.float64], normal: NDArray[np.float64], name: str
) -> NDArray[np.float64]:
    """(3,) the step between slices, LPS mm. Raises GeometryError unless all sorted `positions` (n, 3) follow it."""
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
    tolerance = max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * float(step @ normal))
    if np.abs(off_line @ normal).max() > tolerance:
        raise _uneven(gaps, heights, name)
    sideways = np.linalg.norm(step - (step @ normal) * normal)
    tilt = np.degrees(np.arctan2(sideways, step @ normal))
    if tilt > SHEAR_TOLERANCE_DEGREES or np.abs(off_line).max() > tolerance:
        shift = max(sideways, float(np.abs(off_line).max()))
        raise GeometryError(
            f"the slices of {name} are sheared: each is shifted by {shift:.3g} mm in its plane "
            f"(gantry tilt of {tilt:.1f} degrees)",
            "slices stacked straight along their normal",
            "resample it to an untilted grid first (dcm2niix does) and give the NIfTI",
        )
    return step


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

"""Checks on the voxels of a file: whether they are usable, and what kind of image they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.geometry import Grid
from voxsam.volume import Volume

MAX_VOXELS = 2**31  # 8 GiB as float32: four times a whole-body CT of 512 x 512 x 2000
MAX_DEFLATE_RATIO = 1032  # no zlib stream unpacks to more than this times its size (zlib technical details)
_limits: ContextVar[tuple[int, bool]] = ContextVar("limits", default=(MAX_VOXELS, True))  # voxels, links
FARTHEST_MM = 1e6  # of the first voxel from the origin: float32, as NIfTI stores it, resolves 0.06 mm there
SPACINGS_MM = 1e-4, 200.0  # from nano-CT to the thickest localiser
LABEL_PLATEAU, HIGHEST_LABEL = 0.6, 255  # fraction of equal neighbours above which integers are labels: scans are noisy
MAX_PADDING = 0.5  # of a scan's voxels that may be NaN
LABEL_LIMIT = 16  # an image of nothing but the whole numbers 0..15 is a label map
CT_MINIMUM_HU = -500  # air is -1000 HU; nothing but CT has whole numbers that far below zero


def check_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """The three axes of `shape`, trailing axes of length one dropped. Raises ImageError for fewer or more."""
    axes = tuple(int(n) for n in shape)
    if any(n < 1 for n in axes) or not axes:
        raise ImageError(f"{name} has shape {_by(axes)}", "at least one voxel along each axis", "export the scan again")
    while len(axes) > 3 and axes[-1] == 1:
        axes = axes[:-1]
    if len(axes) != 3:
        remedy = "give the whole stack of slices" if len(axes) < 3 else "save one of its volumes by itself"
        raise ImageError(f"{name} is a {len(axes)}D image ({_by(axes)})", "a 3D scan", remedy)
    return axes  # type: ignore[return-value]


def check_channels(name: str, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The three axes of `shape` and the number of volumes along a fourth. Raises ImageError as `check_shape` does."""
    axes = tuple(int(n) for n in shape)
    while len(axes) > 4 and axes[-1] == 1:
        axes = axes[:-1]
    if len(axes) == 4 and axes[3] > 1:
        return *check_shape(name, axes[:3]), axes[3]
    return *check_shape(name, axes), 1


def links_allowed() -> bool:
    """Whether symbolic links may lead out of a file's folder; not within `at_most`, where files are untrusted."""
    return _limits.get()[1]


def beside(header: Path, name: str) -> Path | None:
    """The file `name` in the header's folder; None if it is missing, or a link that may not be followed."""
    file = header.parent / name
    if not file.is_file() or not (links_allowed() or file.resolve().parent == header.parent.resolve()):
        return None
    return file


@contextmanager
def at_most(voxels: int) -> Iterator[None]:
    """Within the block and this thread, refuse files of more voxels and links out of their folder: for servers."""
    token = _limits.set((min(voxels, MAX_VOXELS), False))
    try:
        yield
    finally:
        _limits.reset(token)


def check_size(name: str, shape: Sequence[int], voxel_bytes: int, file_bytes: int, compressed: bool) -> None:
    """Compare what a header declares with the size of its file, before any memory is taken.

    Raises ImageError for more than MAX_VOXELS (or the limit of `at_most`), FileError if `file_bytes` cannot hold the
    voxels.
    """
    voxels, most = math.prod(shape), _limits.get()[0]
    if voxels > most:
        given, expected = f"{name} declares {_by(shape)} voxels", f"at most {most:,} voxels"
        raise ImageError(given, expected, "repair its header or crop the scan")
    if voxels * voxel_bytes > file_bytes * (MAX_DEFLATE_RATIO if compressed else 1):
        declared = f"{_by(shape)} voxels of {voxel_bytes} bytes"
        raise truncated(name, f"its header declares {declared}, it has {max(0, file_bytes)} bytes")


def check_spacing(name: str, grid: Grid) -> None:
    """Raises GeometryError for a spacing or position that no scanner produces: another unit, or a damaged header."""
    low, high = SPACINGS_MM
    if grid.spacing_mm.min() < low or grid.spacing_mm.max() > high:
        listed = " x ".join(f"{s:.4g}" for s in grid.spacing_mm)
        raise GeometryError(f"{name} has a spacing of {listed} mm", f"{low:g} to {high:g} mm", "repair its header")
    if (far := np.abs(grid.affine[:3, 3]).max()) > FARTHEST_MM:
        given, expected = f"{name} lies {far:.4g} mm from the origin", f"at most {FARTHEST_MM:.0f} mm"
        raise GeometryError(given, expected, "repair its header")


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Raises ImageError for colour (several channels) and for complex voxels."""
    if dtype.fields is not None:
        raise colour(name)
    if dtype.kind == "c":
        raise ImageError(f"{name} has complex voxels", "real numbers", "save its magnitude")
    if dtype.kind not in "biuf" or dtype.itemsize < 1:
        raise ImageError(f"{name} has voxels of no known type", "integers or floats", "export it again")


def without_nan(name: str, volume: Volume) -> Volume:
    """The scan with NaN and -inf replaced by its lowest finite value and inf by its highest, with a remark.

    The header records where, for `is_padding`. Raises ImageError if more than MAX_PADDING of the voxels are not
    finite, which is too many to be padding.
    """
    array = volume.array
    if array.dtype.kind != "f" or np.isfinite(array.min() + array.max()):  # NaN propagates: no copies needed
        return volume
    finite = np.isfinite(array)
    count = array.size - int(np.count_nonzero(finite))
    if count > MAX_PADDING * array.size:
        given = f"{name} has {count} NaN or infinite voxels of {array.size}"
        raise ImageError(given, "finite numbers in most of the scan", "replace them (by air, say)")
    low, high = array[finite].min(), array[finite].max()
    filled = np.nan_to_num(array, nan=low, posinf=high, neginf=low)
    remark = f"{name} has {count} NaN or infinite voxels; read as its lowest value, {low:g} (infinite: {high:g})"
    header = {**volume.header, "padding": (volume.grid, np.packbits(~finite))}
    return replace(volume, array=filled, header=header, remarks=(*volume.remarks, remark))


def is_padding(scan: Volume, world_mm: ArrayLike) -> bool:
    """Whether a point (RAS+ mm) lies in a voxel whose value in the scan's file was not finite."""
    if "padding" not in scan.header:
        return False
    grid, bits = scan.header["padding"]
    at = int(np.ravel_multi_index(tuple(grid.voxel_of(grid.world_to_index(world_mm))), grid.shape))
    return bool(bits[at >> 3] >> (7 - (at & 7)) & 1)


def not_hounsfield(array: NDArray[Any]) -> str:
    """Why the values of a CT cannot be Hounsfield units, as a clause for a message; "" if they can.

    A patient's CT has air (-1000 HU, around the body and in lungs and bowel) or at least fat (-100), and soft tissue at
    0 to 100. Only a sample of some tens of thousands of voxels is examined.
    """
    if array.dtype.kind not in "iuf":
        return ""
    every = tuple(slice(None, None, max(1, n // 27)) for n in array.shape)  # a view: little of a huge scan is read
    some = array[every].astype(np.float64)
    low, high = float(some.min()), float(some.max())
    if low <= CT_MINIMUM_HU and high - low > 300:
        return ""
    if high - low <= 2:
        return f"its values lie between {low:.3g} and {high:.3g}: they were scaled and are no Hounsfield units"
    if low >= 0 and high <= 255 and _whole(some):
        return f"its values are whole numbers from {low:g} to {high:g}: 8 bits of a window and no Hounsfield units"
    soft = some[(some > 900) & (some < 1200)]
    if low >= -50 and soft.size > 0.05 * some.size and np.median(soft) > 950:
        return f"its lowest value is {low:g}: an offset is missing; with 1024 subtracted it would be Hounsfield units"
    if low > -50:
        return f"its lowest value is {low:g}, where air has -1000 and fat -100: these are no Hounsfield units"
    return ""


def check_scan(name: str, array: NDArray[Any]) -> None:
    """Raises ImageError for (i, j, k) voxels that cannot be a scan: one slice, not finite, constant, or labels."""
    if min(array.shape) < 2:
        raise ImageError(f"{name} is a 2D image ({_by(array.shape)})", "a 3D scan", "give the whole stack of slices")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise ImageError(f"{name} has {count} NaN or infinite voxels", "finite numbers", "replace them (by air, say)")
    if low == high:
        given, remedy = f"all voxels of {name} are {low:g}", "check that it is the right file"
        raise ImageError(given, "an image with contrast", remedy)
    if low < 0 or high > HIGHEST_LABEL or not _whole(array):
        return
    first, second = array[:-1, :, ::8], array[1:, :, ::8]  # neighbours along i, in every eighth slice
    either = (first != 0) | (second != 0)
    equal = np.count_nonzero(either & (first == second))
    if high < LABEL_LIMIT or equal > LABEL_PLATEAU * max(1, np.count_nonzero(either)):
        given = f"{name} has no voxels but the whole numbers {low:g} to {high:g}: this looks like a label map"
        raise ImageError(given, "a scan (CT or MR intensities)", "give the scan that the labels belong to")


def as_labels(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array as integers, unchanged if it has them already. Raises ImageError for values that are not whole."""
    if array.dtype.kind in "iu":
        return array
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high) and _whole(array)):
        raise ImageError(f"{name} has values that are not whole numbers", "a mask or labels", "threshold it first")
    return array.astype(np.promote_types(np.min_scalar_type(int(low)), np.min_scalar_type(int(high))))


def as_stored(array: NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> NDArray[Any]:
    """Stored numbers as image values: integers without scaling keep their type, everything else becomes float32."""
    if array.dtype.kind in "iu" and slope == 1 and intercept == 0:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which check_scan reports
        values = array.astype(np.float32, copy=False)
    if slope != 1:
        values *= np.float32(slope)
    if intercept != 0:
        values += np.float32(intercept)
    return values


def guess_modality(array: NDArray[Any]) -> str:
    """ "CT" if the values are whole numbers and the lowest is at most CT_MINIMUM_HU, else "" (unknown).

    Only about ten thousand voxels of a float array are examined.
    """
    if array.min() > CT_MINIMUM_HU:
        return ""
    every = max(1, array.size // 10_000)
    return "CT" if _whole(array.ravel(order="K")[::every]) else ""


def truncated(name: str, detail: str) -> FileError:
    """The error for a file that ends too early or is damaged."""
    return FileError(f"{name} is truncated or damaged ({detail})", "a complete file", "copy or export it again")


def colour(name: str) -> ImageError:
    """The error for a file with several values per voxel."""
    given = f"{name} has several channels (RGB or vector)"
    return ImageError(given, "one number per voxel", "save one channel by itself")


def _whole(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "iub" or bool((array == np.rint(array)).all())


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

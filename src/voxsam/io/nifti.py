"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz) in and out, through nibabel.

Where the voxels lie. A NIfTI header can hold two answers, the sform and the qform, each with a code (0: absent).
1. sform code > 0: the sform. It wins over the qform also where the two disagree (both may be right: the qform in the
   scanner's frame, the sform in a template's); the other programs of the field choose alike.
2. else qform code > 0: the qform.
3. both codes 0: method 1 of the standard, spacing from pixdim, indices growing to R, A and S, and voxel (0, 0, 0)
   at the world's origin. Nothing in such a file says which side is left.
The form that wins is never repaired: a singular one, an impossible quaternion, or a pixdim[1..3] that is not
positive raises GeometryError. A spatial unit of metre or micrometre is converted to mm; none means mm.

What goes back. A mask on the grid of a NIfTI scan gets that scan's version, both forms, both codes, pixdim and units as
stored, so it lies over the scan in programs with any other policy too. Any other volume gets sform = qform, in mm, with
the scan's code or 1 (scanner); sheared axes, which a qform cannot hold, get an sform alone. Nothing else of the
header (description, names) is copied: it may name the patient.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from voxsam.errors import FileError, GeometryError
from voxsam.geometry import Grid
from voxsam.io.checks import as_stored, check_channels, check_dtype, check_shape, check_size, truncated
from voxsam.io.gunzip import GunzipReader
from voxsam.volume import Volume

GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
UNIT_MM = {1: 1000.0, 3: 1e-3}  # xyzt_units & 7: metre, micrometre; all others count as mm
LONGEST_NIFTI1_AXIS = 32767  # NIfTI-1 counts voxels in 16 bits
COMPRESSION_LEVEL = 3  # a mask is small at any level; higher ones take several times as long for probabilities
LARGEST_OFFSET = 2**31 - 1  # where voxels may begin: behind the header and its extensions
SHEAR_TOLERANCE = 1e-4  # cosine between axes that a float32 quaternion still holds

_QUIET = logging.Logger("voxsam.nifti")  # nibabel reports the small repairs it makes here, not on the user's terminal
_QUIET.addHandler(logging.NullHandler())


def read(path: Path) -> Volume:
    """The voxels of `path` in file order, scaled if the header says so, and their Grid.

    `header["nifti"]` keeps the geometry fields as stored. Raises FileError, ImageError, GeometryError.
    """
    return _read(path, check_shape)[0]


def read_channels(path: Path) -> tuple[Volume, ...]:
    """The volumes of a 4D file, which lie along its fourth axis; of a 3D file the one it has. Raises as `read`."""
    return _read(path, check_channels)


def _read(path: Path, check: Callable[[str, Sequence[int]], tuple[int, ...]]) -> tuple[Volume, ...]:
    """One Volume for each place along the axes after the third of the shape that `check` lets pass."""
    name = path.name
    with _opened(path) as stream:
        header = _read_header(stream, name)
        shape = check(name, header.get_data_shape())
        check_dtype(name, header.get_data_dtype())
        voxel_bytes, file_bytes = header.get_data_dtype().itemsize, path.stat().st_size
        data_bytes = file_bytes if _is_gzip(path) else file_bytes - header.get_data_offset()
        check_size(name, shape, voxel_bytes, data_bytes, _is_gzip(path))
        a, b, c = shape[:3]
        grid = Grid((a, b, c), _affine_mm(header, name))
        stored = _read_stored(stream, header, name).reshape((a, b, c, -1), order="F")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise _broken_header(name, error) from error
    scaling = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    kept = {"nifti": _geometry_of(header)}
    return tuple(Volume(as_stored(stored[..., n], *scaling), grid, header=kept) for n in range(stored.shape[3]))


def write(volume: Volume, path: Path, level: int = COMPRESSION_LEVEL) -> None:
    """Write the array with its own dtype and no scaling to `path` (.nii or .nii.gz). Raises OSError.

    `level`: how hard .nii.gz is compressed, 1 (fast) to 9 (small).
    """
    header = _header_for(volume)
    header.set_data_dtype(volume.array.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(volume.array, None, header)
    with open(path, "wb") as file:
        if _is_gzip(path):
            # no name and no time inside: the same mask gives the same file
            with gzip.GzipFile("", "wb", level, file, mtime=0) as stream:
                image.to_stream(stream)  # type: ignore[arg-type]
        else:
            image.to_stream(file)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with GunzipReader(path) if _is_gzip(path) else open(path, "rb") as stream:
        yield stream  # type: ignore[misc]


def _read_header(stream: IO[bytes], name: str) -> nib.Nifti1Header:
    """The header, strictly checked for spacing, otherwise with nibabel's harmless repairs (an unset qfac, say)."""
    try:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        kind = next((k for k in (nib.Nifti1Header, nib.Nifti2Header) if k.may_contain_header(start)), None)
        if kind is None:
            raise FileError(f"{name} does not hold a NIfTI image", "NIfTI-1 or NIfTI-2", "check it, or export it again")
        stream.seek(0)
        header = kind.from_fileobj(stream, check=False)
    except gzip.BadGzipFile as error:
        raise FileError(f"{name} is not a gzip file", "gzip-compressed NIfTI", "name it .nii or compress it") from error
    except (EOFError, zlib.error, WrapStructError) as error:
        raise truncated(name, "its header cannot be read to its end") from error
    except HeaderDataError as error:
        raise _broken_header(name, error) from error
    if not bytes(header["magic"]).startswith(kind.single_magic):
        raise FileError(
            f"{name} is the header of a .hdr/.img pair", "a single NIfTI file", "convert the pair to .nii.gz"
        )
    _check_spacing(header, name)
    offset: Any = header["vox_offset"]
    if not 0 <= offset <= LARGEST_OFFSET:
        raise FileError(f"{name} has a broken NIfTI header (vox_offset)", "a valid header", "export it again")
    try:
        header.check_fix(logger=_QUIET, error_level=40)
    except HeaderDataError as error:
        raise _broken_header(name, error) from error
    return header


def _check_spacing(header: nib.Nifti1Header, name: str) -> None:
    spacing = np.asarray(header["pixdim"][1:4], dtype=float)
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        listed = " x ".join(f"{s:.4g}" for s in spacing)
        raise GeometryError(f"{name} has a spacing (pixdim) of {listed}", "positive spacing", "repair its header")


def _read_stored(stream: IO[bytes], header: nib.Nifti1Header, name: str) -> NDArray[Any]:
    """The stored numbers. get_unscaled, because nibabel's own scaling goes through float64, eight bytes a voxel."""
    try:
        stored = ArrayProxy(stream, header, mmap=False).get_unscaled()
        stream.read(1)  # for gzip: makes it compare its checksum, if this is the end
    except HeaderDataError as error:
        raise _broken_header(name, error) from error
    except (EOFError, zlib.error, OSError) as error:
        raise truncated(name, "its voxels end too early or do not match their checksum") from error
    return stored


def _broken_header(name: str, error: HeaderDataError) -> FileError:
    return FileError(f"{name} has a broken NIfTI header ({error})", "a valid header", "export it again")


def _affine_mm(header: nib.Nifti1Header, name: str) -> NDArray[np.float64]:
    """(4, 4) index -> RAS+ mm, by the policy at the top of this file."""
    try:
        if int(header["sform_code"]) > 0:
            affine = np.array(header.get_sform(), dtype=np.float64)
        elif int(header["qform_code"]) > 0:
            affine = np.array(header.get_qform(), dtype=np.float64)
        else:
            affine = np.diag([*np.asarray(header["pixdim"][1:4], dtype=np.float64), 1.0])
    except (ValueError, HeaderDataError) as error:
        raise GeometryError(f"{name} has an impossible qform ({error})", "a rotation", "repair its header") from error
    affine[:3] *= UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _geometry_of(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A header of the same version with the geometry fields alone, in this machine's byte order."""
    bare = type(header)()
    for field in GEOMETRY_FIELDS:
        bare[field] = header[field]
    bare["pixdim"][:4] = header["pixdim"][:4]
    bare.set_data_shape(header.get_data_shape()[:3])
    return bare


def _header_for(volume: Volume) -> nib.Nifti1Header:
    """The scan's own geometry fields if they describe the volume's grid, otherwise fields made from the grid."""
    scan: nib.Nifti1Header | None = volume.header.get("nifti")
    grid = volume.grid
    if (
        scan is not None
        and scan.get_data_shape() == grid.shape
        and np.array_equal(_affine_mm(scan, "scan"), grid.affine)
    ):
        return scan.copy()
    needs_version_2 = max(grid.shape) > LONGEST_NIFTI1_AXIS
    header: Any = nib.Nifti2Header() if needs_version_2 or isinstance(scan, nib.Nifti2Header) else nib.Nifti1Header()
    code = 1 if scan is None else int(scan["sform_code"] or scan["qform_code"] or 1)
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code)
    header.set_qform(grid.affine, 0 if _is_sheared(grid) else code)  # sets pixdim too; shears are stripped
    return header


def _is_sheared(grid: Grid) -> bool:
    unit = grid.affine[:3, :3] / grid.spacing_mm
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() > SHEAR_TOLERANCE)

"""NRRD and MHA files in and out, through SimpleITK.

ITK's world is LPS; the conversion is in lps.py. An NRRD without a `space` field is taken as LPS, as ITK does. The
voxels must lie in the file itself: a header that points to another file is refused (in an uploaded scan it could name
any file of the machine). Size and spacing are checked before ITK reads the voxels, because ITK allocates whatever a
header declares, turns a negative ElementSpacing into a flip, and prints MetaIO's complaints to the terminal.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from voxsam.errors import FileError, GeometryError
from voxsam.io.checks import as_stored, check_dtype, check_shape, check_size, colour, truncated
from voxsam.io.lps import grid_from_lps, lps_from_grid
from voxsam.volume import Volume

LONGEST_HEADER_BYTES = 2**20
IMAGE_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}


def read(path: Path) -> Volume:
    """The voxels of `path` in file order and their Grid. Raises FileError, ImageError, GeometryError."""
    name = path.name
    fields, header_bytes = _nrrd_header(path) if _suffix(path) == ".nrrd" else _mha_header(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(IMAGE_IO[_suffix(path)])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        shape = check_shape(name, reader.GetSize())
        _check_declared(path, reader, fields, header_bytes)
        image = reader.Execute()
    except RuntimeError as error:
        raise truncated(name, f"ITK cannot read it: {str(error).strip().splitlines()[-1]}") from error
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    grid = grid_from_lps(shape, direction * image.GetSpacing()[:3], image.GetOrigin()[:3])
    array = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    return Volume(as_stored(array), grid)


def write(volume: Volume, path: Path) -> None:
    """Write the array, compressed, with its own dtype to `path` (.nrrd or .mha). Raises OSError."""
    origin, spacing, direction = lps_from_grid(volume.grid)
    image = sitk.GetImageFromArray(volume.array.T)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from error


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _check_declared(path: Path, reader: sitk.ImageFileReader, fields: dict[str, str], header_bytes: int) -> None:
    """What ITK understood of the header, held against what a scan may be and against the size of the file."""
    name = path.name
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = int(re.findall(r"(\d+)-bit", kind)[0])
    check_dtype(name, np.dtype(complex if "complex" in kind else np.uint8))
    if reader.GetNumberOfComponents() != 1:
        raise colour(name)
    nrrd_packed = fields.get("encoding", "raw").lower() != "raw"
    mha_packed = fields.get("compresseddata", "").lower() == "true" or fields.get("binarydata", "").lower() == "false"
    data_bytes = path.stat().st_size - header_bytes
    check_size(name, reader.GetSize(), bits // 8, data_bytes, nrrd_packed or mha_packed)
    if data_bytes < int(fields.get("compresseddatasize", 0)):
        raise truncated(name, f"{fields['compresseddatasize']} bytes of voxels are declared, {data_bytes} are there")
    spacing = reader.GetSpacing()
    axes = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:3, :3]
    if not (np.isfinite(spacing).all() and min(spacing) > 0 and np.isfinite(axes).all()):
        listed = " x ".join(f"{s:.4g}" for s in spacing)
        raise GeometryError(
            f"{name} has a spacing of {listed} mm", "positive spacing on each axis", "repair its header"
        )
    if abs(np.linalg.det(axes)) < 1e-3:
        raise GeometryError(f"{name} has a singular affine (axes that coincide)", "three axes", "repair its header")


def _nrrd_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of an attached NRRD header, keys in lower case, and how many bytes it has."""
    with open(path, "rb") as file:
        start = file.read(LONGEST_HEADER_BYTES)
    end = re.search(rb"\r?\n\r?\n", start)
    if not start.startswith(b"NRRD") or end is None:
        raise FileError(
            f"{path.name} does not hold an NRRD image", "an NRRD file", "check the file, or export it again"
        )
    fields = _fields(start[: end.start()], ":")
    if {"data file", "datafile"} & fields.keys():
        raise _detached(path.name)
    return fields, end.end()


def _mha_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage header, keys in lower case, and how many bytes it has."""
    with open(path, "rb") as file:
        start = file.read(LONGEST_HEADER_BYTES)
    end = start.find(b"\n", start.find(b"ElementDataFile")) + 1  # its first mention ends the header, for MetaIO too
    fields = _fields(start[:end], "[=:]")
    if not {"ndims", "dimsize", "elementtype", "elementdatafile"} <= fields.keys():
        raise FileError(f"{path.name} does not hold a MetaImage", "an MHA file", "check the file, or export it again")
    if fields["elementdatafile"].lower() != "local":
        raise _detached(path.name)
    return fields, end


def _fields(header: bytes, separator: str) -> dict[str, str]:
    pairs = (re.split(separator, line, maxsplit=1) for line in header.decode("latin-1").splitlines())
    return {pair[0].strip().lower(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _detached(name: str) -> FileError:
    return FileError(
        f"{name} keeps its voxels in another file", "header and voxels in one file", "save it in one piece"
    )

"""MetaImage files in: .mha, and .mhd with its voxels in files beside it. Geometry as ITK understands it.

The rows of TransformMatrix are the directions of the axes, LPS. Lengths are mm unless DistanceUnits says otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io.checks import check_shape, colour, truncated
from voxsam.io.raw import (
    MAX_AXES,
    MAX_HEADER_BYTES,
    Header,
    Voxels,
    as_volume,
    check_steps,
    header_fields,
    unit_mm,
    unit_remark,
)
from voxsam.volume import Volume

TYPES = {  # MetaIO's `long` has 4 bytes
    **{"met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4"},
    **{"met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8"},
    **{"met_float": "f4", "met_double": "f8"},
}
NEEDED = {"ndims", "dimsize", "elementtype", "elementdatafile"}


def read(path: Path) -> Volume:
    """The voxels of `path` in file order and their Grid. Raises FileError, ImageError, GeometryError."""
    header, names = _header(path)
    axes = header.whole("ndims")
    shape = header.whole("dimsize")
    if len(axes) != 1 or not 1 <= axes[0] <= MAX_AXES:
        raise header.broken("ndims", "the number of axes, 3")
    if len(shape) != axes[0]:
        raise header.broken("dimsize", f"{axes[0]} sizes, as NDims says")
    element = header.fields["elementtype"].lower()
    if header.fields.get("elementnumberofchannels", "1") != "1" or element.endswith("_array"):
        raise colour(path.name)
    if element not in TYPES:
        raise header.broken("elementtype", "a type of number, such as MET_SHORT")
    first = check_shape(path.name, shape)
    grid, remarks = _grid(header, axes[0], first)
    voxels = _voxels(header, names, tuple(shape), np.dtype(TYPES[element]))
    return as_volume(path.name, voxels, shape, grid, remarks)


def _header(path: Path) -> tuple[Header, list[str]]:
    """The header, which ends with the line of ElementDataFile, and the names behind it if that line is a LIST."""
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    last = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(\n|\Z)", start)
    end = last.end() if last else 0
    fields = header_fields(start[:end].decode("latin-1").splitlines(), "=:")
    if not fields.keys() >= NEEDED:
        raise FileError(f"{path.name} does not hold a MetaImage", "an MHA file", "check the file, or export it again")
    return Header(path, fields, end), start[end:].decode("utf-8", "replace").split("\n")


def _grid(header: Header, axes: int, shape: tuple[int, int, int]) -> tuple[Grid, list[str]]:
    fields, name = header.fields, header.name
    spacing = _first(header, ("elementspacing", "elementsize"), np.ones(axes))[:3]
    origin = _first(header, ("offset", "position", "origin"), np.zeros(axes))[:3]
    matrix = _first(header, ("transformmatrix", "rotation", "orientation"), np.eye(axes).ravel())
    steps = matrix.reshape(axes, axes)[:3, :3].T * spacing
    check_steps(name, steps, spacing)
    remarks, factor = [], 1.0
    if (unit := fields.get("distanceunits", "mm")).lower() not in ("mm", "?", ""):
        known = unit_mm(unit)
        remarks.append(unit_remark(name, unit, known))
        factor = known or 1.0
    if not fields.keys() & {"transformmatrix", "rotation", "orientation"}:
        remarks.append(f"{name} does not say how the patient lies; read with its axes to L, P, S, as ITK does")
    return Grid.from_lps(shape, steps * factor, origin * factor), remarks


def _first(header: Header, keys: tuple[str, ...], default: np.ndarray) -> np.ndarray:
    """The numbers of the first of several fields that mean the same; `default` if there is none."""
    key = next((key for key in keys if key in header.fields), None)
    return default if key is None else header.numbers(key, default.size)


def _voxels(header: Header, names: list[str], shape: tuple[int, ...], dtype: np.dtype) -> Voxels:
    fields = header.fields
    flags = {k: fields.get(k, "").lower() in ("true", "1", "t", "yes", "y") for k in fields}
    big = flags.get("binarydatabyteordermsb", False) or flags.get("elementbyteordermsb", False)
    skipped = (header.whole("headersize") or [0])[0]
    if skipped < -1:
        raise header.broken("headersize", "a count of bytes, or -1")
    text = "binarydata" in fields and not flags["binarydata"]
    encoding = "text" if text else "gzip" if flags.get("compresseddata") else "raw"
    where = fields["elementdatafile"]
    files = (header.path,) if where.lower() == "local" else header.data_files(where, names)
    start = skipped or (header.size if files == (header.path,) else 0)
    if files == (header.path,) and header.path.suffix.lower() == ".mhd" and header.size >= header.path.stat().st_size:
        raise truncated(header.name, "its header is all that it holds")
    there = files[0].stat().st_size - max(0, start)
    declared = header.whole("compresseddatasize")
    if encoding == "gzip" and len(files) == 1 and declared and there < declared[0]:
        raise truncated(header.name, f"{declared[0]} bytes of voxels are declared, {there} are there")
    return Voxels(files, start, shape, dtype.newbyteorder(">" if big else "<"), encoding)

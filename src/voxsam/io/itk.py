"""Read ITK's formats: MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr), with attached or detached voxels.

MetaImage geometry is read as ITK reads it: the rows of TransformMatrix are the axis directions in LPS; lengths are in
mm unless DistanceUnits says otherwise. NRRD (teem.sourceforge.net/nrrd/format.html): world coordinates are those that
`space` names; LPS is assumed, as ITK does, if it is missing or not a patient space. `kinds` and `space directions`
distinguish axes without a direction (colours, time) from spatial ones.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io.checks import check_dtype, check_shape, colour, truncated
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

METAIMAGE_TYPES = {  # MetaIO's `long` has 4 bytes
    **{"met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4"},
    **{"met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8"},
    **{"met_float": "f4", "met_double": "f8"},
}
NEEDED = {"ndims", "dimsize", "elementtype", "elementdatafile"}


def read(path: Path) -> Volume:
    """The voxels of `path` in file order and their Grid. Raises FileError, ImageError, GeometryError."""
    return (_read_metaimage if path.suffix.lower() in (".mha", ".mhd") else _read_nrrd)(path)


def _read_metaimage(path: Path) -> Volume:
    header, names = _metaimage_header(path)
    axes = header.whole("ndims")
    shape = header.whole("dimsize")
    if len(axes) != 1 or not 1 <= axes[0] <= MAX_AXES:
        raise header.broken("ndims", "the number of axes, 3")
    if len(shape) != axes[0]:
        raise header.broken("dimsize", f"{axes[0]} sizes, as NDims says")
    element = header.fields["elementtype"].lower()
    if header.fields.get("elementnumberofchannels", "1") != "1" or element.endswith("_array"):
        raise colour(path.name)
    if element not in METAIMAGE_TYPES:
        raise header.broken("elementtype", "a type of number, such as MET_SHORT")
    first = check_shape(path.name, shape)
    grid, remarks = _metaimage_grid(header, axes[0], first)
    voxels = _metaimage_voxels(header, names, tuple(shape), np.dtype(METAIMAGE_TYPES[element]))
    return as_volume(path.name, voxels, shape, grid, remarks)


def _metaimage_header(path: Path) -> tuple[Header, list[str]]:
    """The header, which ends with the ElementDataFile line, and the names that follow if that line is a LIST."""
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    last = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(\n|\Z)", start)
    end = last.end() if last else 0
    fields = header_fields(start[:end].decode("latin-1").splitlines(), "=:")
    if not fields.keys() >= NEEDED:
        raise FileError(f"{path.name} does not hold a MetaImage", "an MHA file", "check the file, or export it again")
    return Header(path, fields, end), start[end:].decode("utf-8", "replace").split("\n")


def _metaimage_grid(header: Header, axes: int, shape: tuple[int, int, int]) -> tuple[Grid, list[str]]:
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


def _metaimage_voxels(header: Header, names: list[str], shape: tuple[int, ...], dtype: np.dtype) -> Voxels:
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


NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
ENCODINGS = {
    **{"raw": "raw", "gzip": "gzip", "gz": "gzip", "hex": "hex"},
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
}
SPACES = {  # the signs of their axes in LPS
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
RANGE_KINDS = {
    "list",
    "vector",
    "point",
    "normal",
    "covariant-vector",
    "scalar",
    "complex",
    "quaternion",
    "???",
    "none",
}


def _read_nrrd(path: Path) -> Volume:
    header, names = _nrrd_header(path)
    dimension, sizes = header.whole("dimension"), header.whole("sizes")
    if len(dimension) != 1 or not 1 <= dimension[0] <= MAX_AXES:
        raise header.broken("dimension", "the number of axes, 3")
    if len(sizes) != dimension[0]:
        raise header.broken("sizes", f"{dimension[0]} sizes, as its dimension says")
    if min(sizes) < 1:
        check_shape(path.name, sizes)
    directions = _directions(header, len(sizes))
    spatial = _spatial_axes(header, sizes, directions)
    shape = check_shape(path.name, [sizes[axis] for axis in spatial])
    grid, remarks = _nrrd_grid(header, spatial[:3], shape, directions)
    return as_volume(path.name, _nrrd_voxels(header, names, tuple(sizes), remarks), shape, grid, remarks)


def _nrrd_header(path: Path) -> tuple[Header, list[str]]:
    """The header, which ends with an empty line (or, if detached, with the file), and the lines after `data file`."""
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    found = re.search(rb"\r?\n\r?\n", start)
    text = start[: found.start()] if found else start
    lines = [line for line in text.decode("latin-1").splitlines()[1:] if not line.startswith("#") and ":=" not in line]
    fields = header_fields(lines, ":")
    listed: list[str] = []
    for key in ("data file", "datafile"):
        if key in fields:
            fields["data file"] = fields[key]
            at = next(n for n, line in enumerate(lines) if line.lower().startswith(key))
            listed = lines[at + 1 :]  # a LIST ends the header
    if not start.startswith(b"NRRD") or not (found or "data file" in fields):
        raise FileError(f"{path.name} does not hold an NRRD image", "an NRRD file", "check it, or export it again")
    return Header(path, fields, found.end() if found else len(start)), listed


def _directions(header: Header, axes: int) -> list[NDArray[np.float64] | None] | None:
    """The step along each axis, None for an axis not in space; None if the header gives no directions at all."""
    if "space directions" not in header.fields:
        return None
    found: list[NDArray[np.float64] | None] = []
    for word in re.findall(r"\([^()]*\)|[^\s()]+", header.fields["space directions"]):
        try:
            vector = None if word.lower() == "none" else np.array([float(n) for n in word.strip("()").split(",")])
        except ValueError as error:
            raise header.broken("space directions", "a vector (x,y,z) or none for each axis") from error
        found.append(None if vector is None or np.isnan(vector).all() else vector)
    if len(found) != axes or any(v is not None and v.size not in (3, axes) for v in found):
        raise header.broken("space directions", "a vector (x,y,z) or none for each axis")
    return found


def _spatial_axes(header: Header, sizes: list[int], directions: list[NDArray[np.float64] | None] | None) -> list[int]:
    """The axes in space (and time). Raises ImageError if any other axis has more than one entry."""
    kinds = header.fields.get("kinds", "").lower().split()
    kinds = kinds if len(kinds) == len(sizes) else [""] * len(sizes)
    in_space = []
    for axis, kind in enumerate(kinds):
        placed = directions is None or directions[axis] is not None
        is_range = kind in RANGE_KINDS or any(word in kind for word in ("color", "vector", "matrix"))
        if kind == "complex":
            check_dtype(header.name, np.dtype(complex))
        if (placed and not is_range) or kind == "time":
            in_space.append(axis)
        elif sizes[axis] != 1:
            raise colour(header.name)
    return in_space


def _nrrd_grid(
    header: Header, axes: list[int], shape: tuple[int, int, int], directions: list[NDArray[np.float64] | None] | None
) -> tuple[Grid, list[str]]:
    fields, remarks = header.fields, []
    space = fields.get("space", "").lower().removesuffix("-time")
    to_lps = np.diag(SPACES.get(space.removesuffix("t") if len(space) == 4 else space, (1, 1, 1))).astype(float)
    if space not in SPACES:
        kind = f"names the space {space!r}, which does not say" if space else "does not say"
        remarks.append(f"{header.name} {kind} how the patient lies; read as L, P, S, as ITK does")
    if directions is None:
        spacing, origin = _per_axis(header, axes)
        steps = np.diag(spacing)
    else:
        steps = np.stack([directions[axis][:3] for axis in axes], axis=1)  # type: ignore[index]
        origin = _space_origin(header, remarks)
        spacing = np.linalg.norm(steps, axis=0)
    check_steps(header.name, steps, spacing)
    units = [unit for unit in re.findall(r'"([^"]*)"', fields.get("space units", "")) if unit.strip()][:3]
    factor = 1.0
    if units and any(unit_mm(unit) != 1 for unit in units):
        known = unit_mm(units[0]) if len({unit.strip().lower() for unit in units}) == 1 else None
        remarks.append(unit_remark(header.name, units[0], known))
        factor = known or 1.0
    return Grid.from_lps(shape, to_lps @ steps * factor, to_lps @ origin * factor), remarks


def _space_origin(header: Header, remarks: list[str]) -> NDArray[np.float64]:
    """The position of the first voxel; 0, with a remark, if the header does not give it (no such field, or NaN)."""
    words = re.split(r"[\s,()]+", header.fields.get("space origin", "nan nan nan"))
    try:
        given = np.array([float(word) for word in words if word][:3])
    except ValueError as error:
        raise header.broken("space origin", "a vector (x,y,z)") from error
    if given.size < 3:
        raise header.broken("space origin", "a vector (x,y,z)")
    if np.isnan(given).any():
        remarks.append(f"{header.name} does not say where it lies (space origin); read with its first voxel at 0, 0, 0")
        return np.zeros(3)
    return given


def _per_axis(header: Header, axes: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spacing and origin from a header's per-axis fields; 1 and 0 where they are missing."""
    spacings, low = _numbers(header.fields.get("spacings", "")), _numbers(header.fields.get("axis mins", ""))
    centers = header.fields.get("centers", header.fields.get("centerings", "")).lower().split()
    spacing, origin = np.ones(3), np.zeros(3)
    for n, axis in enumerate(axes):
        if axis < spacings.size and not np.isnan(spacings[axis]):
            spacing[n] = spacings[axis]
        if axis < low.size and np.isfinite(low[axis]):
            at_node = axis < len(centers) and centers[axis] == "node"
            origin[n] = low[axis] + (0 if at_node else spacing[n] / 2)
    return spacing, origin


def _numbers(words: str) -> NDArray[np.float64]:
    """The numbers of a field; NaN for a word that is not a number."""

    def number(word: str) -> float:
        try:
            return float(word)
        except ValueError:
            return np.nan

    return np.array([number(word) for word in re.split(r"[\s,()]+", words) if word])


def _nrrd_voxels(header: Header, names: list[str], sizes: tuple[int, ...], remarks: list[str]) -> Voxels:
    fields = header.fields
    kind, encoding = fields.get("type", "").lower(), ENCODINGS.get(fields.get("encoding", "").lower())
    if kind not in NRRD_TYPES:
        raise header.broken("type", "a type of number, such as short")
    if encoding is None:
        raise header.broken("encoding", "raw, gzip, text or hex")
    dtype = np.dtype(NRRD_TYPES[kind])
    endian = fields.get("endian", "").lower()
    if endian not in ("big", "little") and dtype.itemsize > 1 and encoding != "text":
        remarks.append(f"{header.name} does not say its byte order; read as little-endian")
    lines, skip = (header.whole("line skip", "0") + [0])[0], (header.whole("byte skip", "0") + [0])[0]
    files: tuple[Path, ...] = (header.path,)
    if "data file" in fields:
        files = header.data_files(fields["data file"], names)
    start = header.size if files == (header.path,) else 0
    if lines or skip:
        start = _skipped(header, files, start, lines, skip, encoding)
    return Voxels(files, start, sizes, dtype.newbyteorder(">" if endian == "big" else "<"), encoding)


def _skipped(header: Header, files: tuple[Path, ...], start: int, lines: int, skip: int, encoding: str) -> int:
    """Where the voxels begin after `line skip` lines and `byte skip` bytes; -1 if they are the file's last bytes."""
    if skip < -1 or not 0 <= lines <= MAX_HEADER_BYTES or encoding == "gzip" or (lines and len(files) > 1):
        raise header.broken("line skip" if lines else "byte skip", "none, or a count before raw voxels")
    with open(next(iter(files)), "rb") as file:
        file.seek(start)
        for _ in range(lines):
            file.readline(MAX_HEADER_BYTES)
        return -1 if skip == -1 else file.tell() + skip

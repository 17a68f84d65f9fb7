"""ITK's formats, MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr), voxels attached or detached: read, and written by ITK.

Headers are parsed here and not by ITK, whose parsers trust them (an absurd NDims writes out of ITK's bounds, a
negative one never returns); once every field is understood, all that remains is copying bytes.

MetaImage geometry is read as ITK reads it: the rows of TransformMatrix are the axis directions in LPS; lengths are in
mm unless DistanceUnits says otherwise. NRRD (teem.sourceforge.net/nrrd/format.html): world coordinates are those that
`space` names; LPS is assumed, as ITK does, if it is missing or not a patient space. `kinds` and `space directions`
distinguish axes without a direction (colours, time) from spatial ones.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from voxsam.errors import FileError, GeometryError
from voxsam.geometry import Grid
from voxsam.io.checks import as_stored, beside, check_dtype, check_shape, check_size, colour, truncated
from voxsam.io.gunzip import GunzipReader
from voxsam.volume import Volume

MAX_HEADER_BYTES = 2**20
MAX_AXES = 16
MAX_FILES = 20_000
UNITS_MM = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "cm": 10.0, "m": 1000.0, "meter": 1e3}
WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)


def read(path: Path) -> Volume:
    """The voxels of `path` in file order and their Grid. Raises FileError, ImageError, GeometryError."""
    return (_read_metaimage if path.suffix.lower() in (".mha", ".mhd") else _read_nrrd)(path)


def write(volume: Volume, path: Path, compress: bool = True) -> None:
    """Write the array with its own dtype to `path` (.nrrd or .mha) by SimpleITK. Raises OSError."""
    origin, spacing, direction = volume.grid.to_lps()
    image = sitk.GetImageFromArray(volume.array.T)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=compress)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from error


# What both formats share


@dataclass(frozen=True)
class Header:
    """The `key: value` fields of a text header, keys in lower case; it is the first `size` bytes of `path`.

    `listed` are the lines below the field that names the voxels: the names of their files, if it says LIST.
    """

    path: Path
    fields: dict[str, str]
    size: int
    listed: Sequence[str]

    @property
    def name(self) -> str:
        return self.path.name

    def whole(self, key: str, default: str = "") -> list[int]:
        """The whole numbers of a field. Raises FileError for anything else."""
        words = self.fields.get(key, default).split()
        if not all(WHOLE.fullmatch(word) for word in words):
            raise self.broken(key, "whole numbers")
        return [int(word) for word in words]

    def numbers(self, keys: Sequence[str], default: ArrayLike) -> NDArray[np.float64]:
        """The numbers of the first of several fields that mean the same, as many as in `default`, which is for none.

        Raises FileError for another count or anything else.
        """
        values = np.asarray(default, dtype=float)
        key = next((key for key in keys if key in self.fields), None)
        if key is None:
            return values
        expected = f"{values.size} numbers"
        try:
            found = np.array([float(word) for word in re.split(r"[\s,()]+", self.fields[key]) if word])
        except ValueError as error:
            raise self.broken(key, expected) from error
        if found.shape != values.shape:
            raise self.broken(key, expected)
        return found

    def broken(self, key: str, expected: str) -> FileError:
        """The error for a field that cannot be parsed."""
        given = f"{self.name} has the header field {key!r} with {self.fields.get(key, '')[:60]!r}"
        return FileError(given, expected, "repair its header or export it again")

    def data_files(self, where: str) -> tuple[Path, ...]:
        """The data files: a single one, a LIST in the lines below, or a pattern with first, last and step.

        They must be in the header's own folder, so that it cannot name arbitrary files. Raises FileError.
        """
        pattern = re.fullmatch(r"([^%]*)%(0?\d?)d([^%]*?)\s+(\d{1,6})\s+(\d{1,6})(?:\s+(\d{1,4}))?(?:\s+\d)?", where)
        if re.fullmatch(r"(?i)list(\s+\d)?", where):
            names = [line.strip() for line in self.listed[:MAX_FILES] if line.strip()]
        elif pattern:
            before, width, after, low, high, step = pattern.groups()
            numbers = range(int(low), int(high) + 1, max(1, int(step or 1)))[:MAX_FILES]
            names = [f"{before}{format(n, f'{width}d')}{after}" for n in numbers]
        else:
            names = [where]
        if not names:
            raise truncated(self.name, "it names no file of its voxels")
        return tuple(map(self._beside, names))

    def _beside(self, word: str) -> Path:
        bare = word.removeprefix("./").removeprefix(".\\")
        if not bare or Path(bare).name != bare or "\\" in bare or bare in (".", ".."):
            given = f"{self.name} says that its voxels lie in {word[:200]!r}"
            raise FileError(given, "a file in the same folder", "put it beside the header and name it without a folder")
        file = beside(self.path, bare)
        if file is None:
            given = f"the voxels of {self.name} in {bare!r}, which is not there"
            raise FileError(given, "that file beside its header", "copy both files, or save the scan in one piece")
        return file


def _fields(lines: Sequence[str], separators: str) -> dict[str, str]:
    """The fields of header lines; a repeated key keeps its first value, lines without a separator are ignored."""
    fields: dict[str, str] = {}
    for line in lines:
        key, *value = re.split(f"[{separators}]", line, maxsplit=1)
        if value:
            fields.setdefault(key.strip().lower(), value[0].strip())
    return fields


def _check_steps(name: str, steps: NDArray[np.float64], spacing: NDArray[np.float64]) -> None:
    """Raises GeometryError for axes (columns of `steps`) that are not three, or a spacing that is not positive."""
    if np.isfinite(spacing).all() and not np.isfinite(steps).all():
        given = f"{name} has an affine with numbers that are not finite"
        raise GeometryError(given, "finite numbers", "repair its header")
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        listed = " x ".join(f"{s:.4g}" for s in spacing)
        expected = "positive spacing on each axis"
        raise GeometryError(f"{name} has a spacing of {listed} mm", expected, "repair its header")
    lengths = np.linalg.norm(steps, axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(steps / lengths)) < 1e-3:
        raise GeometryError(f"{name} has a singular affine (axes that coincide)", "three axes", "repair its header")


def _unit_mm(name: str, units: Sequence[str], remarks: list[str]) -> float:
    """The length of a header's unit in mm, with a remark unless it is 1; units that differ count as unknown."""
    lengths = [UNITS_MM.get(unit.strip().strip('"').lower()) for unit in units]
    if all(length == 1 for length in lengths):
        return 1.0
    word, known = units[0].strip().strip('"')[:20], lengths[0]
    if known is None or len({unit.strip().lower() for unit in units}) > 1:
        remarks.append(f"{name} gives lengths in {word!r}, which is not known; read as mm")
        return 1.0
    remarks.append(f"{name} gives lengths in {word}; converted to mm (one {word} is {known:g} mm)")
    return known


def _read_voxels(
    name: str, files: Sequence[Path], start: int, shape: Sequence[int], dtype: np.dtype, encoding: str
) -> NDArray[np.generic]:
    """The stored numbers, first index fastest: across `files` in order, from byte `start` (-1: a file's last bytes).

    `encoding` is "raw", "gzip" (gzip or zlib), "text" or "hex". Raises FileError; ImageError for too many voxels,
    before memory is allocated.
    """
    count, rest = divmod(math.prod(shape), len(files))
    size = sum(file.stat().st_size - max(0, start) for file in files)
    bytes_at_least = {"text": 1, "hex": 2 * dtype.itemsize}.get(encoding, dtype.itemsize)
    check_size(name, shape, bytes_at_least, size, encoding == "gzip")
    if rest:
        given = f"{name} spreads {count * len(files) + rest} voxels over {len(files)} files"
        raise FileError(given, "as many voxels in each", "save it in one piece")
    flat = np.empty(count * len(files), dtype)
    for n, file in enumerate(files):
        target = flat[n * count : (n + 1) * count]
        packed = encoding == "gzip"
        with GunzipReader(file, max(0, start), zlib_too=True) if packed else open(file, "rb") as stream:
            if not packed:
                stream.seek(file.stat().st_size - target.nbytes if start < 0 else start)
            try:
                if encoding in ("text", "hex"):
                    done = _parse(stream.read(), target, encoding)
                else:
                    done = stream.readinto(target.view(np.uint8).data)
                stream.read(1)  # makes a packed stream verify its checksum at its end
            except (EOFError, zlib.error, ValueError) as error:
                raise truncated(name, "its voxels end too early or do not match their checksum") from error
        if done != target.nbytes:
            raise truncated(name, f"{target.nbytes} bytes of voxels are declared, {done} are there")
    return flat


def _parse(text: bytes, target: NDArray[np.generic], encoding: str) -> int:
    """Parse numbers in text, or bytes in hexadecimal, into `target`; returns the bytes filled."""
    if encoding == "hex":
        values = np.frombuffer(bytes.fromhex(text.decode("latin-1")), target.dtype)
    else:
        kind = np.float64 if target.dtype.kind == "f" else np.int64
        values = np.array(text.replace(b",", b" ").split()[: target.size]).astype(kind)
    target[: values.size] = values[: target.size]
    return min(values.size, target.size) * target.itemsize


# MetaImage

METAIMAGE_TYPES = {  # MetaIO's `long` has 4 bytes
    **{"met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4"},
    **{"met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8"},
    **{"met_float": "f4", "met_double": "f8"},
}
NEEDED = {"ndims", "dimsize", "elementtype", "elementdatafile"}
MATRIX = ("transformmatrix", "rotation", "orientation")


def _read_metaimage(path: Path) -> Volume:
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    last = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(\n|\Z)", start)  # ends the header
    end = last.end() if last else 0
    fields = _fields(start[:end].decode("latin-1").splitlines(), "=:")
    if not fields.keys() >= NEEDED:
        raise FileError(f"{path.name} does not hold a MetaImage", "an MHA file", "check the file, or export it again")
    header = Header(path, fields, end, start[end:].decode("utf-8", "replace").split("\n"))
    axes, shape = header.whole("ndims"), header.whole("dimsize")
    if len(axes) != 1 or not 1 <= axes[0] <= MAX_AXES:
        raise header.broken("ndims", "the number of axes, 3")
    if len(shape) != axes[0]:
        raise header.broken("dimsize", f"{axes[0]} sizes, as NDims says")
    element = fields["elementtype"].lower()
    if fields.get("elementnumberofchannels", "1") != "1" or element.endswith("_array"):
        raise colour(path.name)
    if element not in METAIMAGE_TYPES:
        raise header.broken("elementtype", "a type of number, such as MET_SHORT")
    first = check_shape(path.name, shape)
    grid, remarks = _metaimage_grid(header, axes[0], first)
    voxels = _metaimage_voxels(header, shape, np.dtype(METAIMAGE_TYPES[element]))
    return Volume(as_stored(voxels.reshape(first, order="F")), grid, remarks=tuple(remarks))


def _metaimage_grid(header: Header, axes: int, shape: tuple[int, int, int]) -> tuple[Grid, list[str]]:
    fields, name, remarks = header.fields, header.name, []
    spacing = header.numbers(("elementspacing", "elementsize"), np.ones(axes))[:3]
    origin = header.numbers(("offset", "position", "origin"), np.zeros(axes))[:3]
    matrix = header.numbers(MATRIX, np.eye(axes).ravel())
    steps = matrix.reshape(axes, axes)[:3, :3].T * spacing
    _check_steps(name, steps, spacing)
    unit = fields.get("distanceunits", "")
    factor = _unit_mm(name, [unit] if unit not in ("?", "") else [], remarks)
    if not fields.keys() & set(MATRIX):
        remarks.append(f"{name} does not say how the patient lies; read with its axes to L, P, S, as ITK does")
    return Grid.from_lps(shape, steps * factor, origin * factor), remarks


def _metaimage_voxels(header: Header, shape: Sequence[int], dtype: np.dtype) -> NDArray[np.generic]:
    fields, path = header.fields, header.path
    flags = {key: value.lower() in ("true", "1", "t", "yes", "y") for key, value in fields.items()}
    big = flags.get("binarydatabyteordermsb", False) or flags.get("elementbyteordermsb", False)
    skipped = (header.whole("headersize") or [0])[0]
    if skipped < -1:
        raise header.broken("headersize", "a count of bytes, or -1")
    text = "binarydata" in fields and not flags["binarydata"]
    encoding = "text" if text else "gzip" if flags.get("compresseddata") else "raw"
    where = fields["elementdatafile"]
    files = (path,) if where.lower() == "local" else header.data_files(where)
    start = skipped or (header.size if files == (path,) else 0)
    if files == (path,) and path.suffix.lower() == ".mhd" and header.size >= path.stat().st_size:
        raise truncated(header.name, "its header is all that it holds")
    there = files[0].stat().st_size - max(0, start)
    declared = header.whole("compresseddatasize")
    if encoding == "gzip" and len(files) == 1 and declared and there < declared[0]:
        raise truncated(header.name, f"{declared[0]} bytes of voxels are declared, {there} are there")
    return _read_voxels(header.name, files, start, shape, dtype.newbyteorder(">" if big else "<"), encoding)


# NRRD

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
    *("list", "vector", "point", "normal", "covariant-vector", "scalar", "complex", "quaternion", "???", "none"),
}

Directions = list[NDArray[np.float64] | None] | None


def _read_nrrd(path: Path) -> Volume:
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    found = re.search(rb"\r?\n\r?\n", start)  # the empty line that ends the header; a detached one ends with its file
    text = start[: found.start()] if found else start
    lines = [line for line in text.decode("latin-1").splitlines()[1:] if not line.startswith("#") and ":=" not in line]
    fields, listed = _fields(lines, ":"), []
    for key in ("data file", "datafile"):
        if key in fields:
            fields["data file"] = fields[key]
            listed = lines[1 + next(n for n, line in enumerate(lines) if line.lower().startswith(key)) :]
    if not start.startswith(b"NRRD") or not (found or "data file" in fields):
        raise FileError(f"{path.name} does not hold an NRRD image", "an NRRD file", "check it, or export it again")
    header = Header(path, fields, found.end() if found else len(start), listed)
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
    voxels = _nrrd_voxels(header, sizes, remarks)
    return Volume(as_stored(voxels.reshape(shape, order="F")), grid, remarks=tuple(remarks))


def _directions(header: Header, axes: int) -> Directions:
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


def _spatial_axes(header: Header, sizes: list[int], directions: Directions) -> list[int]:
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
    header: Header, axes: list[int], shape: tuple[int, int, int], directions: Directions
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
    _check_steps(header.name, steps, spacing)
    units = [unit for unit in re.findall(r'"([^"]*)"', fields.get("space units", "")) if unit.strip()][:3]
    factor = _unit_mm(header.name, units, remarks)
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
        if axis < len(spacings) and not np.isnan(spacings[axis]):
            spacing[n] = spacings[axis]
        if axis < len(low) and np.isfinite(low[axis]):
            at_node = axis < len(centers) and centers[axis] == "node"
            origin[n] = low[axis] + (0 if at_node else spacing[n] / 2)
    return spacing, origin


def _numbers(words: str) -> list[float]:
    """The numbers of a field; NaN for a word that is not a number."""
    found = []
    for word in filter(None, re.split(r"[\s,()]+", words)):
        try:
            found.append(float(word))
        except ValueError:
            found.append(np.nan)
    return found


def _nrrd_voxels(header: Header, sizes: Sequence[int], remarks: list[str]) -> NDArray[np.generic]:
    fields, path = header.fields, header.path
    kind, encoding = fields.get("type", "").lower(), ENCODINGS.get(fields.get("encoding", "").lower())
    if kind not in NRRD_TYPES:
        raise header.broken("type", "a type of number, such as short")
    if encoding is None:
        raise header.broken("encoding", "raw, gzip, text or hex")
    dtype, endian = np.dtype(NRRD_TYPES[kind]), fields.get("endian", "").lower()
    if endian not in ("big", "little") and dtype.itemsize > 1 and encoding != "text":
        remarks.append(f"{header.name} does not say its byte order; read as little-endian")
    lines, skip = (header.whole("line skip", "0") + [0])[0], (header.whole("byte skip", "0") + [0])[0]
    files: tuple[Path, ...] = header.data_files(fields["data file"]) if "data file" in fields else (path,)
    start = header.size if files == (path,) else 0
    if lines or skip:
        if skip < -1 or not 0 <= lines <= MAX_HEADER_BYTES or encoding == "gzip" or (lines and len(files) > 1):
            raise header.broken("line skip" if lines else "byte skip", "none, or a count before raw voxels")
        with open(next(iter(files)), "rb") as file:
            file.seek(start)
            for _ in range(lines):
                file.readline(MAX_HEADER_BYTES)
            start = -1 if skip == -1 else file.tell() + skip
    return _read_voxels(header.name, files, start, sizes, dtype.newbyteorder(">" if endian == "big" else "<"), encoding)

"""Voxels described by a text header (MetaImage, NRRD): where they are stored, how they are packed, read defensively.

Headers are parsed here and not by ITK, whose parsers trust them (an absurd NDims writes out of ITK's bounds, a
negative one never returns); once every field is understood, all that remains is copying bytes.
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
from voxsam.io.checks import as_stored, beside, check_shape, check_size, truncated
from voxsam.io.gunzip import GunzipReader
from voxsam.volume import Volume

MAX_HEADER_BYTES = 2**20
MAX_AXES = 16
MAX_FILES = 20_000
UNITS_MM = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "cm": 10.0, "m": 1000.0, "meter": 1e3}
WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Voxels:
    """How the voxels of a header are stored: across `files` in order, from byte `start` (-1: the file's last bytes).

    `encoding` is "raw", "gzip" (gzip or zlib), "text" or "hex".
    """

    files: tuple[Path, ...]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    encoding: str

    def read(self, name: str) -> NDArray[np.generic]:
        """The voxels, first index fastest. Raises FileError; ImageError for too many, before memory is allocated."""
        count, rest = divmod(math.prod(self.shape), len(self.files))
        size = sum(file.stat().st_size - max(0, self.start) for file in self.files)
        bytes_at_least = {"text": 1, "hex": 2 * self.dtype.itemsize}.get(self.encoding, self.dtype.itemsize)
        check_size(name, self.shape, bytes_at_least, size, self.encoding == "gzip")
        if rest:
            given = f"{name} spreads {count * len(self.files) + rest} voxels over {len(self.files)} files"
            raise FileError(given, "as many voxels in each", "save it in one piece")
        flat = np.empty(count * len(self.files), self.dtype)
        for n, file in enumerate(self.files):
            self._read_into(flat[n * count : (n + 1) * count], file, name)
        return flat.reshape(self.shape, order="F")

    def _read_into(self, target: NDArray[np.generic], file: Path, name: str) -> None:
        packed = self.encoding == "gzip"
        with GunzipReader(file, max(0, self.start), zlib_too=True) if packed else open(file, "rb") as stream:
            if not packed:
                stream.seek(file.stat().st_size - target.nbytes if self.start < 0 else self.start)
            try:
                if self._is_binary:
                    done = stream.readinto(target.view(np.uint8).data)
                else:
                    done = self._parse(stream.read(), target)
                stream.read(1)  # makes a packed stream verify its checksum at its end
            except (EOFError, zlib.error, ValueError) as error:
                raise truncated(name, "its voxels end too early or do not match their checksum") from error
        if done != target.nbytes:
            raise truncated(name, f"{target.nbytes} bytes of voxels are declared, {done} are there")

    @property
    def _is_binary(self) -> bool:
        return self.encoding in ("raw", "gzip")

    def _parse(self, text: bytes, target: NDArray[np.generic]) -> int:
        """Parse numbers in text, or bytes in hexadecimal, into `target`; returns the bytes filled."""
        if self.encoding == "hex":
            values = np.frombuffer(bytes.fromhex(text.decode("latin-1")), target.dtype)
        else:
            kind = np.float64 if target.dtype.kind == "f" else np.int64
            values = np.array(text.replace(b",", b" ").split()[: target.size]).astype(kind)
        target[: values.size] = values[: target.size]
        return min(values.size, target.size) * target.itemsize


@dataclass(frozen=True)
class Header:
    """The `key: value` fields of a text header, keys in lower case; it is the first `size` bytes of `path`."""

    path: Path
    fields: dict[str, str]
    size: int

    @property
    def name(self) -> str:
        return self.path.name

    def whole(self, key: str, default: str = "") -> list[int]:
        """The whole numbers of a field. Raises FileError for anything else."""
        words = self.fields.get(key, default).split()
        if not all(WHOLE.fullmatch(word) for word in words):
            raise self.broken(key, "whole numbers")
        return [int(word) for word in words]

    def numbers(self, key: str, count: int) -> NDArray[np.float64]:
        """The (count,) numbers of a field. Raises FileError for another count or anything else."""
        try:
            values = np.array([float(word) for word in re.split(r"[\s,()]+", self.fields[key]) if word])
        except (ValueError, KeyError) as error:
            raise self.broken(key, f"{count} numbers") from error
        if values.shape != (count,):
            raise self.broken(key, f"{count} numbers")
        return values

    def broken(self, key: str, expected: str) -> FileError:
        """The error for a field that cannot be parsed."""
        given = f"{self.name} has the header field {key!r} with {self.fields.get(key, '')[:60]!r}"
        return FileError(given, expected, "repair its header or export it again")

    def data_files(self, where: str, below: Sequence[str]) -> tuple[Path, ...]:
        """The data files: a single one, a LIST in the lines `below`, or a pattern with first, last and step.

        They must be in the header's own folder, so that it cannot name arbitrary files. Raises FileError.
        """
        pattern = re.fullmatch(r"([^%]*)%(0?\d?)d([^%]*?)\s+(\d{1,6})\s+(\d{1,6})(?:\s+(\d{1,4}))?(?:\s+\d)?", where)
        if re.fullmatch(r"(?i)list(\s+\d)?", where):
            names = [line.strip() for line in below[:MAX_FILES] if line.strip()]
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


def header_fields(lines: Sequence[str], separator: str) -> dict[str, str]:
    """The fields of header lines; a repeated key keeps its first value, lines without a separator are ignored."""
    fields: dict[str, str] = {}
    for line in lines:
        key, found, value = re.match(rf"([^{separator}]*)([{separator}]?)(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        if found:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def check_steps(name: str, steps: ArrayLike, spacing: ArrayLike) -> None:
    """Raises GeometryError for axes (columns of `steps`) that are not three, or a spacing that is not positive."""
    steps, spacing = np.asarray(steps), np.asarray(spacing)
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


def unit_mm(word: str) -> float | None:
    """The length of a named unit in millimetres; None if the unit is unknown."""
    return UNITS_MM.get(word.strip().strip('"').lower())


def unit_remark(name: str, word: str, factor: float | None) -> str:
    """The remark on a spatial unit other than mm."""
    word = word.strip().strip('"')[:20]
    if factor is None:
        return f"{name} gives lengths in {word!r}, which is not known; read as mm"
    return f"{name} gives lengths in {word}; converted to mm (one {word} is {factor:g} mm)"


def as_volume(name: str, voxels: Voxels, shape: Sequence[int], grid: Grid, remarks: Sequence[str]) -> Volume:
    """Read the voxels as a scan of three axes."""
    array = voxels.read(name).reshape(check_shape(name, shape), order="F")
    return Volume(as_stored(array), grid, remarks=tuple(remarks))


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

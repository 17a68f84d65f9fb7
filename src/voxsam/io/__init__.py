"""Files in and out: read_volume gives any supported scan as a Volume, write_mask gives a mask back on the scan's grid.

The format modules (nifti, itk, dicom) each know one library and are imported when the first file of their kind
comes, so that `import voxsam` stays light. What they share: checks, lps, atomic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.io.atomic import atomic_path
from voxsam.io.checks import as_labels, check_scan, check_spacing, guess_modality
from voxsam.volume import Volume

__all__ = ["SUFFIXES", "read_channels", "read_volume", "write_mask", "write_volume"]

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32")  # what every format here can hold


def read_volume(path: str | os.PathLike[str], *, labels: bool = False) -> Volume:
    """Read a scan: .nii, .nii.gz, .nrrd, .mha, or a folder or .zip of one DICOM series.

    The array is in the file's own (i, j, k) order (DICOM: column, row, slice): integers as stored, or float32 where
    the file scales them or holds floats. The modality is the DICOM tag, or "CT" or "" as guess_modality says.

    With `labels=True` read a mask or label map instead (not from DICOM): integers, modality "SEG", constant allowed.
    Raises FileError, ImageError or GeometryError, each in one line.
    """
    path = Path(path)
    (volume,) = _read(path, _reader(path, labels), lambda reader: (reader.read(path),))
    if labels:
        return volume.with_array(as_labels(path.name, volume.array), modality="SEG")
    return _as_scan(path.name, volume)


def read_channels(path: str | os.PathLike[str]) -> tuple[Volume, ...]:
    """Read the image channels of a file: the volumes of a 4D NIfTI file, of anything else the one that it holds.

    Each is as `read_volume` gives it, all are on one grid. Raises as `read_volume`.
    """
    path = Path(path)
    reader = _reader(path, False)
    if not hasattr(reader, "read_channels"):
        return (read_volume(path),)
    volumes = _read(path, reader, lambda reader: reader.read_channels(path))
    several = len(volumes) > 1
    names = (f"{path.name} (channel {n})" if several else path.name for n in range(len(volumes)))
    return tuple(_as_scan(name, volume) for name, volume in zip(names, volumes, strict=True))


def _read(path: Path, reader: ModuleType, read: Callable[[ModuleType], tuple[Volume, ...]]) -> tuple[Volume, ...]:
    """What `read` reads; the errors of the operating system and of grids name the file."""
    try:
        return read(reader)
    except GeometryError as error:
        if path.name in error.given:
            raise
        raise GeometryError(f"{path.name}: {error.given}", error.expected, error.remedy) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(
            f"{path.name} could not be read ({reason})", "a complete file", "check or copy it again"
        ) from error


def _as_scan(name: str, volume: Volume) -> Volume:
    """The volume with its modality, if it can be a scan."""
    check_spacing(name, volume.grid)
    check_scan(name, volume.array)
    return replace(volume, modality=volume.modality or guess_modality(volume.array))


def write_mask(mask: Volume, path: str | os.PathLike[str]) -> None:
    """Write a uint8 mask (0/1, or labels 1..n) with its grid to .nii, .nii.gz, .nrrd or .mha.

    The file appears whole or not at all; an existing one is replaced. Raises ImageError for another dtype, FileError
    for another suffix or a folder that is missing or does not take it.
    """
    if mask.array.dtype != np.uint8:
        given = f"a mask of {mask.array.dtype} voxels"
        raise ImageError(
            given, "uint8 (0 background, 1..n objects)", "convert it, or use write_volume for probabilities"
        )
    _write(mask, Path(path))


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write any real-valued volume, such as probabilities; floats are stored as float32. Otherwise as write_mask."""
    if volume.array.dtype.kind == "f":
        volume = volume.with_array(volume.array.astype(np.float32, copy=False))
    elif volume.array.dtype.name not in INTEGERS:
        given = f"a volume of {volume.array.dtype} voxels"
        raise ImageError(given, f"floats or one of {', '.join(INTEGERS)}", "convert it with .astype() first")
    _write(volume, Path(path))


def _write(volume: Volume, path: Path) -> None:
    suffix = _suffix(path)
    if not suffix:
        raise FileError(
            f"the output {path} has an unknown suffix", f"one of {', '.join(SUFFIXES)}", "rename the output"
        )
    with atomic_path(path) as temporary:
        _format(suffix).write(volume, temporary)


def _reader(path: Path, labels: bool) -> ModuleType:
    """The format module that reads `path`."""
    if not path.exists():
        raise FileError(f"{path} does not exist", f"a scan ({_allowed()})", "check the path")
    if path.is_dir() or path.suffix.lower() == ".zip":
        if labels:
            given = f"{path.name} as labels"
            raise FileError(given, f"a mask in one of {', '.join(SUFFIXES)}", "convert the DICOM segmentation first")
        from voxsam.io import dicom

        return dicom
    suffix = _suffix(path)
    if not suffix and path.suffix.lower() in (".dcm", ".ima"):
        raise FileError(f"{path.name} is a single DICOM file", "the folder or .zip of its series", "give that folder")
    if not suffix:
        raise FileError(f"{path.name} is of an unsupported kind", _allowed(), "convert it to .nii.gz")
    if path.stat().st_size == 0:
        raise FileError(f"{path.name} is empty (0 bytes)", "an image", "copy or export it again")
    return _format(suffix)


def _format(suffix: str) -> ModuleType:
    if suffix in (".nii", ".nii.gz"):
        from voxsam.io import nifti

        return nifti
    from voxsam.io import itk

    return itk


def _suffix(path: Path) -> str:
    """The suffix of a single-file format, in lower case, or ""."""
    name = path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s)), "")


def _allowed() -> str:
    return f"{', '.join(SUFFIXES)}, or a folder or .zip of DICOM"

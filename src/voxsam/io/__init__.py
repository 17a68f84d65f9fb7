"""Files in and out: read_volume gives any supported scan as a Volume, write_mask gives a mask back on the scan's grid.

The format modules (nifti, nrrd, metaimage, dicom) are imported when the first file of their kind comes, so that
`import voxsam` stays light. What they share: checks, raw, gunzip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np

from voxsam.atomic import atomic_path
from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.geometry import Grid
from voxsam.io.checks import as_labels, check_scan, check_spacing, guess_modality
from voxsam.volume import Volume

__all__ = [
    "MASK_SUFFIXES",
    "SCAN_SUFFIXES",
    "SUFFIXES",
    "check_mask_output",
    "is_oriented",
    "read_channels",
    "read_volume",
    "write_mask",
    "write_volume",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")  # written and read
SCAN_SUFFIXES = (*SUFFIXES, ".nhdr", ".mhd")  # read: also headers whose voxels lie in a file beside them
MASK_SUFFIXES = (*SUFFIXES, ".seg.dcm", ".rtstruct.dcm", ".dcm")  # the last one is a DICOM-SEG, too
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32")  # what every format here can hold

T = TypeVar("T")


def read_volume(
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    grid: Grid | None = None,
    segment: int | None = None,
    series: str | int = "",
) -> Volume:
    """Read a scan: .nii, .nii.gz, .nrrd, .mha, or a folder, a .zip or a multi-frame file of one DICOM series.

    The array is in the file's own (i, j, k) order (DICOM: column, row, slice): integers as stored, or float32 where
    the file scales them or holds floats. The modality is the DICOM tag, or "CT" or "" as guess_modality says.

    With `labels=True` read a mask or label map instead, also a DICOM-SEG or RTSTRUCT file: integers, modality "SEG",
    constant allowed. Of these two, `grid` is the scan's, on which they are laid (an RTSTRUCT needs it), and `segment`
    chooses one of several segments, as 0/1; other formats ignore both.
    Raises FileError, ImageError or GeometryError, each in one line.
    """
    path = Path(path)
    volume = _told(path, lambda: _read(path, labels, grid, segment, str(series)))
    if labels:
        return volume.with_array(as_labels(path.name, volume.array), modality="SEG")
    return _as_scan(path.name, volume)


def read_channels(path: str | os.PathLike[str]) -> tuple[Volume, ...]:
    """Read the image channels of a file: the volumes of a 4D NIfTI file, of anything else the one that it holds.

    Each is as `read_volume` gives it, all are on one grid. Raises as `read_volume`.
    """
    path = Path(path)
    if _suffix(path) not in NIFTI_SUFFIXES:
        return (read_volume(path),)
    volumes = _told(path, lambda: _format(_suffix(path)).read_channels(path))
    several = len(volumes) > 1
    names = (f"{path.name} (channel {n})" if several else path.name for n in range(len(volumes)))
    return tuple(_as_scan(name, volume) for name, volume in zip(names, volumes, strict=True))


def _told(path: Path, read: Callable[[], T]) -> T:
    """What `read` reads of a file that there is; the errors of the operating system and of grids name the file."""
    if not path.exists():
        raise FileError(f"{path} does not exist", f"a scan ({_allowed()})", "check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise FileError(f"{path.name} is empty (0 bytes)", "an image", "copy or export it again")
    try:
        return read()
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


def is_oriented(volume: Volume) -> bool:
    """Whether a volume's file says how the patient lies in it; a NIfTI file without sform and qform does not."""
    header = volume.header.get("nifti")
    return header is None or int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0


def write_mask(
    mask: Volume,
    path: str | os.PathLike[str],
    *,
    source: Volume | str | os.PathLike[str] | None = None,
    names: Sequence[str] = (),
    model: str = "",
    labelmap: bool = False,
) -> None:
    """Write a uint8 mask (0/1, or labels 1..n) with its grid to .nii, .nii.gz, .nrrd, .mha, .seg.dcm or .rtstruct.dcm.

    The file appears whole or not at all; an existing one is replaced. The rest is for DICOM alone: `source` is the
    series that the mask belongs to, a Volume or a path, by default the one that its scan was read from; `names` are
    those of the labels 1..n; `model` is noted; `labelmap` writes the newer kind of DICOM-SEG.
    Raises ImageError for another dtype; FileError for another suffix, a folder that is missing or does not take it, or
    a scan without DICOM; GeometryError for a mask on another grid than the series; UnsupportedError without highdicom.
    """
    path = Path(path)
    if mask.array.dtype != np.uint8:
        given = f"a mask of {mask.array.dtype} voxels"
        raise ImageError(
            given, "uint8 (0 background, 1..n objects)", "convert it, or use write_volume for probabilities"
        )
    if path.suffix.lower() != ".dcm":
        _write(mask, path, MASK_SUFFIXES)
        return
    from voxsam.io.dicom import mask as dicom_mask

    scan = mask if source is None else source if isinstance(source, Volume) else read_volume(source)
    series = dicom_mask.series_of(scan, path)
    with atomic_path(path) as temporary:
        dicom_mask.write(mask, temporary, series, names=names, model=model, labelmap=labelmap)


def check_mask_output(scan: Volume, path: str | os.PathLike[str]) -> None:
    """Raises what write_mask would raise for a mask of `scan` written to `path`, before there is one."""
    if Path(path).suffix.lower() == ".dcm":
        from voxsam.io.dicom import mask as dicom_mask

        dicom_mask.series_of(scan, Path(path))


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write any real-valued volume, such as probabilities; floats are stored as float32. Otherwise as write_mask."""
    if volume.array.dtype.kind == "f":
        volume = volume.with_array(volume.array.astype(np.float32, copy=False))
    elif volume.array.dtype.name not in INTEGERS:
        given = f"a volume of {volume.array.dtype} voxels"
        raise ImageError(given, f"floats or one of {', '.join(INTEGERS)}", "convert it with .astype() first")
    _write(volume, Path(path))


def _write(volume: Volume, path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise FileError(
            f"the output {path} has an unknown suffix", f"one of {', '.join(suffixes)}", "rename the output"
        )
    with atomic_path(path) as temporary:
        _format(suffix).write(volume, temporary)


def _read(path: Path, labels: bool, grid: Grid | None, segment: int | None, series: str) -> Volume:
    """The file as its format module reads it."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        if labels:
            given = f"{path.name} as labels"
            raise FileError(given, "a DICOM-SEG or RTSTRUCT file, or .nii.gz", "give the file itself")
        from voxsam.io.dicom import series as dicom

        return dicom.read(path, series)
    suffix = _suffix(path)
    if suffix:
        return _format(suffix).read(path)
    from voxsam.io.dicom import mask as dicom_mask
    from voxsam.io.dicom import series as dicom

    if path.suffix.lower() not in (".dcm", ".ima") and not dicom_mask.is_dicom(path):
        raise FileError(f"{path.name} is of an unsupported kind", _allowed(), "convert it to .nii.gz")
    return dicom_mask.read(path, grid, segment) if labels else dicom.read(path, series)


def _format(suffix: str) -> ModuleType:
    if suffix in NIFTI_SUFFIXES:
        from voxsam.io import nifti

        return nifti
    if suffix in (".nrrd", ".nhdr"):
        from voxsam.io import nrrd

        return nrrd
    from voxsam.io import metaimage

    return metaimage


def _suffix(path: Path) -> str:
    """The suffix of a single-file format, in lower case, or ""."""
    name = path.name.lower()
    return next((s for s in SCAN_SUFFIXES if name.endswith(s)), "")


def _allowed() -> str:
    return f"{', '.join(SCAN_SUFFIXES)}, or a folder or .zip of DICOM"

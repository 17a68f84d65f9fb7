"""File input and output: read_volume reads any supported scan as a Volume, write_mask writes a mask on its grid.

The format modules (nifti, itk, dicom) are imported when the first file of their kind is read or written, so that
`import voxsam` stays light. They share the modules checks and gunzip.
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
from voxsam.errors import FileError, GeometryError, ImageError, one_line
from voxsam.geometry import Grid
from voxsam.io.checks import (
    as_labels,
    check_scan,
    check_spacing,
    guess_modality,
    links_allowed,
    not_hounsfield,
    without_nan,
)
from voxsam.io.segments import segment_infos
from voxsam.volume import Volume

__all__ = [
    "MASK_SUFFIXES",
    "SCAN_SUFFIXES",
    "SUFFIXES",
    "check_mask_output",
    "is_address",
    "is_oriented",
    "read_channels",
    "read_volume",
    "write_mask",
    "write_volume",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")  # written and read
SCAN_SUFFIXES = (*SUFFIXES, ".nhdr", ".mhd", ".hdr")  # read; the last three are headers with a separate voxel file
PAIR_SUFFIXES = (".img", ".img.gz", ".hdr.gz")  # read, but not listed alongside their headers
MASK_SUFFIXES = (*SUFFIXES, ".seg.dcm", ".rtstruct.dcm", ".dcm")  # a plain .dcm is also a DICOM-SEG
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32")  # what every format here can hold
ALLOWED = f"{', '.join(SCAN_SUFFIXES)}, or a folder or .zip of DICOM"
NEAR = 0.5  # of a voxel: a label's grid this close to the scan's counts as the scan's

T = TypeVar("T")


def read_volume(
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    grid: Grid | None = None,
    segment: int | None = None,
    series: str | int = "",
    scan: Volume | None = None,
) -> Volume:
    """Read a scan from NIfTI, NRRD or MetaImage (detached headers included), or from a folder, .zip or file of DICOM.

    `path` may also be the address of a DICOMweb series, dicomweb+https://HOST/.../studies/STUDY/series/SERIES.

    The array keeps the file's own (i, j, k) order (DICOM: column, row, slice): integers as stored, or float32 if the
    file rescales them or holds floats. The modality is the DICOM tag, otherwise "CT" or "" as guess_modality decides.
    `series` chooses one of several DICOM series by number or UID. `remarks` describe anything odd about the file.

    With `labels=True`, read a mask or label map instead, which may also be a DICOM-SEG or RTSTRUCT file: integers,
    modality "SEG", constant allowed. For those two, `grid` is the scan's grid to place them on (an RTSTRUCT needs it)
    and `segment` selects one of several segments, as 0/1; other formats ignore both. `scan` is the scan itself: it
    gives the grid, and a remark if the file contradicts it. Raises FileError, ImageError or GeometryError, in one line.
    """
    if is_address(path):
        from voxsam.io.dicom.web import retrieved

        with retrieved(path) as folder:
            return read_volume(folder, labels=labels, grid=grid, segment=segment, scan=scan)
    path, grid = Path(path), scan.grid if scan is not None and grid is None else grid
    volume = _named(path, lambda: _read(path, labels, grid, segment, str(series)))
    volume = replace(volume, remarks=tuple(map(one_line, volume.remarks)))
    if not labels:
        return _as_scan(path.name, volume)
    volume = volume.with_array(as_labels(path.name, volume.array), modality="SEG")
    if scan is None:
        return volume
    if volume.grid.close_to(_as_itk_places_it(scan).grid):  # as write_mask writes it for a scan without a place
        volume = replace(volume, grid=scan.grid)
    return replace(volume, remarks=(*volume.remarks, *_contradictions(path.name, volume, scan)))


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a DICOMweb archive, or of a series in one (voxsam.io.dicom.web)."""
    return os.fspath(path).lower().startswith(("dicomweb+http:/", "dicomweb+https:/"))


def read_channels(path: str | os.PathLike[str], *, series: str | int = "") -> tuple[Volume, ...]:
    """Read the image channels of a file: the volumes of a 4D NIfTI file, or the single volume of any other.

    Each is as `read_volume` returns it, and all share one grid. Raises as `read_volume` does.
    """
    path = Path(path)
    if not path.is_file() or (kind := _named(path, lambda: _kind(path))) is None or kind.__name__ != "voxsam.io.nifti":
        return (read_volume(path, series=series),)
    volumes = _named(path, lambda: kind.read_channels(path))
    several = len(volumes) > 1
    names = (f"{path.name} (channel {n})" if several else path.name for n in range(len(volumes)))
    return tuple(_as_scan(name, volume) for name, volume in zip(names, volumes, strict=True))


def _named(path: Path, read: Callable[[], T]) -> T:
    """The result of `read` on an existing file; system, memory and geometry errors are raised with the file's name."""
    try:
        if not path.exists():
            raise FileError(f"{path} does not exist", f"a scan ({ALLOWED})", "check the path")
        if not path.is_dir() and not path.is_file():
            raise FileError(f"{path.name} is no file (a pipe or device)", "a file or folder", "check the path")
        if path.is_file() and path.stat().st_size == 0:
            raise FileError(f"{path.name} is empty (0 bytes)", "an image", "copy or export it again")
        return read()
    except GeometryError as error:
        if path.name in error.given:
            raise
        raise GeometryError(f"{path.name}: {error.given}", error.expected, error.remedy) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "null" not in str(error):  # a path may not hold a zero byte
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            f"{path.name} could not be read ({reason})", "a complete file", "check or copy it again"
        ) from error
    except MemoryError as error:
        if not links_allowed():  # within `at_most`, the caller reports its own limit
            raise
        given = f"{path.name} needs more memory than there is"
        raise FileError(given, "a smaller scan", "crop it, or close other programs") from error


def _as_scan(name: str, volume: Volume) -> Volume:
    """The volume checked to be a scan, with NaN replaced and its modality filled in."""
    check_spacing(name, volume.grid)
    volume = without_nan(name, volume)
    check_scan(name, volume.array)
    doubt = not_hounsfield(volume.array) if volume.modality == "CT" else ""
    remarks = [*volume.remarks, *[f"{name} calls itself a CT, but {doubt}"] * bool(doubt)]
    return replace(volume, modality=volume.modality or guess_modality(volume.array), remarks=tuple(remarks))


def _contradictions(name: str, labels: Volume, scan: Volume) -> list[str]:
    """Remarks on where a label file disagrees with its scan, so that its position is in doubt."""
    remarks, grid = [], labels.grid
    if grid.shape == scan.grid.shape and not grid.close_to(scan.grid, NEAR * float(grid.spacing_mm.min())):
        apart = np.abs(grid.corners_world_mm() - scan.grid.corners_world_mm()).max()
        identity = " (an identity matrix)" if np.allclose(np.abs(grid.affine[:3, :3]), np.eye(3)) else ""
        voxels = " x ".join(map(str, grid.shape))
        remarks.append(
            f"{name} has the scan's {voxels} voxels, but another affine{identity}: its corners lie up to "
            f"{apart:.0f} mm from the scan's, and it was placed by millimetres, not by voxels"
        )
    source = scan.header.get("dicom")
    theirs, ours = labels.header.get("frame_of_reference"), source.common.get("FrameOfReferenceUID") if source else ""
    if theirs and ours and theirs != str(ours):
        remarks.append(
            f"{name} refers to another frame of reference ({theirs}) than the scan ({ours}): "
            "its place is not sure to be right"
        )
    return remarks


def is_oriented(volume: Volume) -> bool:
    """Whether a volume's file gives the patient's orientation; a NIfTI file without sform and qform does not."""
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

    The file is written whole or not at all and replaces an existing one. The other arguments are for DICOM only:
    `source` is the series that the mask belongs to, a Volume or a path, by default the one its scan was read from;
    `names` are the names of labels 1..n; `model` is recorded; `labelmap` writes the newer kind of DICOM-SEG.
    Raises ImageError for another dtype; FileError for another suffix, a missing or unwritable folder, or a scan not
    from DICOM; GeometryError for a mask on another grid than the series; UnsupportedError without highdicom.
    """
    path = Path(path)
    if mask.array.dtype != np.uint8:
        given, remedy = f"a mask of {mask.array.dtype} voxels", "convert it, or use write_volume for probabilities"
        raise ImageError(given, "uint8 (0 background, 1..n objects)", remedy)
    if path.suffix.lower() != ".dcm":
        _write(mask, path, MASK_SUFFIXES)
        return
    from voxsam.io import dicom

    scan = mask if source is None else source if isinstance(source, Volume) else read_volume(source)
    series = dicom.series_of(scan, path)
    with atomic_path(path) as temporary:
        segments = segment_infos(max(1, int(mask.array.max())), names)
        dicom.write_mask(mask, temporary, series, segments=segments, model=model, labelmap=labelmap)


def check_mask_output(scan: Volume, path: str | os.PathLike[str]) -> None:
    """Raises what write_mask would raise for a mask of `scan` written to `path`, before the mask exists."""
    if Path(path).suffix.lower() == ".dcm":
        from voxsam.io import dicom

        dicom.series_of(scan, Path(path))


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
    if suffix in NIFTI_SUFFIXES:
        from voxsam.io import nifti as kind
    else:
        from voxsam.io import itk as kind

        volume = _as_itk_places_it(volume)
    with atomic_path(path) as temporary:
        kind.write(volume, temporary)


def _as_itk_places_it(volume: Volume) -> Volume:
    """The volume moved to where ITK puts a NIfTI scan without orientation: along L, P, S from the origin.

    VoxSAM puts such a scan along R, A, S; a mask in a format that stores its position would miss the scan in ITK.
    """
    grid = volume.grid
    if is_oriented(volume) or not np.array_equal(grid.affine, np.diag([*grid.spacing_mm, 1])):
        return volume
    return replace(volume, grid=Grid.from_lps(grid.shape, np.diag(grid.spacing_mm), (0, 0, 0)))


def _read(path: Path, labels: bool, grid: Grid | None, segment: int | None, series: str) -> Volume:
    """The file as its format module reads it."""
    several = path.is_dir() or path.suffix.lower() == ".zip"
    if not several and (kind := _kind(path)):
        return kind.read(path)
    from voxsam.io import dicom
    from voxsam.io.dicom import series as dicom_series

    if several:
        return dicom_series.read(path, series)
    if path.suffix.lower() not in (".dcm", ".ima") and not dicom.is_dicom(path, old=True):
        raise FileError(f"{path.name} is of an unsupported kind", ALLOWED, "convert it to .nii.gz")
    return dicom.read_mask(path, grid, segment) if labels else dicom_series.read(path, series)


def _kind(path: Path) -> ModuleType | None:
    """The module of a single-file format, by suffix or else by the first bytes; None for DICOM and the rest."""
    suffix = _suffix(path)
    with open(path, "rb") as file:
        head = file.read(352)
    if suffix in (".mha", ".mhd", ".nrrd", ".nhdr") or (not suffix and head.startswith(b"NRRD000")):
        from voxsam.io import itk

        return itk
    if suffix or head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        from voxsam.io import nifti

        return nifti
    return None


def _suffix(path: Path) -> str:
    """The suffix of a single-file format, in lower case, or ""."""
    name = path.name.lower()
    return next((s for s in (*SCAN_SUFFIXES, *PAIR_SUFFIXES) if name.endswith(s)), "")

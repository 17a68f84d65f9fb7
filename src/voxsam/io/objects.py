"""Masks of several objects that may share voxels: read from any mask file, written as far as the format allows.

DICOM-SEG and RTSTRUCT can hold overlapping objects, a label map cannot; a zip has one NIfTI file per object.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxsam.atomic import atomic_path
from voxsam.errors import ImageError, OverlapError
from voxsam.io import dicom, read_volume, write_mask
from voxsam.io.segments import SegmentInfo
from voxsam.region import Region, overlapping
from voxsam.resample import resample
from voxsam.volume import Volume

UNSAFE = str.maketrans(dict.fromkeys('<>:"/|?*. ', "_"))  # what a file name does not keep of its object's name


@dataclass(frozen=True, eq=False)
class MaskObject:
    """An object of a mask file: its name there (or ""), its voxels on the scan, and remarks on the file."""

    name: str
    region: Region
    remarks: tuple[str, ...] = ()


def read_objects(path: str | os.PathLike[str], scan: Volume) -> list[MaskObject]:
    """Every label, segment or ROI of a mask file that has voxels on the scan's grid; they may overlap.

    A mask on another grid is resampled. Raises as `read_volume` does, and ImageError if nothing is left.
    """
    path = Path(path)
    try:
        volumes = [read_volume(path, labels=True, scan=scan)]
    except OverlapError as error:
        volumes = []
        for number in error.numbers:
            volume = read_volume(path, labels=True, scan=scan, segment=number)  # 0/1; its name is that of label 1
            name = volume.header["segments"].get(number, "")
            volumes.append(replace(volume, header={"segments": {1: name}}))
    found = []
    for volume in volumes:
        names, array = volume.header.get("segments", {}), volume.array
        if not volume.grid.close_to(scan.grid):
            array = resample(volume, scan.grid, "nearest")
        for value in np.unique(array[array != 0]).tolist():
            found.append(MaskObject(names.get(int(value), ""), Region.of(array == value), volume.remarks))
    if not found:
        raise ImageError(f"{path.name} has no voxels on the scan", "a mask of this scan", "check the file")
    return found


def write_objects(
    objects: Mapping[int, tuple[SegmentInfo, Region]], scan: Volume, path: str | os.PathLike[str], *, model: str = ""
) -> None:
    """Write a scan's objects, by number, in the format of the suffix: as `write_mask`, or a `.zip` of one NIfTI each.

    In a label map an object's number is its label; in DICOM the objects that have voxels are numbered from 1. Raises as
    `write_mask` does, and ImageError for a label map of objects that share voxels.
    """
    path, header = Path(path), scan.header
    drawn = {number: both for number, both in objects.items() if both[1]} or dict(list(objects.items())[:1])
    if path.suffix.lower() == ".zip":
        with (
            atomic_path(path) as temporary,
            tempfile.TemporaryDirectory(dir=path.parent) as folder,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            for number, (info, region) in drawn.items():
                file = Path(folder) / f"{number}.nii.gz"
                write_mask(Volume(_labels({1: region}, scan), scan.grid, "SEG", header), file)
                archive.write(file, f"{number}_{info.name.translate(UNSAFE)}.nii.gz")
                file.unlink()
    elif path.suffix.lower() == ".dcm":
        series = dicom.series_of(scan, path)
        mask = Volume(_labels({n: r for n, (_, r) in enumerate(drawn.values(), 1)}, scan), scan.grid, "SEG", header)
        infos, regions = [info for info, _ in drawn.values()], [region for _, region in drawn.values()]
        with atomic_path(path) as temporary:
            dicom.write_mask(mask, temporary, series, segments=infos, regions=regions, model=model)
    else:
        if overlapping(region for _, region in drawn.values()):
            given, expected = "a label map of objects that share voxels", "objects apart, or a format that holds them"
            raise ImageError(given, expected, "write one file an object, or a DICOM-SEG")
        write_mask(Volume(_labels({n: r for n, (_, r) in drawn.items()}, scan), scan.grid, "SEG", header), path)


def _labels(regions: Mapping[int, Region], scan: Volume) -> NDArray[np.uint8]:
    """(i, j, k) label map; where regions share a voxel, the last one wins."""
    out = np.zeros(scan.grid.shape, dtype=np.uint8)
    for number, region in regions.items():
        out[region.box][region.inside] = number
    return out

"""Cases resampled into the store, in parallel: a label keeps lesions that are thinner than the voxels of its new grid.

cases/CASE.zarr remembers the key of its source files (path, size, time of change) and of the settings that it depends
on. What has the right key is not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.atomic import remove_leftovers
from voxsam.geometry import Grid
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.cases import Case, LabelChoice, RawData, body_box
from voxsam.lab.data.faults import Measures, case_sources, job_key
from voxsam.lab.data.parallel import ReportProgress, each
from voxsam.lab.data.store import (
    CaseRecord,
    Source,
    case_folder,
    read_record,
    sample_positions,
    write_case,
)
from voxsam.preprocess import Preprocessing
from voxsam.resample import Method, resample
from voxsam.volume import Volume

ANISOTROPIC = 8.0  # largest / smallest spacing above which slices are resampled in plane first (docs/released.md)
PLANES = 64  # of a mask whose voxels are listed at once
TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a corner belong to one lesion


def deepest_points(mask: NDArray[np.bool_], spacing_mm: NDArray) -> NDArray[np.int64]:
    """(lesions, 3) for each connected lesion the index of its voxel farthest from the border.

    Of several equally deep ones, that nearest to their centre: the middle of a line, not its end.
    """
    if not mask.any():
        return np.empty((0, 3), dtype=np.int64)
    box = scipy.ndimage.find_objects(mask.astype(np.uint8))[0]
    assert box is not None
    numbered, _ = scipy.ndimage.label(mask[box], TOUCHING)  # type: ignore[misc]
    points = []
    for number, part in enumerate(scipy.ndimage.find_objects(numbered), start=1):
        lesion = np.pad(numbered[part] == number, 1)
        depth = np.asarray(scipy.ndimage.distance_transform_edt(lesion, sampling=spacing_mm))
        deep = np.argwhere(depth >= depth.max() - 1e-6)
        nearest = np.linalg.norm((deep - deep.mean(0)) * spacing_mm, axis=1).argmin()
        points.append(deep[nearest] - 1 + [a.start + b.start for a, b in zip(part, box, strict=True)])
    return np.array(points, dtype=np.int64)


def resample_label(
    mask: Volume, target: Grid, points: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The mask (0/1) on `target`: where more than half is tumour, what is thinner than its voxels, and under `points`.

    `points` (n, 3) are indices of `mask`; also (n, 3) the voxels of `target` under them.
    """
    label, touched = resample_scan(mask, target, "area") > 0.5, _touched(mask, target)
    for box in scipy.ndimage.find_objects(touched.astype(np.uint8)):  # one: most of a scan is background
        label[box] |= _thin_parts(label[box], touched[box])
    at = _voxels_under(mask.grid, target, points)
    label[tuple(at.T)] = True
    return label.astype(np.uint8), at


def _thin_parts(label: NDArray[np.bool_], touched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels in which tumour lies, but which averaging lost: sheets, rods and bridges, not the rims of the rest.

    A rim is at most a voxel wide: what lies further from the label is thin, and so is what joins it to the label.
    """
    apart = touched & ~np.asarray(scipy.ndimage.binary_dilation(label, TOUCHING), dtype=bool)
    return touched & np.asarray(scipy.ndimage.binary_dilation(apart, TOUCHING), dtype=bool) if apart.any() else apart


def _touched(mask: Volume, target: Grid) -> NDArray[np.bool_]:
    """The voxels of `target` that hold the centre of a voxel of the mask."""
    touched = np.zeros(target.shape, dtype=bool)
    for start in range(0, mask.grid.shape[0], PLANES):
        index = np.argwhere(mask.array[start : start + PLANES]) + [start, 0, 0]
        touched[tuple(_voxels_under(mask.grid, target, index).T)] = True
    return touched


def _voxels_under(grid: Grid, target: Grid, index: NDArray[np.int64]) -> NDArray[np.int32]:
    """(n, 3) the voxels of `target` in which the voxels (n, 3) of `grid` have their centres."""
    at = np.floor(grid.index_in(target, index) + 0.5).astype(np.int32)
    return at.clip(0, np.array(target.shape, dtype=np.int32) - 1)


def resample_scan(volume: Volume, target: Grid, method: Method) -> NDArray[np.float32]:
    """`voxsam.resample.resample`, for extremely anisotropic scans in two steps: slices in plane, then between them.

    `target` has the axes of the volume, in any order.
    """
    spacing = volume.grid.spacing_mm
    if spacing.max() <= ANISOTROPIC * spacing.min():
        return resample(volume, target, method)
    turned = volume.grid.reorient(target.axes)
    between = int(turned.spacing_mm.argmax())
    flat_spacing, flat_shape = target.spacing_mm.copy(), list(target.shape)
    flat_spacing[between], flat_shape[between] = turned.spacing_mm[between], turned.shape[between]
    in_plane = turned.respace(flat_spacing.tolist()).crop((0, 0, 0), flat_shape)
    slices = resample(volume, in_plane, method)
    return resample(Volume(slices, in_plane), target, method)


# A case, and all of them in parallel


@dataclass(frozen=True)
class CaseJob:
    """One sound case to resample, and the folder it goes to."""

    case: Case
    choice: LabelChoice
    preprocessing: Preprocessing
    sources: tuple[Source, ...]
    key: str
    folder: Path


def case_jobs(
    data: RawData, sound: dict[str, Measures], choice: LabelChoice, preprocessing: Preprocessing, output: Path
) -> list[CaseJob]:
    jobs = []
    place = preprocessing.model_dump(include={"axes", "spacing_mm", "interpolation"}, mode="json")
    for case in data.cases:
        if case.name in sound:
            sources = case_sources(case, data.root)
            key = job_key(sources, (choice.targets, sorted(choice.ignored), place))
            jobs.append(CaseJob(case, choice, preprocessing, sources, key, case_folder(output, case.name)))
    return jobs


def make_cases(
    jobs: Sequence[CaseJob], output: Path, workers: int, progress: ReportProgress
) -> tuple[dict[str, CaseRecord], int]:
    """The record of every case, and how many were made."""
    records = {}
    for job in jobs:
        record = read_record(job.folder)
        if record is not None and record.key == job.key:
            records[job.case.name] = record
    missing = [job for job in jobs if job.case.name not in records]
    remove_leftovers(output / "cases")
    if missing:
        (output / "dataset.json").unlink(missing_ok=True)
    for job, record in each(make_case, missing, workers, progress, "resampling the cases"):
        records[job.case.name] = record
    return {name: records[name] for name in sorted(records)}, len(missing)


def make_case(job: CaseJob) -> CaseRecord:
    """Resample one case and write it into the store."""
    case = job.case
    scans = [scan for path in case.images for scan in read_channels(path)]
    grid, model_grid = scans[0].grid, job.preprocessing.model_grid(scans[0].grid)
    channels = [_resampled(Volume(scan.array, grid), model_grid, job.preprocessing) for scan in scans]
    first, last = body_box(Volume(channels[0], model_grid, scans[0].modality)).tolist()
    tumour = job.choice(read_volume(case.label, labels=True, scan=scans[0]).array)
    points = deepest_points(tumour, grid.spacing_mm)
    label, kept = resample_label(Volume(tumour.astype(np.uint8), grid, "SEG"), model_grid, points)
    a, b, c = grid.spacing_mm.tolist()
    record = CaseRecord(
        key=job.key,
        sources=job.sources,
        source_shape=grid.shape,
        source_spacing_mm=(a, b, c),
        source_axes=grid.axes,
        shape=model_grid.shape,
        affine=tuple(tuple(row) for row in model_grid.affine.tolist()),
        volume_ml=int(tumour.sum()) * grid.voxel_volume_ml,
        lesions=len(points),
        voxels=int(label.sum()),
        body=((first[0], first[1], first[2]), (last[0], last[1], last[2])),
    )
    write_case(job.folder, channels, label, sample_positions(label, kept), record)
    return record


def _resampled(scan: Volume, model_grid: Grid, preprocessing: Preprocessing) -> NDArray[Any]:
    """A channel on its model grid: int16 if it holds whole numbers that fit, else float32."""
    low, high = float(scan.array.min()), float(scan.array.max())
    limits = np.iinfo(np.int16)
    whole = scan.array.dtype.kind in "iu" or bool((scan.array == np.rint(scan.array)).all())
    array = resample_scan(scan, model_grid, preprocessing.interpolation)
    if whole and limits.min <= low and high <= limits.max:
        return np.rint(array, out=array).astype(np.int16)
    return array

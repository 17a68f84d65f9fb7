"""The two passes over the cases of a data set, each in parallel: check them, then resample them into the store.

Both remember what they have done, in checks/CASE.json and in cases/CASE.zarr, with a key of the source files (path,
size, time of change) and of the settings that the result depends on. What has the right key is not done again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxsam.atomic import atomic_path
from voxsam.geometry import Grid
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.cases import Case, Fault, RawData
from voxsam.lab.data.faults import Check, Measures, check_case, find_doubles, find_odd_channels
from voxsam.lab.data.labelled import body_box
from voxsam.lab.data.labels import LabelChoice
from voxsam.lab.data.lesions import deepest_points, resample_label, resample_scan
from voxsam.lab.data.parallel import ReportProgress, each
from voxsam.lab.data.store import (
    FORMAT,
    CaseRecord,
    Source,
    case_folder,
    read_record,
    sample_positions,
    write_case,
)
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume


@dataclass(frozen=True)
class CheckJob:
    """One case to check, and where its result is kept."""

    case: Case
    choice: LabelChoice
    key: str
    file: Path


@dataclass(frozen=True)
class CaseJob:
    """One sound case to resample, and the folder it goes to."""

    case: Case
    choice: LabelChoice
    preprocessing: Preprocessing
    sources: tuple[Source, ...]
    key: str
    folder: Path


# The check of every case


def check_all(
    data: RawData, choice: LabelChoice, output: Path, workers: int, progress: ReportProgress
) -> tuple[dict[str, Measures], list[Fault]]:
    """The measures of all sound cases, by name, and every fault of the data set in the order of the cases."""
    (output / "checks").mkdir(exist_ok=True)
    checks: dict[str, Check] = {}
    jobs = []
    for case in data.cases:
        sources = _sources(case, data.root)
        settings = (choice.targets, sorted(choice.known or ()), sorted(choice.ignored), choice.healthy)
        job = CheckJob(case, choice, _key(sources, settings), output / "checks" / f"{case.name}.json")
        known = _read_check(job)
        if known is None:
            jobs.append(job)
        else:
            checks[case.name] = known
    for job, check in each(_run_check, jobs, workers, progress, "checking the cases"):
        checks[job.case.name] = check
    faults = [*data.faults, *(fault for case in data.cases for fault in checks[case.name].faults)]
    faulty = {fault.case for fault in faults}
    measured = {c.name: m for c in data.cases if (m := checks[c.name].measures) is not None and c.name not in faulty}
    for find in (lambda: find_odd_channels(measured.items(), data.channels), lambda: find_doubles(measured.items())):
        for fault in find():
            faults.append(fault)
            measured.pop(fault.case)
    return measured, sorted(faults, key=lambda fault: fault.case)


def _run_check(job: CheckJob) -> Check:
    check = check_case(job.case, job.choice)
    with atomic_path(job.file) as temporary:
        temporary.write_text(json.dumps({"key": job.key, "check": check.model_dump(mode="json")}), encoding="utf-8")
    return check


def _read_check(job: CheckJob) -> Check | None:
    """What an earlier run found, if nothing has changed since."""
    try:
        kept = json.loads(job.file.read_bytes())
        return Check.model_validate(kept["check"]) if kept["key"] == job.key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# The resampled cases


def case_jobs(
    data: RawData, sound: dict[str, Measures], choice: LabelChoice, preprocessing: Preprocessing, output: Path
) -> list[CaseJob]:
    jobs = []
    place = preprocessing.model_dump(include={"axes", "spacing_mm", "interpolation"}, mode="json")
    for case in data.cases:
        if case.name in sound:
            sources = _sources(case, data.root)
            key = _key(sources, (choice.targets, sorted(choice.ignored), place))
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
    if missing:
        (output / "dataset.json").unlink(missing_ok=True)
        for leftover in (output / "cases").glob(".*.zarr"):
            shutil.rmtree(leftover, ignore_errors=True)
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
    tumour = job.choice(read_volume(case.label, labels=True).array)
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


# Keys


def _sources(case: Case, root: Path) -> tuple[Source, ...]:
    """The files of a case as they are now; an absent one has size -1."""
    found = []
    for path in (*case.images, case.label):
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        try:
            status = path.stat()
            found.append(Source(path=shown.as_posix(), size=status.st_size, modified_ns=status.st_mtime_ns))
        except OSError:
            found.append(Source(path=shown.as_posix(), size=-1, modified_ns=0))
    return tuple(found)


def _key(sources: Sequence[Source], settings: object) -> str:
    text = json.dumps([FORMAT, [s.model_dump() for s in sources], settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

"""Prepare a data set: check every case, measure the fingerprint, choose the spacing, resample into a store.

dataset.json is written last, and removed before the first case changes: a killed run leaves no store that opens, and
the next run continues where it stopped. Cases are resampled in parallel; each cases/CASE.zarr records a key of its
source files (path, size, modification time) and of the settings it depends on, and is not made again while the key is
unchanged. A label keeps lesions that are thinner than the voxels of its new grid.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.atomic import atomic_path, remove_leftovers
from voxsam.boxes import bounding_box
from voxsam.errors import ImageError, InputError
from voxsam.geometry import Grid
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.cases import Case, LabelChoice, RawData, body_box
from voxsam.lab.data.faults import FaultyCasesError, Measures, case_sources, check_all, job_key, write_tables
from voxsam.lab.data.folds import Fold, split_cases
from voxsam.lab.data.layouts import DataSet, choose_data_set
from voxsam.lab.data.parallel import ReportProgress, available_cores, each
from voxsam.lab.data.store import (
    CaseRecord,
    Description,
    Fingerprint,
    Intensities,
    PreparedData,
    Source,
    Triple,
    case_folder,
    check_output,
    choose_spacing,
    read_description,
    read_record,
    sample_positions,
    write_case,
)
from voxsam.preprocess import STANDARDISED, Preprocessing, standardised_as
from voxsam.report.metrics import TOUCHING, parts_of
from voxsam.resample import Method, resample
from voxsam.seen import content
from voxsam.volume import Volume

ANISOTROPIC = 8.0  # largest / smallest spacing above which slices are resampled in plane first (docs/released.md)
MAX_CLASS = 255  # the store holds labels in a byte
PLANES = 64  # planes of a mask whose voxels are listed at a time


def deepest_points(mask: NDArray[np.bool_], spacing_mm: NDArray) -> NDArray[np.int64]:
    """(lesions, 3) index of the voxel farthest from the border, for each connected lesion."""
    return np.array([index for index, _ in parts_of(mask, spacing_mm)], dtype=np.int64).reshape(-1, 3)


def resample_label(
    mask: Volume, target: Grid, points: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Resample a mask (0/1) to `target`: voxels more than half tumour, parts thinner than a voxel, and all `points`.

    `points` (n, 3) are indices of `mask`; the voxels of `target` (n, 3) that hold them are returned too.
    """
    label, touched = resample_scan(mask, target, "area") > 0.5, _touched(mask, target)
    box = bounding_box(touched)  # most of a scan is background
    label[box] |= _thin_parts(label[box], touched[box])
    at = _voxels_under(mask.grid, target, points)
    label[tuple(at.T)] = True
    return label.astype(np.uint8), at


def _thin_parts(label: NDArray[np.bool_], touched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with tumour that averaging lost: sheets, rods and bridges, but not the rims of what it kept.

    A rim is at most one voxel wide: anything farther from the label is thin, and so is what joins it to the label.
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
    """(n, 3) the voxels of `target` that hold the centres of the voxels `index` (n, 3) of `grid`."""
    at = np.floor(grid.index_in(target, index) + 0.5).astype(np.int32)
    return at.clip(0, np.array(target.shape, dtype=np.int32) - 1)


def resample_scan(volume: Volume, target: Grid, method: Method) -> NDArray[np.float32]:
    """`voxsam.resample.resample`; extremely anisotropic scans in two steps: slices in plane, then between slices.

    `target` must have the axes of the volume, in any order.
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


@dataclass(frozen=True)
class CaseJob:
    """One sound case to resample, and its output folder."""

    case: Case
    choice: LabelChoice
    preprocessing: Preprocessing  # of all channels
    sources: tuple[Source, ...]
    key: str
    folder: Path
    classes: tuple[int, ...] = ()  # labels that keep their value; empty: all tumour becomes 1


def make_cases(
    data: RawData,
    sound: Collection[str],
    choice: LabelChoice,
    preprocessing: Preprocessing,
    classes: tuple[int, ...],
    output: Path,
    workers: int,
    progress: ReportProgress,
) -> tuple[dict[str, CaseRecord], int]:
    """Make the cases that are missing or outdated; return the record of every case, and how many were made."""
    place = preprocessing.model_dump(include={"axes", "spacing_mm", "interpolation"}, mode="json")
    per_scan = [n for n in range(preprocessing.channels) if preprocessing.channel(n).per_scan]
    place |= {"per_scan": per_scan} if per_scan else {}
    depends = (choice.targets, sorted(choice.ignored), place, *([classes] if classes else []))
    records, missing = {}, []
    for case in data.cases:
        if case.name in sound:
            sources, folder = case_sources(case, data.root), case_folder(output, case.name)
            job = CaseJob(case, choice, preprocessing, sources, job_key(sources, depends), folder, classes)
            record = read_record(folder)
            if record is not None and record.key == job.key:
                records[case.name] = record
            else:
                missing.append(job)
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
    known = content(scans[0])
    scans = standardised_as(scans, job.preprocessing)
    channels = [_resampled(Volume(scan.array, grid), model_grid, job.preprocessing) for scan in scans]
    first, last = body_box(Volume(channels[0], model_grid, scans[0].modality)).tolist()
    labels = read_volume(case.label, labels=True, scan=scans[0]).array
    tumour = job.choice(labels)
    label, foreground, classes, lesions = _labelled(labels, tumour, grid, model_grid, job.classes)
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
        lesions=lesions,
        voxels=int((label > 0).sum()),
        body=((first[0], first[1], first[2]), (last[0], last[1], last[2])),
        content=known,
    )
    write_case(job.folder, channels, label, foreground, record, classes if job.classes else None)
    return record


def _labelled(
    labels: NDArray, tumour: NDArray[np.bool_], grid: Grid, model_grid: Grid, classes: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8], int]:
    """The label on the model grid, (n, 3) its foreground voxels, (n,) their labels, and the number of lesions.

    Each class is resampled by itself; where two meet in a voxel, the smaller one takes it.
    """
    masks = {label: labels == label for label in classes} if classes else {1: tumour}
    sizes = {label: int(mask.sum()) for label, mask in masks.items()}
    out, places, lesions = np.zeros(model_grid.shape, np.uint8), {}, 0
    for label in sorted((n for n, size in sizes.items() if size), key=lambda n: -sizes[n]):
        points = deepest_points(masks[label], grid.spacing_mm)
        mask, places[label] = resample_label(Volume(masks[label].astype(np.uint8), grid, "SEG"), model_grid, points)
        out[mask > 0], lesions = label, lesions + len(points)
    found = {
        label: sample_positions((out == label).astype(np.uint8), at[out[tuple(at.T)] == label])
        for label, at in places.items()
    }
    own = [np.full(len(positions), label, np.uint8) for label, positions in found.items()]
    return out, np.concatenate(list(found.values())), np.concatenate(own), lesions


def _resampled(scan: Volume, model_grid: Grid, preprocessing: Preprocessing) -> NDArray[Any]:
    """A channel on the model grid: int16 if it holds integers that fit, else float32."""
    low, high = float(scan.array.min()), float(scan.array.max())
    limits = np.iinfo(np.int16)
    whole = scan.array.dtype.kind in "iu" or bool((scan.array == np.rint(scan.array)).all())
    array = resample_scan(scan, model_grid, preprocessing.interpolation)
    if whole and limits.min <= low and high <= limits.max:
        return np.rint(array, out=array).astype(np.int16)
    return array


AXES = "SAR"


@dataclass(frozen=True)
class Options:
    """The user's options; None leaves the choice to the data set.

    `spacing_mm` is along the model's axes (S, A, R; KiTS I, P, L). `workers` 0: one per core, at most eight.
    """

    data_set: str | None = None
    labels: tuple[int, ...] | None = None
    spacing_mm: Triple | Literal["auto"] | None = None
    seed: int = 0
    workers: int = 0
    skip_faulty: bool = False
    fold: Fold | None = None  # the split, instead of one drawn with `seed`
    patient: str = "(.*)"  # the patient's part of a case's name; no patient may be in two parts of a fold
    classes: bool = False  # every label that the data set names is a class of its own, instead of all being tumour
    per_scan: bool = True  # standardise MR channels scan by scan: their unit varies with scanner and session


@dataclass(frozen=True)
class Outcome:
    """The store, how many of its cases were made in this run, and the remarks on each case's files."""

    store: PreparedData
    made: int
    remarks: dict[str, tuple[str, ...]]


def prepare(
    raw: Path, output: Path, options: Options, progress: ReportProgress = lambda stage, fraction: None
) -> Outcome:
    """Create or update the store in `output` from the data set at `raw`.

    Raises FaultyCasesError with every fault of the data set (also written to faults.csv, beside remarks.csv) unless
    `options.skip_faulty`, other InputErrors for an invalid path, name or choice.
    """
    data_set = choose_data_set(raw, options.data_set)
    data = data_set.read(raw)
    choice = _label_choice(data_set, data, options.labels)
    classes = _classes(data, choice) if options.classes else {}
    check_output(output, raw)
    workers = options.workers or available_cores()
    findings = check_all(data, choice, output, workers, progress)
    report = write_tables(findings, output)
    if findings.faults and not options.skip_faulty:
        raise FaultyCasesError(findings, report)
    sound = {name: m for name, m in findings.measures.items() if m.channels}
    if not sound:
        raise ImageError(f"{raw} without a sound case that has a tumour", "at least one", "correct the cases")
    fold = options.fold
    split = fold.split(sound, options.patient) if fold else split_cases(sound, options.seed, data_set.folds)
    fingerprint, preprocessing = _decide(data_set, data, sound, split["train"], choice, options)
    whole = preprocessing[0].with_channels(preprocessing[1:])
    records, made = make_cases(data, sound, choice, whole, tuple(sorted(classes)), output, workers, progress)
    description = Description(
        data_set=data_set.name,
        root=str(data.root.resolve()),
        labels=choice.targets,
        ignored_labels=tuple(sorted(choice.ignored)),
        classes=classes,
        seed=options.seed,
        channels=_channel_names(data, len(preprocessing)),
        preprocessing=preprocessing,
        fingerprint=fingerprint,
        split=split,
        cases=records,
        without_tumour=tuple(sorted(findings.measures.keys() - sound.keys())),
        unoriented=tuple(sorted(name for name, m in sound.items() if not m.oriented)),
        faults=findings.faults,
    )
    _finish(output, description)
    return Outcome(PreparedData(output, description), made, findings.remarks)


def _label_choice(data_set: DataSet, data: RawData, labels: tuple[int, ...] | None) -> LabelChoice:
    choice = data.choice.of(labels or data_set.labels)
    unknown = () if choice.known is None else sorted(set(choice.targets or ()) - choice.known)
    if unknown:
        raise InputError(f"the label {unknown[0]}", data.choice.allowed, "choose with --labels")
    return replace(choice, healthy=data_set.healthy)


def _classes(data: RawData, choice: LabelChoice) -> dict[int, str]:
    """The names of the labels that are classes. Raises InputError for fewer than two, and for labels above 255."""
    named = {label: name for label, name in data.names.items() if choice.targets is None or label in choice.targets}
    if len(set(named.values())) < 2 or max(named, default=0) > MAX_CLASS:
        given = f"classes of labels named {', '.join(named.values()) or 'nowhere'}"
        expected = f"two or more labels from 1 to {MAX_CLASS}, each with a name"
        raise InputError(given, expected, 'name them in dataset.json: "labels": {"liver": 1, "tumour": 2}')
    return named


# Spacing and statistics


def _decide(
    data_set: DataSet,
    data: RawData,
    sound: dict[str, Measures],
    train: Sequence[str],
    choice: LabelChoice,
    options: Options,
) -> tuple[Fingerprint, tuple[Preprocessing, ...]]:
    """The fingerprint of the training part, and the preprocessing of each channel.

    A data set with released preprocessing keeps its spacing and statistics, unless other ones or labels are chosen.
    """
    released = data_set.preprocessing
    axes = released.axes if released else AXES
    grids = {name: m.grid.reorient(axes) for name, m in sound.items()}
    spacings, shapes = (np.array([getattr(grids[n], what) for n in train]) for what in ("spacing_mm", "shape"))
    channels = tuple(Intensities.merge(sketches) for sketches in zip(*(sound[n].channels for n in train), strict=True))
    fingerprint = Fingerprint(
        cases=len(train),
        channels=channels,
        spacing_mm=_triple(np.median(spacings, axis=0)),
        shape=_triple(np.median(shapes, axis=0)),
        volume_ml=float(np.median([sound[n].volume_ml for n in train])),
    )
    wanted = options.spacing_mm or (released.spacing_mm if released else "auto")
    spacing = choose_spacing(spacings, shapes) if wanted == "auto" else wanted
    if released and choice.targets == data_set.labels:
        return fingerprint, (released.model_copy(update={"spacing_mm": spacing}),) * len(channels)
    modality = "CT" if all(m.modality == "CT" for m in sound.values()) else ""
    place = {"axes": axes, "spacing_mm": spacing, "interpolation": released.interpolation if released else "area"}
    return fingerprint, tuple(
        _measured(channel, name, modality, options.per_scan, place)
        for name, channel in zip(_channel_names(data, len(channels)), channels, strict=True)
    )


def _measured(channel: Intensities, name: str, modality: str, per_scan: bool, place: dict[str, Any]) -> Preprocessing:
    """A channel's preprocessing: as measured, or, with `per_scan`, scan by scan if it is MR without a unit.

    The channel's name may imply its modality; `modality` is that of all cases. ADC is a quantitative map, whose values
    mean the same in every scan.
    """
    name = name.upper()
    if name.startswith("CT"):
        modality = "CT"
    elif name.startswith(("MR", "T1", "T2", "FLAIR", "ADC", "DWI")):
        modality = "MR"
    if per_scan and modality == "MR" and not name.startswith("ADC"):
        return Preprocessing(modality=modality, **place, **STANDARDISED)
    clip = (channel.low, channel.high if channel.low < channel.high else channel.low + 1)
    return Preprocessing(modality=modality, **place, clip=clip, mean=channel.mean, sd=channel.sd or 1.0)


def _channel_names(data: RawData, count: int) -> tuple[str, ...]:
    return data.channels if len(data.channels) == count else tuple(f"channel {i}" for i in range(count))


def _triple(values: NDArray) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _finish(output: Path, description: Description) -> None:
    """Write dataset.json if it has changed, and remove cases that no longer belong to the store."""
    path = output / "dataset.json"
    if read_description(path) != description:
        with atomic_path(path) as temporary:
            temporary.write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for folder in (output / "cases").glob("*.zarr"):
        if folder.name.removesuffix(".zarr") not in description.cases:
            shutil.rmtree(folder, ignore_errors=True)

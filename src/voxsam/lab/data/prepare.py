"""Prepare a data set: check every case, measure the fingerprint, choose the spacing, resample into a store.

dataset.json is written last, and taken away before the first case changes: a run that was killed leaves no store that
opens, and the next run goes on from where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from voxsam.atomic import atomic_path
from voxsam.errors import ImageError, InputError
from voxsam.lab.data.cases import LabelChoice, RawData
from voxsam.lab.data.faults import FaultyCasesError, Measures, check_all, write_faults
from voxsam.lab.data.fingerprint import Fingerprint, Intensities, Triple, choose_spacing
from voxsam.lab.data.layouts import DataSet, choose_data_set
from voxsam.lab.data.parallel import ReportProgress, available_cores
from voxsam.lab.data.resampling import case_jobs, make_cases
from voxsam.lab.data.store import Description, PreparedData, check_output, read_description
from voxsam.preprocess import Preprocessing

PARTS = ("train", "validation", "test")
FRACTIONS = (0.7, 0.1, 0.2)  # paper, Sec. 4.1

Split = dict[str, tuple[str, ...]]


def split_sizes(count: int, folds: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """How many of `count` cases train, validate and test: `folds` if they add up to it, else 70, 10 and 20 %.

    Rounded; with three cases or more every part has one, with two or one nothing is left for validation.
    """
    if folds is not None and sum(folds) == count:
        return folds
    validation = max(1, round(FRACTIONS[1] * count)) if count > 2 else 0
    test = max(1, round(FRACTIONS[2] * count)) if count > 1 else 0
    return count - validation - test, validation, test


def split_cases(names: Iterable[str], seed: int, folds: tuple[int, int, int] | None = None) -> Split:
    """The names of "train", "validation" and "test", each sorted; the same for the same names in any order."""
    ordered = sorted(names)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
    sizes = split_sizes(len(ordered), folds)
    ends = np.cumsum(sizes)
    return {
        part: tuple(sorted(ordered[i] for i in order[end - size : end]))
        for part, size, end in zip(PARTS, sizes, ends, strict=True)
    }


AXES = "SAR"


@dataclass(frozen=True)
class Options:
    """What the user may choose; None is the data set's own choice.

    `spacing_mm` is along the model's axes (S, A, R; KiTS I, P, L). `workers` 0: the machine's cores, at most eight.
    """

    data_set: str | None = None
    labels: tuple[int, ...] | None = None
    spacing_mm: Triple | Literal["auto"] | None = None
    seed: int = 0
    workers: int = 0
    skip_faulty: bool = False


@dataclass(frozen=True)
class Outcome:
    """The store, and how many cases of it had to be made anew in this run."""

    store: PreparedData
    made: int


def prepare(
    raw: Path, output: Path, options: Options, progress: ReportProgress = lambda stage, fraction: None
) -> Outcome:
    """Make or bring up to date the store in `output` from the data set at `raw`.

    Raises FaultyCasesError with every fault of the data set (also written to faults.csv) unless
    `options.skip_faulty`, other InputErrors for a path, name or choice that makes no sense.
    """
    data_set = choose_data_set(raw, options.data_set)
    data = data_set.read(raw)
    choice = _label_choice(data_set, data, options.labels)
    check_output(output, raw)
    workers = options.workers or available_cores()
    measures, faults = check_all(data, choice, output, workers, progress)
    write_faults(faults, output / "faults.csv")
    if faults and not options.skip_faulty:
        raise FaultyCasesError(faults, output / "faults.csv")
    sound = {name: m for name, m in measures.items() if m.channels}
    if not sound:
        raise ImageError(f"{raw} without a sound case that has a tumour", "at least one", "correct the cases")
    split = split_cases(sound, options.seed, data_set.folds)
    fingerprint, preprocessing = _decide(data_set, data, sound, split["train"], choice, options)
    jobs = case_jobs(data, sound, choice, preprocessing[0], output)
    records, made = make_cases(jobs, output, workers, progress)
    description = Description(
        data_set=data_set.name,
        root=str(data.root.resolve()),
        labels=choice.targets,
        ignored_labels=tuple(sorted(choice.ignored)),
        seed=options.seed,
        channels=_channel_names(data, len(preprocessing)),
        preprocessing=preprocessing,
        fingerprint=fingerprint,
        split=split,
        cases=records,
        without_tumour=tuple(sorted(measures.keys() - sound.keys())),
        unoriented=tuple(sorted(name for name, m in sound.items() if not m.oriented)),
        faults=tuple(faults),
    )
    _finish(output, description)
    return Outcome(PreparedData(output, description), made)


def _label_choice(data_set: DataSet, data: RawData, labels: tuple[int, ...] | None) -> LabelChoice:
    choice = data.choice.of(labels or data_set.labels)
    unknown = () if choice.known is None else sorted(set(choice.targets or ()) - choice.known)
    if unknown:
        raise InputError(f"the label {unknown[0]}", data.choice.allowed, "choose with --labels")
    return replace(choice, healthy=data_set.healthy)


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

    A named data set has 1 mm and its released statistics, unless other labels are chosen.
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
    names = _channel_names(data, len(channels))
    interpolation = released.interpolation if released else "area"
    own = (
        Preprocessing(
            modality=_modality(name) or modality,
            axes=axes,
            spacing_mm=spacing,
            clip=(c.low, c.high) if c.low < c.high else (c.low, c.low + 1),
            mean=c.mean,
            sd=c.sd or 1.0,
            interpolation=interpolation,
        )
        for name, c in zip(names, channels, strict=True)
    )
    return fingerprint, tuple(own)


def _modality(channel: str) -> str:
    """What the name of a channel says: "CT", "MR" or "" (nothing)."""
    name = channel.upper()
    if name.startswith("CT"):
        return "CT"
    return "MR" if name.startswith(("MR", "T1", "T2", "FLAIR", "ADC", "DWI")) else ""


def _channel_names(data: RawData, count: int) -> tuple[str, ...]:
    return data.channels if len(data.channels) == count else tuple(f"channel {i}" for i in range(count))


def _triple(values: NDArray) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _finish(output: Path, description: Description) -> None:
    """Write dataset.json if it is not so already, and remove the cases that do not belong to it any more."""
    path = output / "dataset.json"
    if read_description(path) != description:
        with atomic_path(path) as temporary:
            temporary.write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for folder in (output / "cases").glob("*.zarr"):
        if folder.name.removesuffix(".zarr") not in description.cases:
            shutil.rmtree(folder, ignore_errors=True)

"""The stream of training samples: scans held in memory and generated ones, mixed, sample n always the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from voxsam.errors import FileError, InputError
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.cases import Case, Labelled, find_cases
from voxsam.lab.data.sampling import Sample, Sampler
from voxsam.lab.data.store import find_description, open_store
from voxsam.phantoms.phantoms import CLOSE, Scene, make_phantom


def load_cases(folder: Path, *, leave_out: Collection[str] = (), only: Collection[str] | None = None) -> list[Labelled]:
    """The cases of a folder, without those of `leave_out`, or `only` those named.

    A prepared store (voxsam.lab.data.store) is read as crops are drawn, and its test cases are left out, too. Any other
    folder is in MSD / nnU-Net raw layout, and each case is read once and kept in memory at its own spacing. Raises
    FileError for names that the folder does not have, InputError with a case's name for one that cannot be used.
    """
    load, names, test = _source(folder)
    missing = sorted({*leave_out, *(only or ())} - names)
    if missing:
        raise FileError(
            f"{folder}: no case {', '.join(missing)}", "all cases that the recipe names", "check their names"
        )
    chosen = names - test - set(leave_out) if only is None else only
    return [load(name) for name in sorted(chosen)]


def fingerprint(folder: Path) -> str:
    """16 digits that differ for another data set, without reading its voxels; where it lies does not count.

    Of a prepared store: its cases, what each was made of, and the split. Else: the names and sizes of its files.
    """
    if find_description(folder) is not None:
        found = open_store(folder).description
        parts = [*((name, case.key) for name, case in sorted(found.cases.items())), *sorted(found.split.items())]
    else:
        files = sorted({path for case in find_cases(folder) for path in (*case.images, case.label)})
        parts = [(path.name, path.stat().st_size) for path in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _source(folder: Path) -> tuple[Callable[[str], Labelled], set[str], set[str]]:
    """How a case is loaded by its name, which cases there are, and which of them are for testing."""
    if find_description(folder) is not None:
        store = open_store(folder)
        return store.load, set(store.names), set(store.split["test"])
    cases = {case.name: case for case in find_cases(folder)}
    return lambda name: _load(cases[name]), set(cases), set()


def _load(case: Case) -> Labelled:
    scan, *additional = (channel for path in case.images for channel in read_channels(path))
    label = read_volume(case.label, labels=True, scan=scan)
    try:
        return Labelled.make(scan, label, additional, case.choice)
    except InputError as error:
        raise type(error)(f"{case.name}: {error.given}", error.expected, error.remedy) from error


def make_phantoms(
    count: int, shape: Sequence[int], spacing_mm: Sequence[float], first_seed: int, scene: Scene = CLOSE
) -> list[Labelled]:
    """`count` generated scans with seeds from `first_seed` on."""
    phantoms = (make_phantom(first_seed + i, shape, spacing_mm, scene=scene) for i in range(count))
    return [Labelled.make(p.scan, p.label) for p in phantoms]


PASSES = 2**31  # sets the orders' random numbers apart from the samples'


class SampleStream(Dataset[Sample]):
    """`length` samples; the fraction of generated scans goes linearly from `fraction[0]` to `fraction[1]`.

    Each is of a scan drawn by chance; with `passes` the scans come in turn, in another order on each pass over them.
    Sample n is always the same, whatever was drawn before. Raises InputError without scans and phantoms.
    """

    def __init__(
        self,
        sampler: Sampler,
        scans: Sequence[Labelled],
        phantoms: Sequence[Labelled],
        length: int,
        fraction: tuple[float, float],
        seed: int,
        passes: bool = False,
    ) -> None:
        if not scans and not phantoms:
            raise InputError(
                "neither scans nor phantoms", "something to train on", "give --data, or phantoms in the recipe"
            )
        self.sampler, self.scans, self.phantoms = sampler.among([*scans, *phantoms]), scans, phantoms
        self.length, self.fraction, self.seed, self.passes = length, fraction, seed, passes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, number])
        fraction = self.fraction[0] + (self.fraction[1] - self.fraction[0]) * number / self.length
        generated = bool(self.phantoms) and (not self.scans or rng.random() < fraction)
        pool = self.phantoms if generated else self.scans
        case = self._in_turn(number, len(pool)) if self.passes else int(rng.integers(len(pool)))
        sample = self.sampler.draw(pool[case], rng)
        return {**sample, "number": np.array(number)}

    def _in_turn(self, number: int, count: int) -> int:
        """Which of `count` scans the sample of this number is of."""
        done, place = divmod(number, count)
        return int(np.random.default_rng([self.seed, PASSES, done]).permutation(count)[place])


def validation_samples(sampler: Sampler, cases: Sequence[Labelled], seed: int) -> list[Sample]:
    """One crop of each case, its intensities as they are; always the same for the same seed.

    As the model will be used, whatever it is trained with: one click on a voxel of the tumour, which is the crop's
    middle. For a sampler without clicks the tumour lies anywhere in the crop: a middle would give it away.
    """
    clicks = sampler.prompts != "none"
    plain = Augmentation(
        **{"zoom": (1, 1), "rotate": 0, "flip": 0, "turn": 0, "shift": 0, "scale": 0, "noise": 0, "margin_mm": None},
        off_centre=0 if clicks else 1,
        off_centre_mm=0 if clicks else math.inf,
        background=0,
    )
    still = Sampler(sampler.preprocessing, sampler.side, plain, "clicks" if clicks else "none")
    samples = (still.draw(case, np.random.default_rng([seed, n])) for n, case in enumerate(cases))
    return [{**sample, "points": sample["points"][:1], "labels": sample["labels"][:1]} for sample in samples]

"""The stream of training samples: scans held in memory and generated ones, mixed, sample n always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from voxsam.data.cases import Case
from voxsam.data.phantoms import make_phantom
from voxsam.data.sampling import Labelled, Sample, Sampler
from voxsam.errors import InputError
from voxsam.io import read_volume


def load_cases(cases: Sequence[Case]) -> list[Labelled]:
    """Every case read once and kept in memory at its own spacing. Raises InputError, with the case's name."""
    return [_load(case) for case in cases]


def _load(case: Case) -> Labelled:
    scan, label = read_volume(case.image), read_volume(case.label, labels=True)
    try:
        return Labelled.make(scan, label)
    except InputError as error:
        raise type(error)(f"{case.name}: {error.given}", error.expected, error.remedy) from error


def make_phantoms(count: int, shape: Sequence[int], spacing_mm: Sequence[float], first_seed: int) -> list[Labelled]:
    """`count` generated scans with seeds from `first_seed` on."""
    phantoms = (make_phantom(first_seed + i, shape=shape, spacing_mm=spacing_mm) for i in range(count))
    return [Labelled.make(p.scan, p.label) for p in phantoms]


class SampleStream(Dataset[Sample]):
    """`length` samples; the share of generated scans falls linearly from `share[0]` to `share[1]`.

    Sample n is always the same, whatever was drawn before. Raises InputError without scans and phantoms.
    """

    def __init__(
        self,
        sampler: Sampler,
        scans: Sequence[Labelled],
        phantoms: Sequence[Labelled],
        length: int,
        share: tuple[float, float],
        seed: int,
    ) -> None:
        if not scans and not phantoms:
            raise InputError(
                "neither scans nor phantoms", "something to train on", "give --data, or phantoms in the recipe"
            )
        self.sampler, self.scans, self.phantoms = sampler, scans, phantoms
        self.length, self.share, self.seed = length, share, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, number])
        share = self.share[0] + (self.share[1] - self.share[0]) * number / self.length
        generated = bool(self.phantoms) and (not self.scans or rng.random() < share)
        pool = self.phantoms if generated else self.scans
        return self.sampler.draw(pool[int(rng.integers(len(pool)))], rng)

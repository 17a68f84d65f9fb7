"""Which cases train, validate and test: a seeded draw of 70, 10 and 20 %, or of given sizes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PARTS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)  # paper, Sec. 4.1

Split = dict[str, tuple[str, ...]]


def split_sizes(count: int, folds: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """How many of `count` cases train, validate and test: `folds` if they add up to it, else 70, 10 and 20 %.

    Rounded; with three cases or more every part has one, with two or one nothing is left for validation.
    """
    if folds is not None and sum(folds) == count:
        return folds
    validation = max(1, round(SHARES[1] * count)) if count > 2 else 0
    test = max(1, round(SHARES[2] * count)) if count > 1 else 0
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

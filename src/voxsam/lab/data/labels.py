"""LabelChoice: which values of a label file are tumour, which are to be ignored, and which it may have at all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import InputError

AT_ONCE = 2**22  # voxels of a label that are counted at once
LARGEST_COUNTED = 2**16
SHOWN_VALUES = 5


@dataclass(frozen=True)
class LabelChoice:
    """Which values are tumour (None: all above 0 but the ignored), and which values a label may have (None: any).

    Ignored voxels (nnU-Net's label `ignore`) are background, in training and in scores.
    """

    targets: tuple[int, ...] | None = None
    known: frozenset[int] | None = None
    ignored: frozenset[int] = frozenset()
    healthy: bool = False  # a case without tumour is no fault

    def __call__(self, labels: NDArray) -> NDArray[np.bool_]:
        """Where a label map is tumour."""
        if self.targets is not None and len(self.targets) == 1:
            return labels == self.targets[0]
        if self.targets is not None:
            return np.isin(labels, self.targets)
        return (labels > 0) & ~np.isin(labels, list(self.ignored)) if self.ignored else labels > 0

    def of(self, targets: Collection[int] | None) -> LabelChoice:
        """The same data set with these values as the tumour; none given: as it is.

        Raises InputError for values below 1 and for ignored ones; whether a label has them is not asked here.
        """
        if not targets:
            return self
        wrong = [v for v in sorted(targets) if v < 1 or v in self.ignored]
        if wrong:
            what = "which the data set says to ignore" if wrong[0] in self.ignored else "which no tumour has"
            raise InputError(f"the label {wrong[0]}, {what}", self.allowed, "choose with --labels")
        return replace(self, targets=tuple(sorted(set(targets))))

    @property
    def wanted(self) -> str:
        """The values that are tumour, in words."""
        return "a value above 0" if self.targets is None else " or ".join(map(str, self.targets))

    @property
    def allowed(self) -> str:
        """The values that may be chosen, in words."""
        if self.known is None:
            return "whole numbers above 0"
        return f"some of {', '.join(map(str, sorted(self.known - self.ignored - {0})))}"


ABOVE_0 = LabelChoice()


def label_values(labels: NDArray) -> set[int]:
    """The whole numbers that a label map holds."""
    flat = labels.ravel(order="K")
    small = labels.min() >= 0 and labels.max() < LARGEST_COUNTED
    found: set[int] = set()
    for start in range(0, flat.size, AT_ONCE):
        part = flat[start : start + AT_ONCE]
        found.update((np.flatnonzero(np.bincount(part)) if small else np.unique(part)).tolist())
    return found


def listed(values: Collection[int]) -> str:
    """Values in words, the first few of many."""
    ordered = sorted(values)
    return ", ".join(map(str, ordered[:SHOWN_VALUES])) + (" ..." if len(ordered) > SHOWN_VALUES else "")

"""LabelMap: every object's answer as one mask; when an answer changes, only its box is drawn anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, intersection, is_empty, within
from voxsam.geometry import Grid
from voxsam.interactive.crops import THRESHOLD
from voxsam.interactive.history import Answer
from voxsam.preprocess import Slices


class LabelMap:
    """The labels of one scan, kept for the smallest box that holds all answers; the rest of the scan is 0."""

    def __init__(self, scan: Grid) -> None:
        self.scan = scan
        self._drawn: dict[int, Answer] = {}
        self._box: Slices = NOWHERE
        self._labels = np.zeros((0, 0, 0), dtype=np.uint8)

    def draw(self, answers: Mapping[int, Answer]) -> NDArray[np.uint8]:
        """A new array (i, j, k) on the scan: 0, and each object's number where it is above 0.5 and the most probable.

        Of equally probable objects the first one wins. Outside the box nothing is touched, so that the memory of a
        large scan is neither filled nor copied.
        """
        stale = self._stale(answers)
        self._move(hull(answer.reach(self.scan) for answer in answers.values()))
        self._redraw(intersection(stale, self._box), answers)
        self._drawn = dict(answers)
        out = np.zeros(self.scan.shape, dtype=np.uint8)
        out[self._box] = self._labels
        return out

    def _stale(self, answers: Mapping[int, Answer]) -> Slices:
        """The box of every answer that came, went or was replaced since the last drawing."""
        pairs = [(self._drawn.get(number), answers.get(number)) for number in {*self._drawn, *answers}]
        return hull(
            answer.reach(self.scan)
            for before, after in pairs
            if before is not after
            for answer in (before, after)
            if answer is not None
        )

    def _move(self, box: Slices) -> None:
        """Keep the labels for another box; what both boxes hold stays drawn."""
        if box == self._box:
            return
        labels = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        common = intersection(box, self._box)
        labels[within(common, box)] = self._labels[within(common, self._box)]
        self._box, self._labels = box, labels

    def _redraw(self, box: Slices, answers: Mapping[int, Answer]) -> None:
        labels = self._labels[within(box, self._box)]
        labels[...] = 0
        highest = np.full(labels.shape, THRESHOLD, dtype=np.float32)
        for number, answer in answers.items():
            common = intersection(box, answer.reach(self.scan))
            if is_empty(common):
                continue
            reached, values = answer.on_scan(self.scan)
            here, values = within(common, box), values[within(common, reached)]
            wins = values > highest[here]
            labels[here][wins] = number
            highest[here][wins] = values[wins]

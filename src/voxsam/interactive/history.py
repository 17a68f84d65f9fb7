"""History: the prediction for each object, the way back and forth between steps, and all objects as one label map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, intersection, is_empty, joined, within
from voxsam.geometry import Grid
from voxsam.interactive.crops import THRESHOLD
from voxsam.interactive.predictor import Prediction
from voxsam.preprocess import Slices
from voxsam.prompts import prompts_bytes

UNDO_STEPS = 100
UNDO_BYTES = 256 << 20  # of probabilities that only past steps hold; the oldest go first, the last one always stays


@dataclass(frozen=True)
class Snapshot:
    """Everything that undo gives back: the predictions by object number, and which object is current."""

    predictions: Mapping[int, Prediction]
    current: int = 1

    @property
    def prediction(self) -> Prediction:
        """That of the current object."""
        return self.predictions[self.current]

    def with_prediction(self, prediction: Prediction, number: int | None = None) -> Snapshot:
        """What is seen after an object (None: the current one) got this prediction; a new number is a new object."""
        number = self.current if number is None else number
        return Snapshot(MappingProxyType({**self.predictions, number: prediction}), number)


class History:
    """What is seen, what was seen before, and what was taken back; `changed` is where the last step drew.

    A step is of the whole document: it may be of any object. Snapshots share the predictions that did not change.
    """

    def __init__(self, begin: Prediction, undo_bytes: int | None = None) -> None:
        self.undo_bytes = UNDO_BYTES if undo_bytes is None else undo_bytes
        self.begin = self.seen = Snapshot(MappingProxyType({1: begin}))
        self.changed = NOWHERE
        self._past: list[Snapshot] = []
        self._future: list[Snapshot] = []

    @property
    def can_undo(self) -> bool:
        """Whether there is a step back."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step forth again."""
        return bool(self._future)

    @property
    def nbytes(self) -> int:
        """Memory of the probabilities and prompts of all snapshots, each counted once."""
        snapshots = (*self._past, self.seen, *self._future)
        predictions = {id(found): found for snapshot in snapshots for found in snapshot.predictions.values()}
        prompts = {id(prompt): prompt for found in predictions.values() for prompt in found.prompts}
        return sum(found.nbytes for found in predictions.values()) + prompts_bytes(prompts.values())

    def enter(self, snapshot: Snapshot) -> None:
        """Make a new step; what was taken back is forgotten."""
        self._past = _affordable([*self._past, self.seen][-UNDO_STEPS:], snapshot, self.undo_bytes)
        self._future.clear()
        self._show(snapshot)

    def undo(self) -> None:
        """Go one step back, if there is one."""
        self.changed = NOWHERE
        if self._past:
            self._future.append(self.seen)
            self._show(self._past.pop())

    def redo(self) -> None:
        """Go one step forth again, if there is one."""
        self.changed = NOWHERE
        if self._future:
            self._past.append(self.seen)
            self._show(self._future.pop())

    def select(self, number: int) -> None:
        """Make an object current; no step."""
        self.seen = replace(self.seen, current=number)

    def _show(self, snapshot: Snapshot) -> None:
        """Make a snapshot the one that is seen; predictions that go keep only what they need to come back."""
        gone = _not_in(self.seen, snapshot)
        self.changed = hull(box for found in (*gone, *_not_in(snapshot, self.seen)) for box in found.reach)
        for prediction in gone:
            prediction.forget_pasted()
        self.seen = snapshot


def _not_in(snapshot: Snapshot, other: Snapshot) -> list[Prediction]:
    """The predictions of a snapshot that another one does not have."""
    return [found for number, found in snapshot.predictions.items() if other.predictions.get(number) is not found]


def _affordable(past: list[Snapshot], seen: Snapshot, max_bytes: int) -> list[Snapshot]:
    """The latest past snapshots, one at least, as far as `max_bytes` suffice for what the one that is seen lacks.

    Those that add nothing to those after them, as the empty one, cost nothing and stay with them.
    """
    counted = {id(prediction) for prediction in seen.predictions.values()}
    total, kept = 0, 0
    for snapshot in reversed(past):
        added = sum(found.nbytes for found in snapshot.predictions.values() if id(found) not in counted)
        counted.update(map(id, snapshot.predictions.values()))
        total += added
        if kept and added and total > max_bytes:
            break
        kept += 1
    return past[len(past) - kept :]


class LabelMap:
    """The labels of one scan, kept for the smallest box that holds all objects; the rest of the scan is 0.

    When a prediction changes, only its boxes are drawn anew.
    """

    def __init__(self, scan: Grid) -> None:
        self.scan = scan
        self._drawn: dict[int, Prediction] = {}
        self._box: Slices = NOWHERE
        self._labels = np.zeros((0, 0, 0), dtype=np.uint8)

    def draw(self, predictions: Mapping[int, Prediction]) -> NDArray[np.uint8]:
        """A new array (i, j, k) on the scan: 0, and each object's number where it is above 0.5 and the most probable.

        Of equally probable objects the first one wins. Outside the box nothing is touched, so that the memory of a
        large scan is neither filled nor copied.
        """
        self._move(hull(box for found in predictions.values() for box in found.reach))
        for number in {*self._drawn, *predictions}:
            before, after = self._drawn.get(number), predictions.get(number)
            if before is not after:
                boxes = (box for found in (before, after) if found for box in found.reach)
                for box in joined(boxes):
                    self._redraw(intersection(box, self._box), predictions)
        self._drawn = dict(predictions)
        out = np.zeros(self.scan.shape, dtype=np.uint8)
        out[self._box] = self._labels
        return out

    def _move(self, box: Slices) -> None:
        """Keep the labels for another box; what both boxes hold stays drawn."""
        if box == self._box:
            return
        labels = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        common = intersection(box, self._box)
        labels[within(common, box)] = self._labels[within(common, self._box)]
        self._box, self._labels = box, labels

    def _redraw(self, box: Slices, predictions: Mapping[int, Prediction]) -> None:
        labels = self._labels[within(box, self._box)]
        labels[...] = 0
        highest = np.full(labels.shape, THRESHOLD, dtype=np.float32)
        for number, prediction in predictions.items():
            if all(is_empty(intersection(box, reach)) for reach in prediction.reach):
                continue
            for reached, values in prediction.on_scan():
                common = intersection(box, reached)
                here, part = within(common, box), values[within(common, reached)]
                wins = part > highest[here]
                labels[here][wins] = number
                highest[here][wins] = part[wins]

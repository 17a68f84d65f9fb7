"""History: the objects of a session, undo and redo, and all objects as one label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, intersection, is_empty, joined, whole, within
from voxsam.geometry import Grid
from voxsam.interactive.confidence import Confidence
from voxsam.interactive.predictor import Prediction, missed_remark
from voxsam.preprocess import Slices
from voxsam.prompts import Point, prompts_bytes
from voxsam.region import EMPTY, Region

UNDO_STEPS = 100
UNDO_BYTES = 256 << 20  # of probabilities and masks that only past steps hold; the last step always stays


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One object: its voxels, and where they come from. A voxel of `added` is in the mask, one of `erased` is not.

    What was painted, erased or loaded survives later clicks, with one exception: a positive click on an erased voxel
    returns its whole erased component to the network, and a negative click on an added voxel its added component.
    """

    prediction: Prediction
    region: Region = EMPTY  # its voxels, after everything below
    predicted: Region = EMPTY  # by the network: all of it, or only the clicked components
    added: Region = EMPTY  # by hand, or from a file
    erased: Region = EMPTY  # by hand
    locked: bool = True  # no other object takes its voxels
    kept_by_others: float = 0.0  # mL that it would have, but that belong to locked objects

    @property
    def edited(self) -> bool:
        """Whether some of its voxels were set by hand or from a file."""
        return bool(self.added or self.erased)

    @property
    def confidence(self) -> Confidence | None:
        """Confidence of the prediction; None once the mask is no longer what was predicted."""
        return None if self.edited or self.kept_by_others else self.prediction.confidence

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know about the mask, one line each."""
        found = self.prediction
        kept = f"{self.kept_by_others:.2f} mL belong to other objects, which keep them; unlock them, or allow overlap"
        missed = missed_remark(found.clicks, found.grid, self.region.holds)
        return (*found.notes, *[kept] * (self.kept_by_others > 0), *missed)

    @property
    def parts(self) -> tuple[Prediction | Region, ...]:
        """Everything that takes memory."""
        return self.prediction, self.region, self.predicted, self.added, self.erased

    @property
    def wanted(self) -> Region:
        """Its voxels if there were no other objects."""
        return (self.predicted | self.added) - self.erased

    def prompted(self, found: Prediction, keep_clicked: bool, clicks: Sequence[Point] = ()) -> SegmentedObject:
        """The object with another prediction; `clicks` are those that are new in it."""
        added, erased = self.added, self.erased
        for click in clicks:
            voxel = found.grid.voxel_of(click.index_on(found.grid)).tolist()
            if click.positive:
                erased -= erased.component(voxel)
            else:
                added -= added.component(voxel)
        predicted = found.region(keep_clicked)
        found.forget_pasted()
        return replace(self, prediction=found, predicted=predicted, added=added, erased=erased)

    def edited_to(self, region: Region) -> SegmentedObject:
        """The object with these voxels; those that change are set by hand, whatever the network says of them."""
        more, less = region - self.region, self.region - region
        return replace(self, added=(self.added | more) - less, erased=(self.erased | less) - more)


@dataclass(frozen=True)
class Snapshot:
    """Everything that undo restores: the objects by number, which one is current, and how masks are made.

    With `overlap`, objects may share voxels; otherwise a locked one keeps its own, and an unlocked one yields them to
    the object that a later step draws there. With `keep_clicked`, masks keep only the clicked components.
    """

    objects: Mapping[int, SegmentedObject]
    current: int = 1
    overlap: bool = False
    keep_clicked: bool = False

    @property
    def object(self) -> SegmentedObject:
        """The current object."""
        return self.objects[self.current]

    def with_object(self, changed: SegmentedObject, number: int | None = None) -> Snapshot:
        """The snapshot with an object (None: the current one; a new number: a new object) redrawn and made current."""
        number = self.current if number is None else number
        objects, region = {**self.objects}, changed.wanted
        if not self.overlap:
            for other, found in self.objects.items():
                if other == number or is_empty(intersection(found.region.box, region.box)):
                    continue
                if found.locked:
                    region -= found.region
                else:
                    objects[other] = replace(found, region=found.region - region)
        kept = (changed.wanted.voxels - region.voxels) * changed.prediction.grid.voxel_volume_ml
        objects[number] = replace(changed, region=region, kept_by_others=kept)
        return replace(self, objects=MappingProxyType(objects), current=number)

    def without(self, number: int, empty: SegmentedObject) -> Snapshot:
        """The snapshot without an object; if it was the only one, with an `empty` object 1."""
        objects = {other: found for other, found in self.objects.items() if other != number} or {1: empty}
        below = [other for other in objects if other < number]
        current = self.current if self.current in objects else max(below, default=min(objects))
        return replace(self, objects=MappingProxyType(objects), current=current)


class History:
    """The current snapshot (`seen`), past and undone ones; `changed` is the box in which the last step drew.

    Steps belong to the whole session and may concern any object. Snapshots share what did not change.
    """

    def __init__(self, begin: Snapshot, undo_bytes: int | None = None) -> None:
        self.undo_bytes = UNDO_BYTES if undo_bytes is None else undo_bytes
        self.begin = self.seen = begin
        self.changed = NOWHERE
        self._past: list[Snapshot] = []
        self._future: list[Snapshot] = []

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return bool(self._future)

    @property
    def nbytes(self) -> int:
        """Bytes that the probabilities, masks and prompts of all snapshots take, each counted once."""
        parts = {id(part): part for snapshot in (*self._past, self.seen, *self._future) for part in _parts(snapshot)}
        found = [part for part in parts.values() if isinstance(part, Prediction)]
        prompts = {id(prompt): prompt for prediction in found for prompt in prediction.prompts}
        return sum(part.nbytes for part in parts.values()) + prompts_bytes(prompts.values())

    def enter(self, snapshot: Snapshot) -> None:
        """Record a new step; undone ones are forgotten."""
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
        """Go one step forward again, if there is one."""
        self.changed = NOWHERE
        if self._future:
            self._past.append(self.seen)
            self._show(self._future.pop())

    def select(self, number: int) -> None:
        """Make an object current; no step."""
        self.seen = replace(self.seen, current=number)

    def _show(self, snapshot: Snapshot) -> None:
        """Make a snapshot the current one."""
        before, after = self.seen.objects, snapshot.objects
        pairs = [
            [objects[number].region if number in objects else EMPTY for objects in (before, after)]
            for number in {*before, *after}
        ]
        self.changed = hull(old.differs(new) for old, new in pairs if old is not new)
        self.seen = snapshot


def _parts(snapshot: Snapshot) -> list[Prediction | Region]:
    return [part for found in snapshot.objects.values() for part in found.parts]


def _affordable(past: list[Snapshot], seen: Snapshot, max_bytes: int) -> list[Snapshot]:
    """The latest past snapshots, at least one, as many as fit in `max_bytes`; what `seen` also holds is not counted.

    A snapshot that adds nothing to those after it, such as the empty one, costs nothing and stays with them.
    """
    counted = {id(part) for part in _parts(seen)}
    total, kept = 0, 0
    for snapshot in reversed(past):
        parts = {id(part): part for part in _parts(snapshot) if id(part) not in counted}
        added = sum(part.nbytes for part in parts.values())
        counted.update(parts)
        total += added
        if kept and added and total > max_bytes:
            break
        kept += 1
    return past[len(past) - kept :]


class LabelMap:
    """The labels of one scan, stored for the smallest box that holds all objects; the rest of the scan is 0.

    When an object changes, only its old and new boxes are redrawn.
    """

    def __init__(self, scan: Grid) -> None:
        self.scan = scan
        self._drawn: dict[int, Region] = {}
        self._box: Slices = NOWHERE
        self._labels = np.zeros((0, 0, 0), dtype=np.uint8)

    def draw(self, regions: Mapping[int, Region], box: Slices | None = None) -> NDArray[np.uint8]:
        """A new array (i, j, k) of labels in a box of the scan, by default all of it: 0, or the object's number.

        Where several objects share a voxel, the highest number counts. Voxels without an object are not touched, so
        that the memory of a large scan is neither filled nor copied.
        """
        self._move(hull(region.box for region in regions.values()))
        both = [(self._drawn.get(number, EMPTY), regions.get(number, EMPTY)) for number in {*self._drawn, *regions}]
        changed = [part for before, after in both if before is not after for part in (before.box, after.box)]
        for part in joined(part for part in changed if not is_empty(part)):
            self._redraw(intersection(part, self._box), regions)
        self._drawn = dict(regions)
        box = whole(self.scan) if box is None else box
        out = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        common = intersection(box, self._box)
        if not is_empty(common):
            out[within(common, box)] = self._labels[within(common, self._box)]
        return out

    def _move(self, box: Slices) -> None:
        """Store the labels for another box; what both boxes hold stays drawn."""
        if box == self._box:
            return
        labels = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        common = intersection(box, self._box)
        labels[within(common, box)] = self._labels[within(common, self._box)]
        self._box, self._labels = box, labels

    def _redraw(self, box: Slices, regions: Mapping[int, Region]) -> None:
        labels = self._labels[within(box, self._box)]
        labels[...] = 0
        for number, region in sorted(regions.items()):
            common = intersection(box, region.box)
            if not is_empty(common):
                labels[within(common, box)][region.within(common)] = number

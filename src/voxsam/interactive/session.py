"""Session: open a scan, click, correct, undo. A Predictor with a History, and all objects as one mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxsam.boxes import hull, is_empty, whole
from voxsam.errors import ImageError, PromptError
from voxsam.geometry import Grid
from voxsam.interactive.crops import ReportProgress
from voxsam.interactive.editing import Edit
from voxsam.interactive.history import History, LabelMap, SegmentedObject, Snapshot
from voxsam.interactive.predictor import Prediction, Predictor, keeps_clicked
from voxsam.io.segments import SegmentInfo, default_colour
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Slices
from voxsam.prompts import MaskHint, Point, Prompt
from voxsam.region import Region, overlapping
from voxsam.report.report import ReportedObject
from voxsam.resample import resample
from voxsam.volume import Volume

MAX_OBJECTS = 255  # labels in a uint8 mask

EditFunction = Callable[[ArrayLike, Grid], Edit]  # of voxsam.interactive.editing, with what was drawn bound to it


class Session:
    """Interactive segmentation of one scan with one model: any number of objects, with undo and redo.

    A model of several channels (MR sequences) takes a sequence of volumes of one patient, which may lie on different
    grids; the first is the one that is clicked. With `follow=False` a mask stays in one crop, as released. `progress`
    is called with a stage's name and the fraction done, 0 to 1. `undo_bytes` limits the memory of past steps, 256 MB by
    default. `spacing_mm` is the spacing at which a general model looks; None: the lesion chooses it. Raises
    GeometryError or PromptError for prompts that cannot be used, UnsupportedError for what the model cannot do; the
    session is then unchanged. Raises InputError for a spacing that the model does not support.

    An object keeps its voxels: later clicks on others do not take them, unless the object is unlocked (`lock`); with
    `overlap`, objects may share voxels. With `keep_clicked`, masks are only the components that hold a positive click;
    None: for models that take negative clicks, which the released ones do not.
    """

    def __init__(
        self,
        model: Promptable,
        volume: Volume | Sequence[Volume],
        *,
        follow: bool = True,
        progress: ReportProgress | None = None,
        undo_bytes: int | None = None,
        spacing_mm: float | None = None,
        overlap: bool = False,
        keep_clicked: bool | None = None,
    ) -> None:
        self.predictor = Predictor(model, follow=follow, progress=progress, spacing_mm=spacing_mm).set_image(volume)
        self.volume = self.predictor.volume
        self._empty = SegmentedObject(Prediction(self.volume.grid, self.volume.header))
        keep = keeps_clicked(model) if keep_clicked is None else keep_clicked
        self._history = History(Snapshot(MappingProxyType({1: self._empty}), 1, overlap, keep), undo_bytes)
        self._labels = LabelMap(self.volume.grid)
        self.infos: dict[int, SegmentInfo] = {}  # by number, including objects that undo may bring back

    @property
    def model(self) -> Promptable:
        """The network."""
        return self.predictor.model

    @property
    def model_grid(self) -> Grid:
        """The scan's grid as the model sees it: its axes and spacing."""
        return self.predictor.model_grid()

    # What a user does

    def click(self, index: Sequence[float], positive: bool = True) -> Volume:
        """Click voxel (i, j, k) of the scan; `positive=False`: this is not the tumour. Returns the mask."""
        return self.prompt(Point.at_index(self.volume.grid, index, positive))

    def prompt(self, *prompts: Prompt) -> Volume:
        """Add prompts to the current object, all in one step of undo. Returns the mask.

        If the object was painted or loaded, and has no prompts yet, its mask is added as a hint.
        """
        if not prompts:
            raise PromptError("no prompt", "a click, box, scribble or mask hint", "give at least one")
        seen, before = self._history.seen, self.prediction
        if not before.prompts and seen.object.region:
            prompts = (MaskHint(seen.object.region.on(self.volume.grid)), *prompts)
        found = self.predictor.predict((*before.prompts, *prompts), before)
        changed = seen.object.prompted(found, seen.keep_clicked, found.clicks[len(before.clicks) :])
        self._history.enter(seen.with_object(changed))
        return self.mask

    def remove_prompt(self, number: int, index: int) -> Volume:
        """Remove one of an object's prompts, counted from 0, and predict without it; one step. Returns the mask.

        Raises PromptError if there is no such prompt, or if only negative clicks would be left.
        """
        seen, changed = self._history.seen, self._object(number)
        before = changed.prediction
        if not 0 <= index < len(before.prompts):
            given, expected = f"prompt {index} of object {number}", f"one of its {len(before.prompts)}, from 0 on"
            raise PromptError(given, expected, "choose one of them")
        left = (*before.prompts[:index], *before.prompts[index + 1 :])
        start = replace(before, pieces=())  # its crops stay; its mask still includes the prompt to be removed
        found = self.predictor.predict(left, start) if left else self._empty.prediction
        self._history.enter(seen.with_object(changed.prompted(found, seen.keep_clicked), number))
        return self.mask

    def edit(self, *edits: EditFunction) -> Volume:
        """Edit the current object by hand, all in one step of undo. Returns the mask.

        Each edit is a function of voxsam.interactive.editing with what was drawn bound to it, such as
        `partial(brush, stroke=[(60, 40, 22)], radius_mm=5)`. No step if nothing changes. Raises PromptError for what
        cannot be drawn.
        """
        seen, grid = self._history.seen, self.volume.grid
        mask, box = np.zeros(grid.shape, dtype=bool), seen.object.region.box
        mask[box] = seen.object.region.inside
        for edit in edits:
            done = edit(mask, grid)
            mask[done.box] = done.after
            box = hull((box, done.box))
        return self._become(Region.of(mask[box], [part.start for part in box]))

    def load_mask(self, labels: Volume, names: Sequence[str] = ()) -> Volume:
        """Replace the current object by a mask; one step. Returns the session's mask.

        If the mask has several labels, the first becomes the current object, and each of the others a new one. A mask
        on another grid is resampled. `names` are those of the labels present, in ascending order. Raises ImageError for
        a mask without voxels on the scan.
        """
        array = labels.array
        if not labels.grid.close_to(self.volume.grid):
            array = resample(labels, self.volume.grid, "nearest")
        values = [value for value in np.unique(array) if value]
        return self.load_regions([Region.of(array == value) for value in values], names, labels.remarks)

    def load_regions(self, regions: Sequence[Region], names: Sequence[str] = (), remarks: Sequence[str] = ()) -> Volume:
        """Like `load_mask`, with the voxels of each object given; they may overlap if the session allows it.

        Raises ImageError for no regions, or for one without voxels.
        """
        if not regions or not all(regions):
            raise ImageError("a mask without voxels on the scan", "a mask of this scan", "check the file")
        seen, numbers = self._history.seen, [self.current, *self._free(len(regions) - 1)]
        empty = replace(self._empty, prediction=replace(self._empty.prediction, notes=tuple(remarks)))
        for number, region in zip(numbers, regions, strict=True):
            locked = seen.objects[number].locked if number in seen.objects else True
            seen = seen.with_object(replace(empty, added=region, locked=locked), number)
        self._history.enter(replace(seen, current=self.current))
        for number, name in zip(numbers, names, strict=False):
            if name:
                self.infos[number] = replace(self.info(number), name=name)
        return self.mask

    def undo(self) -> Volume:
        """Undo the last step, of whichever object; the object that was current before it becomes current again.

        Does nothing if there is no step; naming or colouring an object is not one. Up to 100 steps are kept, fewer if
        they take more than `undo_bytes`. Returns the mask.
        """
        self._history.undo()
        return self.mask

    def redo(self) -> Volume:
        """Redo the step that was undone last. Returns the mask."""
        self._history.redo()
        return self.mask

    def reset(self) -> Volume:
        """Start again with one empty object; can be undone. Encoded crops are kept. Returns the (empty) mask.

        `overlap` and `keep_clicked` stay as they are. No step if nothing was done yet.
        """
        begin, seen = self._history.begin, self._history.seen
        if seen.objects is not begin.objects:
            same = (seen.overlap, seen.keep_clicked) == (begin.overlap, begin.keep_clicked)
            anew = replace(begin, overlap=seen.overlap, keep_clicked=seen.keep_clicked)
            self._history.enter(begin if same else anew)
        return self.mask

    def new_object(self) -> int:
        """Start another object and make it current; returns its number, which is its label in the mask.

        Raises PromptError if no labels are left.
        """
        (number,) = self._free(1)
        self.infos.pop(number, None)
        self._history.enter(self._history.seen.with_object(self._empty, number))
        return number

    def delete(self, number: int) -> Volume:
        """Remove an object; one step. If it was current, the one before it becomes current. Returns the mask.

        Raises PromptError if there is no object of that number.
        """
        self._object(number)
        self._history.enter(self._history.seen.without(number, self._empty))
        return self.mask

    def lock(self, number: int, locked: bool = True) -> None:
        """Set whether an object keeps its voxels when another one is drawn there; one step.

        Raises PromptError if there is no object of that number.
        """
        changed = replace(self._object(number), locked=locked)
        if changed.locked != self._object(number).locked:
            objects = MappingProxyType({**self._history.seen.objects, number: changed})
            self._history.enter(replace(self._history.seen, objects=objects))

    def allow_overlap(self, overlap: bool) -> None:
        """Set whether objects may share voxels from now on; one step. Voxels already shared stay shared."""
        if overlap != self.overlap:
            self._history.enter(replace(self._history.seen, overlap=overlap))

    def set_keep_clicked(self, keep_clicked: bool) -> Volume:
        """Set whether masks are only the clicked components; one step, which redraws every object. Returns the mask."""
        if keep_clicked != self.keep_clicked:
            seen = replace(self._history.seen, keep_clicked=keep_clicked)
            for number, found in seen.objects.items():
                seen = seen.with_object(found.prompted(found.prediction, keep_clicked), number)
            self._history.enter(replace(seen, current=self.current))
        return self.mask

    def describe(self, number: int, info: SegmentInfo) -> None:
        """Change an object's name, colour or type; no step. Raises PromptError if there is no object of that number."""
        self._object(number)
        self.infos[number] = info

    def forget_features(self) -> None:
        """Free the memory of the encoded crops; masks stay, and crops are encoded again when needed."""
        self.predictor.forget_features()

    def select(self, number: int) -> None:
        """Make an object current; no step. Raises PromptError if there is no object of that number."""
        self._object(number)
        self._history.select(number)

    def _object(self, number: int) -> SegmentedObject:
        if number not in self.objects:
            raise PromptError(f"object {number}", f"one of {list(self.objects)}", "begin it with new_object()")
        return self._history.seen.objects[number]

    def _free(self, count: int) -> range:
        """The numbers of `count` new objects."""
        first = max(self.objects) + 1
        if first + count - 1 > MAX_OBJECTS:
            given = f"object {max(first, MAX_OBJECTS + 1)}"
            raise PromptError(given, f"at most {MAX_OBJECTS} objects", "save the mask and begin anew")
        return range(first, first + count)

    def _become(self, region: Region) -> Volume:
        """Give the current object these voxels, as drawn by hand."""
        seen = self._history.seen
        changed = seen.with_object(seen.object.edited_to(region))
        if not is_empty(changed.object.region.differs(seen.object.region)):
            self._history.enter(changed)
        return self.mask

    # What a user sees

    @property
    def step(self) -> Snapshot:
        """The current snapshot; a different one after every step, undo, redo and `select`."""
        return self._history.seen

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects."""
        return tuple(self._history.seen.objects)

    @property
    def segmented(self) -> Mapping[int, SegmentedObject]:
        """Every object by its number: its voxels, and where they come from."""
        return self._history.seen.objects

    def info(self, number: int) -> SegmentInfo:
        """Name, colour and type of an object."""
        return self.infos.get(number) or SegmentInfo(f"Tumour {number}", default_colour(number))

    @property
    def overlap(self) -> bool:
        """Whether objects may share voxels."""
        return self._history.seen.overlap

    @property
    def keep_clicked(self) -> bool:
        """Whether masks are only the clicked components."""
        return self._history.seen.keep_clicked

    @property
    def current(self) -> int:
        """The number of the object that prompts go to."""
        return self._history.seen.current

    @property
    def prediction(self) -> Prediction:
        """The network's prediction for the current object: probabilities, confidence, and what they were made from."""
        return self._history.seen.object.prediction

    @property
    def predictions(self) -> Mapping[int, Prediction]:
        """The network's prediction for every object, by its number."""
        return {number: found.prediction for number, found in self._history.seen.objects.items()}

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return self._history.can_redo

    @property
    def features_bytes(self) -> int:
        """Bytes that the encoded crops in memory take."""
        return self.predictor.encoded.nbytes

    @property
    def predictions_bytes(self) -> int:
        """Bytes that the probabilities and masks of all objects take, those of steps to undo or redo included.

        A standardised copy of the scan counts too, if the model sees one.
        """
        return self._history.nbytes + self.predictor.standardised_bytes

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The current object's prompts so far."""
        return self.prediction.prompts

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know about the current object's mask, one line each."""
        return self._history.seen.object.remarks

    @property
    def crops(self) -> int:
        """Number of crops that the current object's mask was made from."""
        return self.prediction.crops

    @property
    def changed(self) -> Slices:
        """The box of the voxels that the last step added to an object or took from one; empty if there are none."""
        return self._history.changed

    @property
    def extent(self) -> Slices:
        """The box of the scan outside which the mask is 0; empty if the mask is."""
        return hull(found.region.box for found in self.segmented.values())

    @property
    def mask(self) -> Volume:
        """uint8 labels on the scan's grid: 0, or the object's number; the highest where several share a voxel.

        A new array each time, which no later step changes.
        """
        labels = self.labels_in(whole(self.volume.grid))
        remarks = dict.fromkeys(remark for found in self.segmented.values() for remark in found.remarks)
        return Volume(labels, self.volume.grid, "SEG", self.volume.header, tuple(remarks))

    def labels_in(self, box: Slices) -> NDArray[np.uint8]:
        """The mask's labels in a box (i, j, k) of the scan, as a new array of that box alone."""
        return self._labels.draw({number: found.region for number, found in self.segmented.items()}, box)

    def mask_of(self, number: int) -> Volume:
        """uint8 0/1 on the scan's grid: all voxels of one object. Raises PromptError if there is no such object."""
        found = self._object(number)
        return replace(found.region.on_all(self.volume), remarks=found.remarks)

    @property
    def has_overlaps(self) -> bool:
        """Whether objects share voxels, so that no label map can hold them all."""
        return overlapping(found.region for found in self.segmented.values())

    @property
    def probabilities(self) -> Volume:
        """float32 0..1 on the scan's grid: the current object's probability of being tumour."""
        return self.prediction.probabilities

    def show(
        self,
        *,
        centre: Sequence[float] | None = None,
        window: tuple[float, float] | Literal["auto"] = "auto",
        interactive: bool = False,
    ) -> Any:
        """A figure for the last line of a notebook cell: three planes with the mask and every object's clicks.

        The planes go through the first click in the mask, or through `centre`, an index (i, j, k). `window` is level
        and width. `interactive` gives a NiiVue viewer instead; raises UnsupportedError if that is not installed.
        """
        from voxsam.report import figures  # matplotlib: a second to import

        if interactive:
            return figures.viewer(self.volume, self.mask, window)
        clicks = [click for found in self.predictions.values() for click in found.clicks]
        places = [(click.index_on(self.volume.grid), click.positive) for click in clicks]
        return figures.picture(self.volume, self.mask, places, centre=centre, window=window)


def reported(session: Session) -> list[ReportedObject]:
    """What a report states about every object of a session."""
    grid, objects = session.volume.grid, []
    for number, found in session.segmented.items():
        clicks = [(click.index_on(grid), click.positive) for click in found.prediction.clicks]
        sure = found.confidence and found.confidence.facts
        facts = (session.info(number), clicks, found.edited, sure, found.prediction.class_name)
        objects.append(ReportedObject(number, found.region, *facts))
    return objects

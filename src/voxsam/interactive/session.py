"""Session: a scan is opened, clicked, corrected, undone: a Predictor and a History, and all objects as one mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from voxsam.boxes import hull
from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive.crops import ReportProgress
from voxsam.interactive.history import History, LabelMap
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Slices
from voxsam.prompts import Point, Prompt
from voxsam.volume import Volume

MAX_OBJECTS = 255  # labels in a uint8 mask


class Session:
    """One scan, one model, any number of objects.

    A model of several channels (MR sequences) takes a sequence of volumes of one patient, which may lie on different
    grids; the first is the scan that is clicked. `follow=False` keeps to one crop, as released. `progress` is called
    with a stage's name and the fraction done, 0 to 1. `undo_bytes` is what past steps may take, 256 MB unless
    given. `spacing_mm` is the voxel size that a model for many sizes looks with; None: the lesion chooses it. Raises
    GeometryError or PromptError for prompts that cannot be used, UnsupportedError for what the model cannot do; the
    session is then as it was before. InputError for a spacing that the model cannot look with.
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
    ) -> None:
        self.predictor = Predictor(model, follow=follow, progress=progress, spacing_mm=spacing_mm).set_image(volume)
        self.volume = self.predictor.volume
        self._history = History(Prediction(self.volume.grid, self.volume.header), undo_bytes)
        self._labels = LabelMap(self.volume.grid)

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
        """Add prompts to the current object, all at once: one step of undo. Returns the mask."""
        if not prompts:
            raise PromptError("no prompt", "a click, box, scribble or mask hint", "give at least one")
        seen = self._history.seen
        before = seen.prediction
        found = self.predictor.predict((*before.prompts, *prompts), before)
        self._history.enter(seen.with_prediction(found))
        return self.mask

    def undo(self) -> Volume:
        """Take back the last step of any object, not only of the current one; the object of that time is current again.

        Nothing happens when there is no step. Up to 100 steps are kept, fewer if they take more than `undo_bytes`.
        Returns the mask.
        """
        self._history.undo()
        return self.mask

    def redo(self) -> Volume:
        """Do again what undo took back. Returns the mask."""
        self._history.redo()
        return self.mask

    def reset(self) -> Volume:
        """Begin anew with one empty object; can be undone. Encoded crops are kept. Returns the (empty) mask."""
        self._history.enter(self._history.begin)
        return self.mask

    def new_object(self) -> int:
        """Begin another object and make it current; returns its number, which is its label in the mask.

        Raises PromptError if a mask has no labels left.
        """
        number = max(self.objects) + 1
        if number > MAX_OBJECTS:
            raise PromptError(f"object {number}", f"at most {MAX_OBJECTS} objects", "save the mask and begin anew")
        empty = Prediction(self.volume.grid, self.volume.header)
        self._history.enter(self._history.seen.with_prediction(empty, number))
        return number

    def forget_features(self) -> None:
        """Free the encoded crops, to save memory; masks stay, and what is needed again is encoded again."""
        self.predictor.forget_features()

    def select(self, number: int) -> None:
        """Make an object current again. Raises PromptError if there is none of that number."""
        if number not in self.objects:
            raise PromptError(f"object {number}", f"one of {list(self.objects)}", "begin it with new_object()")
        self._history.select(number)

    # What a user sees

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects."""
        return tuple(self._history.seen.predictions)

    @property
    def current(self) -> int:
        """The number of the object that prompts go to."""
        return self._history.seen.current

    @property
    def prediction(self) -> Prediction:
        """The current object: its mask, probabilities, remarks and confidence, apart from all other objects."""
        return self._history.seen.prediction

    @property
    def predictions(self) -> Mapping[int, Prediction]:
        """What is known of every object, by its number."""
        return self._history.seen.predictions

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return self._history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a step that undo took back."""
        return self._history.can_redo

    @property
    def features_bytes(self) -> int:
        """Memory of the encoded crops that are kept."""
        return self.predictor.encoded.nbytes

    @property
    def predictions_bytes(self) -> int:
        """Memory of the probabilities of all predictions, those of steps back and forth included."""
        return self._history.nbytes

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The current object's prompts so far."""
        return self.prediction.prompts

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of the current object's mask, one line each."""
        return self.prediction.remarks

    @property
    def crops(self) -> int:
        """How many crops the current object's mask was made from."""
        return self.prediction.crops

    @property
    def changed(self) -> Slices:
        """The box of the mask that the last step (prompt, undo, redo, reset) may have changed; outside it nothing did.

        It holds where the changed objects were before and are now, and is empty if there is no such object.
        """
        return self._history.changed

    @property
    def extent(self) -> Slices:
        """The box of the scan outside which the mask is 0; empty without a prediction."""
        return hull(box for found in self.predictions.values() for box in found.reach)

    @property
    def mask(self) -> Volume:
        """uint8 on the scan's grid: 0, and each object's number where its probability is above 0.5 and the highest.

        A new array each time: no later step changes it.
        """
        labels = self._labels.draw(self.predictions)
        remarks = dict.fromkeys(remark for found in self.predictions.values() for remark in found.remarks)
        return Volume(labels, self.volume.grid, "SEG", self.volume.header, tuple(remarks))

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
        """What a notebook shows as the last line of a cell: three planes with the mask and every object's clicks.

        They go through the first click in the mask, or through `centre`, an index (i, j, k). `window`: level and width.
        With `interactive` it is NiiVue's viewer, to scroll and to turn. Raises UnsupportedError if it is not installed.
        """
        from voxsam.report import figures  # matplotlib: a second to import

        if interactive:
            return figures.viewer(self.volume, self.mask, window)
        clicks = [click for found in self.predictions.values() for click in found.clicks]
        places = [(click.index_on(self.volume.grid), click.positive) for click in clicks]
        return figures.picture(self.volume, self.mask, places, centre=centre, window=window)

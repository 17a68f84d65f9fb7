"""Session: a scan is opened, clicked, corrected, undone; a mask on the scan's own grid comes out.

The story of the program: the prompts choose crops of the scan, each crop is encoded once, the prompts are sampled
where they lie, every crop is decoded with all of them, a tumour that reaches the border of its crop is followed into
further crops, and the answer is put back on the scan. Beside it stand what is kept of it: encoded (the crops),
history (the answers and the steps), label_map (the mask).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.boxes import hull
from voxsam.errors import PromptError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.crops import THRESHOLD, Piece, choose_windows, connected, cut, is_new, merge, next_windows
from voxsam.interactive.encoded import EncodedCrops, Progress
from voxsam.interactive.history import Answer, History, State
from voxsam.interactive.label_map import LabelMap
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Slices, Window, images_of
from voxsam.prompts import Box, Point, Prompt, common_box
from voxsam.volume import Volume

MAX_CROPS = 12  # that one tumour is followed into
MAX_OBJECTS = 255  # labels in a uint8 mask


class Session:
    """One scan, one model, any number of objects.

    A model of several channels (MR sequences) takes a sequence of volumes of one patient, which may lie on different
    grids; the first is the scan that is clicked. `follow=False` keeps to one crop, as released. `progress` is called
    with a stage's name and a share from 0 to 1. `undo_bytes` is what the answers of past steps may take, 256 MB unless
    given. Raises GeometryError or PromptError for prompts that cannot be used, UnsupportedError for what the model
    cannot do; the session is then as it was before.
    """

    def __init__(
        self,
        model: Promptable,
        volume: Volume | Sequence[Volume],
        *,
        follow: bool = True,
        progress: Progress | None = None,
        undo_bytes: int | None = None,
    ) -> None:
        images = images_of(volume, model.card.preprocessing, model.card.name)
        self.model, self.volume, self.follow = model, images[0], follow
        self._encoded = EncodedCrops(model, images, progress or (lambda stage, fraction: None))
        self._history = History(self.volume.grid, undo_bytes)
        self._labels = LabelMap(self.volume.grid)

    @cached_property
    def model_grid(self) -> Grid:
        """The scan's grid as the model sees it: its axes and spacing."""
        return self.model.card.preprocessing.model_grid(self.volume.grid)

    @property
    def _follows(self) -> bool:
        """Whether a mask is continued in crops without a click: a model that cannot see the clicks would guess."""
        return self.follow and self.model.far_clicks

    # What a user does

    def click(self, index: Sequence[float], positive: bool = True) -> Volume:
        """Click voxel (i, j, k) of the scan; `positive=False`: this is not the tumour. Returns the mask."""
        return self.prompt(Point.at_index(self.volume.grid, index, positive))

    def prompt(self, *prompts: Prompt) -> Volume:
        """Add prompts to the current object, all at once: one step of undo. Returns the mask."""
        state = self._history.state
        self._history.enter(state.with_answer(self._answer(state.answer, prompts)))
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
        self._history.enter(State())
        return self.mask

    def new_object(self) -> int:
        """Begin another object and make it current; returns its number, which is its label in the mask.

        Raises PromptError if a mask has no labels left.
        """
        number = max(self.objects) + 1
        if number > MAX_OBJECTS:
            raise PromptError(f"object {number}", f"at most {MAX_OBJECTS} objects", "save the mask and begin anew")
        self._history.enter(self._history.state.with_answer(Answer(), number))
        return number

    def forget_features(self) -> None:
        """Free the encoded crops, to save memory; answers stay, and what is needed again is encoded again."""
        self._encoded.forget()

    def select(self, number: int) -> None:
        """Make an object current again. Raises PromptError if there is none of that number."""
        if number not in self.objects:
            raise PromptError(f"object {number}", f"one of {list(self.objects)}", "begin it with new_object()")
        self._history.select(number)

    # What a user sees

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects."""
        return tuple(self._history.state.answers)

    @property
    def current(self) -> int:
        """The number of the object that prompts go to."""
        return self._history.state.current

    @property
    def answers(self) -> Mapping[int, Answer]:
        """What is known of every object, by its number: its prompts, their clicks, its messages."""
        return self._history.state.answers

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
        return self._encoded.nbytes

    @property
    def answers_bytes(self) -> int:
        """Memory of the probabilities of all answers, those of steps back and forth included."""
        return self._history.nbytes

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The current object's prompts so far."""
        return self._history.state.answer.prompts

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know of the current object's mask, one line each."""
        return self._history.state.answer.messages

    @property
    def crops(self) -> int:
        """How many crops the current object's mask was made from."""
        return self._history.state.answer.crops

    @property
    def changed(self) -> Slices:
        """The box of the mask that the last step (prompt, undo, redo, reset) may have changed; outside it nothing did.

        It holds where the changed objects were before and are now, and is empty if there is no such object.
        """
        return self._history.changed

    @property
    def extent(self) -> Slices:
        """The box of the scan outside which the mask is 0; empty without an answer."""
        return hull(answer.reach(self.volume.grid) for answer in self.answers.values())

    @property
    def mask(self) -> Volume:
        """uint8 on the scan's grid: 0, and each object's number where its probability is above 0.5 and the highest.

        A new array each time: no later step changes it.
        """
        labels = self._labels.draw(self._history.state.answers)
        return Volume(labels, self.volume.grid, "SEG", self.volume.header)

    @property
    def probabilities(self) -> Volume:
        """float32 0..1 on the scan's grid: the current object's probability of being tumour."""
        out = np.zeros(self.volume.grid.shape, dtype=np.float32)
        box, values = self._history.state.answer.probabilities(self.volume.grid)
        out[box] = values
        return Volume(out, self.volume.grid, "", self.volume.header)

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
        from voxsam.report import notebook  # matplotlib: a second to import

        if interactive:
            return notebook.viewer(self.volume, self.mask, window)
        clicks = [click for answer in self._history.state.answers.values() for click in answer.clicks]
        places = [(self.volume.grid.world_to_index(click.world_mm).tolist(), click.positive) for click in clicks]
        return notebook.picture(self.volume, self.mask, places, centre=centre, window=window)

    # How an answer is made

    def _answer(self, before: Answer, new: Sequence[Prompt]) -> Answer:
        if not new:
            raise PromptError("no prompt", "a click, box, scribble or mask hint", "give at least one")
        for prompt in new:
            if not isinstance(prompt, Prompt):
                given, remedy = f"a prompt of type {type(prompt).__name__}", "use session.click((i, j, k)) for a voxel"
                raise PromptError(given, "a Point, Box, Scribble or MaskHint", remedy)
        prompts = (*before.prompts, *new)
        clicks = (*before.clicks, *(point for prompt in new for point in prompt.points(self.volume.grid)))
        self._check(clicks)
        at = self.model_grid.world_to_index([click.world_mm for click in clicks])
        side = self.model.config.crop
        windows = choose_windows(self.model_grid, at, side, before.windows)
        if len(windows) > 1 and not self.follow:
            span = (np.ptp(at, axis=0) * self.model_grid.spacing_mm).max()
            raise PromptError(
                f"clicks {span:.0f} mm apart with one crop of {side} voxels",
                "clicks that fit well inside one crop",
                "leave out --no-follow (follow=False), or segment them one by one",
            )
        with torch.inference_mode():
            piece, crops, complete = self._segment(windows, at, [click.positive for click in clicks])
        box = common_box(prompts, clicks, self.volume.grid)
        messages = self._messages(len(windows), crops, complete)
        if box is None and any(isinstance(prompt, Box) for prompt in prompts):
            messages = (*messages, "a click in the tumour lies outside the box: the box does not limit the mask")
        return Answer(prompts, clicks, tuple(windows), piece, box, messages, crops)

    def _check(self, clicks: Sequence[Point]) -> None:
        if self.model.card.automatic:
            raise UnsupportedError(
                f"a prompt for the model {self.model.card.name}",
                "no prompt: this model was trained for automatic segmentation",
                "use --auto (voxsam.interactive.automatic), or a model that takes clicks",
            )
        if not any(click.positive for click in clicks):
            raise PromptError("negative clicks only", "at least one click in the tumour", "click the tumour first")
        if not self.model.config.polarity and not all(click.positive for click in clicks):
            raise UnsupportedError(
                f"a negative click for the model {self.model.card.name}",
                "positive clicks: this model was trained without polarity",
                "leave it out, or use a model that lists negative clicks in `voxsam info`",
            )

    def _segment(
        self, windows: Sequence[Window], at: NDArray[np.float64], positive: Sequence[bool]
    ) -> tuple[Piece, int, bool]:
        """Decode every window with all clicks' looks; then go on where the mask reaches a border.

        Returns the answer, how many crops it was made from, and whether it ends inside them.
        """
        prompt_features, labels = self._look(windows, at, positive)
        pieces = [(window, self._encoded.decode(window, at, prompt_features, labels)) for window in windows]
        merged = merge(pieces)
        waiting = [w for piece in pieces for w in next_windows(piece, piece[1] > THRESHOLD)]
        while waiting := [w for w in waiting if is_new(w, [window for window, _ in pieces])]:
            if not self._follows or len(pieces) >= MAX_CROPS:
                return merged, len(pieces), False
            window = waiting.pop(0)
            piece = (window, connected((window, self._encoded.decode(window, at, prompt_features, labels)), merged))
            pieces.append(piece)
            merged = merge(pieces)
            waiting += next_windows(piece, cut(merged, window) > THRESHOLD)
        return merged, len(pieces), True

    def _look(
        self, windows: Sequence[Window], at: NDArray[np.float64], positive: Sequence[bool]
    ) -> tuple[Tensor, Tensor | None]:
        """(1, N, C) what each click looks like, sampled in the window that holds it best; (1, N) labels or None."""
        middles = np.array([np.add(w.start, np.array(w.shape) / 2 - 0.5) for w in windows])
        home = np.abs(at[:, None] - middles[None]).max(-1).argmin(1)
        prompt_features = torch.cat(
            [self._encoded.look(windows[n], point) for n, point in zip(home, at, strict=True)], 1
        )
        if not self.model.config.polarity:
            return prompt_features, None
        return prompt_features, torch.tensor([positive], dtype=torch.long, device=prompt_features.device)

    def _messages(self, chosen: int, used: int, complete: bool) -> tuple[str, ...]:
        messages = []
        seen, known = self.volume.modality, self.model.card.preprocessing.modality
        if seen and known and seen != known:
            messages.append(f"the scan is {seen}, the model was trained on {known}: look at the mask with care")
        if chosen > 1:
            messages.append(f"the clicks lie farther apart than one crop: {chosen} crops were used")
        if used > chosen:
            crops = "one further crop" if used - chosen == 1 else f"{used - chosen} further crops"
            messages.append(f"the mask reached the border of its crop and was followed into {crops}")
        if not complete and self._follows:
            messages.append(f"the mask was not followed beyond {used} crops and may be incomplete")
        elif not complete:
            messages.append("the mask reaches the border of its crop and was not followed beyond it")
        return tuple(messages)

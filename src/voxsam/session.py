"""Session: a scan is opened, clicked, corrected, undone; a mask on the scan's own grid comes out.

The story of the program: the prompts choose crops of the scan, each crop is encoded once, the prompts are sampled
where they lie, every crop is decoded with all of them, a tumour that reaches the border of its crop is followed into
further crops, and the answer is put back on the scan.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.crops import THRESHOLD, Piece, choose_windows, connected, cut, is_new, merge, next_windows
from voxsam.errors import PromptError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.model.promptable import Features, Promptable
from voxsam.preprocess import Slices, Window, paste, read_crop
from voxsam.prompts import Box, Point, Prompt
from voxsam.volume import Volume

KEPT_BYTES = 1 << 30  # of encoded crops; beyond it the least recently used goes first, but the last one always stays
MOST_CROPS = 12  # that one tumour is followed into
MOST_OBJECTS = 255  # labels in a uint8 mask
UNDO_STEPS = 100

Progress = Callable[[str, float], None]
Pasted = tuple[Slices, NDArray[np.float32]]
NOWHERE: Pasted = ((slice(0, 0), slice(0, 0), slice(0, 0)), np.zeros((0, 0, 0), dtype=np.float32))


@dataclass(frozen=True)
class Encoded:
    """What is kept of an encoded crop: the deepest features, and the part of decoding that no click changes."""

    features: Features
    static: Tensor
    crop: Tensor  # (1, 1, D, H, W)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (*self.features, self.static, self.crop))


@dataclass(frozen=True, eq=False)
class Answer:
    """One object: what was prompted, the crops that were chosen for it, and the probabilities on the lattice."""

    prompts: tuple[Prompt, ...] = ()
    clicks: tuple[Point, ...] = ()  # that the prompts became
    windows: tuple[Window, ...] = ()
    piece: Piece | None = None
    box: Slices | None = None  # of the scan, beyond which the mask must not go
    messages: tuple[str, ...] = ()
    crops: int = 0

    def on_scan(self, scan: Grid) -> Pasted:
        """The box of the scan that the answer reaches, and the probabilities in it; computed when first asked for."""
        if self.piece is None:
            return NOWHERE
        if "pasted" not in self.__dict__:
            window, probability = self.piece
            reached, values = paste(probability, window, scan)
            if self.box is not None:
                values = _limit(values, reached, self.box)
            self.__dict__["pasted"] = (reached, values)
        return self.__dict__["pasted"]

    def forget_pasted(self) -> None:
        """Free what `on_scan` keeps; it is computed again when asked for."""
        self.__dict__.pop("pasted", None)


@dataclass(frozen=True)
class State:
    """Everything that undo gives back: the answers by object number, and which object is current."""

    answers: Mapping[int, Answer] = field(default_factory=lambda: MappingProxyType({1: Answer()}))
    current: int = 1

    def with_answer(self, answer: Answer) -> State:
        """The state after the current object got a new answer."""
        return replace(self, answers=MappingProxyType({**self.answers, self.current: answer}))


class Session:
    """One scan, one model, any number of objects.

    `follow=False` keeps to one crop, as released. `progress` is called with a stage's name and a share from 0 to 1.
    Raises GeometryError or PromptError for prompts that cannot be used, UnsupportedError for what the model cannot do;
    the session is then as it was before.
    """

    def __init__(
        self, model: Promptable, volume: Volume, *, follow: bool = True, progress: Progress | None = None
    ) -> None:
        self.model, self.volume, self.follow = model, volume, follow
        self._progress = progress or (lambda stage, share: None)
        self._encoded: OrderedDict[tuple[int, int, int], Encoded] = OrderedDict()
        self._state, self._past, self._future = State(), list[State](), list[State]()

    @cached_property
    def lattice(self) -> Grid:
        """The scan's grid as the model sees it: its axes and spacing."""
        return self.model.card.preprocessing.lattice(self.volume.grid)

    # What a user does

    def click(self, index: Sequence[float], positive: bool = True) -> Volume:
        """Click voxel (i, j, k) of the scan; `positive=False`: this is not the tumour. Returns the mask."""
        return self.prompt(Point.at_index(self.volume.grid, index, positive))

    def prompt(self, *prompts: Prompt) -> Volume:
        """Add prompts to the current object, all at once: one step of undo. Returns the mask."""
        answer = self._answer(self._state.answers[self._state.current], prompts)
        self._enter(self._state.with_answer(answer))
        return self.mask

    def undo(self) -> Volume:
        """Take the last step back; nothing happens when there is none. Returns the mask."""
        if self._past:
            self._future.append(self._state)
            self._show(self._past.pop())
        return self.mask

    def redo(self) -> Volume:
        """Do again what undo took back. Returns the mask."""
        if self._future:
            self._past.append(self._state)
            self._show(self._future.pop())
        return self.mask

    def reset(self) -> Volume:
        """Begin anew with one empty object; can be undone. Encoded crops are kept. Returns the (empty) mask."""
        self._enter(State())
        return self.mask

    def new_object(self) -> int:
        """Begin another object and make it current; returns its number, which is its label in the mask.

        Raises PromptError if a mask has no labels left.
        """
        number = max(self._state.answers) + 1
        if number > MOST_OBJECTS:
            raise PromptError(f"object {number}", f"at most {MOST_OBJECTS} objects", "save the mask and begin anew")
        answers = MappingProxyType({**self._state.answers, number: Answer()})
        self._enter(State(answers, number))
        return number

    def select(self, number: int) -> None:
        """Make an object current again. Raises PromptError if there is none of that number."""
        if number not in self._state.answers:
            raise PromptError(f"object {number}", f"one of {list(self._state.answers)}", "begin it with new_object()")
        self._state = replace(self._state, current=number)

    # What a user sees

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects."""
        return tuple(self._state.answers)

    @property
    def current(self) -> int:
        """The number of the object that prompts go to."""
        return self._state.current

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The current object's prompts so far."""
        return self._state.answers[self.current].prompts

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know of the current object's mask, one line each."""
        return self._state.answers[self.current].messages

    @property
    def crops(self) -> int:
        """How many crops the current object's mask was made from."""
        return self._state.answers[self.current].crops

    @property
    def mask(self) -> Volume:
        """uint8 on the scan's grid: 0, and each object's number where its probability is above 0.5 and the highest."""
        labels = np.zeros(self.volume.grid.shape, dtype=np.uint8)
        drawn: list[Pasted] = []
        for number, answer in self._state.answers.items():
            box, probability = answer.on_scan(self.volume.grid)
            inside = probability > THRESHOLD
            for other, values in drawn:
                here, there = _overlap(box, other)
                inside[here] &= probability[here] > values[there]
            labels[box][inside] = number
            drawn.append((box, probability))
        return Volume(labels, self.volume.grid, "SEG", self.volume.header)

    @property
    def probabilities(self) -> Volume:
        """float32 0..1 on the scan's grid: the current object's probability of being tumour."""
        out = np.zeros(self.volume.grid.shape, dtype=np.float32)
        box, values = self._state.answers[self.current].on_scan(self.volume.grid)
        out[box] = values
        return Volume(out, self.volume.grid, "", self.volume.header)

    # How an answer is made

    def _enter(self, state: State) -> None:
        self._past = [*self._past, self._state][-UNDO_STEPS:]
        self._future.clear()
        self._show(state)

    def _show(self, state: State) -> None:
        """Make a state the one that is seen; answers that are seen no more keep only what they need to come back."""
        for number, answer in self._state.answers.items():
            if state.answers.get(number) is not answer:
                answer.forget_pasted()
        self._state = state

    def _answer(self, before: Answer, new: Sequence[Prompt]) -> Answer:
        if not new:
            raise PromptError("no prompt", "a click, box, scribble or mask hint", "give at least one")
        prompts = (*before.prompts, *new)
        clicks = (*before.clicks, *(point for prompt in new for point in prompt.points(self.volume.grid)))
        self._check(clicks)
        at = self.lattice.world_to_index([click.world_mm for click in clicks])
        side = self.model.config.crop
        windows = choose_windows(self.lattice, at, side, before.windows)
        if len(windows) > 1 and not self.follow:
            span = (np.ptp(at, axis=0) * self.lattice.spacing_mm).max()
            raise PromptError(
                f"clicks {span:.0f} mm apart with one crop of {side} voxels",
                "clicks that fit well inside one crop",
                "leave out --no-follow (follow=False), or segment them one by one",
            )
        with torch.inference_mode():
            piece, crops, complete = self._segment(windows, at, [click.positive for click in clicks])
        box = self._box(prompts, clicks)
        messages = self._messages(len(windows), crops, complete)
        if box is None and any(isinstance(prompt, Box) for prompt in prompts):
            messages = (*messages, "a click in the tumour lies outside the box: the box does not limit the mask")
        return Answer(prompts, clicks, tuple(windows), piece, box, messages, crops)

    def _check(self, clicks: Sequence[Point]) -> None:
        if self.model.card.automatic:
            raise UnsupportedError(
                f"a prompt for the model {self.model.card.name}",
                "no prompt: this model was trained for automatic segmentation",
                "use --auto (voxsam.automatic), or a model that takes clicks",
            )
        if not any(click.positive for click in clicks):
            raise PromptError("negative clicks only", "at least one click in the tumour", "click the tumour first")
        if not self.model.config.polarity and not all(click.positive for click in clicks):
            raise UnsupportedError(
                f"a negative click for the model {self.model.card.name}",
                "positive clicks: this model was trained without polarity",
                "leave it out, or use a model that lists negative clicks in `voxsam info`",
            )

    def _box(self, prompts: Sequence[Prompt], clicks: Sequence[Point]) -> Slices | None:
        """The boxes' common hull, in scan voxels; None without boxes, or if a positive click lies beyond it."""
        ranges = [prompt.index_range(self.volume.grid) for prompt in prompts if isinstance(prompt, Box)]
        if not ranges:
            return None
        low, high = np.min([r[0] for r in ranges], axis=0), np.max([r[1] for r in ranges], axis=0)
        at = self.volume.grid.world_to_index([click.world_mm for click in clicks if click.positive])
        if (at < low - 0.5).any() or (at > high + 0.5).any():
            return None
        return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]

    def _segment(
        self, windows: Sequence[Window], at: NDArray[np.float64], positive: Sequence[bool]
    ) -> tuple[Piece, int, bool]:
        """Decode every window with all clicks' looks; then go on where the mask reaches a border.

        Returns the answer, how many crops it was made from, and whether it ends inside them.
        """
        looks, labels = self._look(windows, at, positive)
        pieces = [(window, self._decode(window, at, looks, labels)) for window in windows]
        merged = merge(pieces)
        waiting = [w for piece in pieces for w in next_windows(piece, piece[1] > THRESHOLD)]
        while waiting := [w for w in waiting if is_new(w, [window for window, _ in pieces])]:
            if not self.follow or len(pieces) >= MOST_CROPS:
                return merged, len(pieces), False
            window = waiting.pop(0)
            piece = (window, connected((window, self._decode(window, at, looks, labels)), merged))
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
        looks = []
        for point, number in zip(at, home, strict=True):
            encoded = self._encode(windows[number])
            where = torch.tensor(point - windows[number].start, dtype=torch.float32, device=encoded.crop.device)
            looks.append(self.model.sample(encoded.features, where[None, None]))
        together = torch.cat(looks, 1)
        if not self.model.config.polarity:
            return together, None
        return together, torch.tensor([positive], dtype=torch.long, device=together.device)

    def _encode(self, window: Window) -> Encoded:
        if window.start in self._encoded:
            self._encoded.move_to_end(window.start)
            return self._encoded[window.start]
        parameter = next(self.model.parameters())
        crop = torch.from_numpy(read_crop(self.volume, window, self.model.card.preprocessing))
        crop = crop[None, None].to(parameter.device, parameter.dtype)
        with _blocks_reported(self.model, self._progress):
            features = self.model.encode(crop)
        self._encoded[window.start] = Encoded(features[-1:], self.model.static(features, crop), crop)
        while len(self._encoded) > 1 and sum(encoded.nbytes for encoded in self._encoded.values()) > KEPT_BYTES:
            self._encoded.popitem(last=False)
        self._progress("encoding", 1.0)
        return self._encoded[window.start]

    def _decode(
        self, window: Window, at: NDArray[np.float64], looks: Tensor, labels: Tensor | None
    ) -> NDArray[np.float32]:
        encoded = self._encode(window)
        points = torch.tensor(at - window.start, dtype=torch.float32, device=encoded.crop.device)[None]
        logits = self.model.decode(
            encoded.features,
            encoded.crop,
            points,
            looks=looks,
            labels=labels,
            static=encoded.static,
            conditioning=self.model.card.conditioning,
        )
        background, tumour = logits[0].float()
        return torch.sigmoid(tumour - background).cpu().numpy()  # softmax over two classes

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
        if not complete and self.follow:
            messages.append(f"the mask was not followed beyond {used} crops and may be incomplete")
        elif not complete:
            messages.append("the mask reaches the border of its crop and was not followed beyond it")
        return tuple(messages)


@contextmanager
def _blocks_reported(model: Promptable, progress: Progress) -> Iterator[None]:
    """While open, every finished block of the image encoder is told to `progress`."""
    blocks = getattr(getattr(model, "image_encoder", None), "blocks", ())
    stages = len(blocks) + 2  # necks and the static part of the decoder come after
    progress("encoding", 0.0)
    hooks = [
        block.register_forward_hook(lambda *_, done=done: progress("encoding", done / stages))
        for done, block in enumerate(blocks, 1)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _overlap(a: Slices, b: Slices) -> tuple[Slices, Slices]:
    """The part that two boxes share, counted from the start of each; empty slices if there is none."""
    in_a, in_b = [], []
    for p, q in zip(a, b, strict=True):
        low = max(p.start, q.start)
        high = max(low, min(p.stop, q.stop))
        in_a.append(slice(low - p.start, high - p.start))
        in_b.append(slice(low - q.start, high - q.start))
    return tuple(in_a), tuple(in_b)  # type: ignore[return-value]


def _limit(values: NDArray[np.float32], reached: Slices, box: Slices) -> NDArray[np.float32]:
    """The values with 0 wherever the scan's voxel lies outside `box`."""
    kept, _ = _overlap(reached, box)
    out = np.zeros_like(values)
    out[kept] = values[kept]
    return out

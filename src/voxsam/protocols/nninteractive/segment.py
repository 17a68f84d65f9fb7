"""Segment: the one object that a client works on, with its prompts, what its buffer shows, and undo.

The protocol has one object at a time: a client that begins the next one resets the interactions. An interaction may
wait without a prediction; the next prediction takes all that wait. What is shown is one value, and undo swaps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, intersection, is_empty, within
from voxsam.geometry import Grid
from voxsam.interactive.history import UNDO_BYTES, UNDO_STEPS
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.preprocess import Slices
from voxsam.prompts import SCRIBBLE_POSITIVE, MaskHint, Point, Prompt, Scribble, prompts_bytes
from voxsam.protocols.nninteractive.inputs import trimmed
from voxsam.volume import Volume


@dataclass(frozen=True, eq=False)
class Seed:
    """An initial mask, cut to its box, which the client's buffer shows until the next prediction."""

    box: Slices
    mask: NDArray[np.bool_]
    hint: MaskHint


def seed_of(mask: NDArray[np.bool_], grid: Grid) -> Seed | None:
    """The seed of an initial mask (X, Y, Z) on the image's grid; None if the mask is empty."""
    if not mask.any():
        return None
    inside, start = trimmed(mask, "an initial mask")
    i, j, k = (slice(int(s), int(s) + n) for s, n in zip(start, inside.shape, strict=True))
    here = grid.crop(start.tolist(), inside.shape)
    return Seed((i, j, k), inside.copy(), MaskHint(Volume(inside.astype(np.uint8), here, "SEG")))


@dataclass(frozen=True, eq=False)
class Change:
    """What an interaction did: whether anything ran, the box that may have changed, and the mask in it (0 and 1)."""

    ran: bool
    box: Slices = NOWHERE
    mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is shown: the last prediction, prompts that wait for the next one, and an initial mask until then."""

    waiting: tuple[Prompt, ...] = ()
    seed: Seed | None = None
    prediction: Prediction | None = None

    @property
    def nbytes(self) -> int:
        """Memory of masks and probabilities."""
        prompts = self.waiting if self.prediction is None else (*self.waiting, *self.prediction.prompts)
        seed = 0 if self.seed is None else self.seed.mask.nbytes
        return prompts_bytes(prompts) + seed + (0 if self.prediction is None else self.prediction.nbytes)

    @property
    def reach(self) -> tuple[Slices, ...]:
        """Boxes outside which the buffer is empty."""
        if self.seed is not None:
            return (self.seed.box,)
        return () if self.prediction is None else self.prediction.reach

    def mask(self, box: Slices) -> NDArray[np.uint8]:
        """What the buffer shows in a box."""
        mask = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        if self.seed is not None:
            common = intersection(box, self.seed.box)
            mask[within(common, box)] = self.seed.mask[within(common, self.seed.box)]
        elif self.prediction is not None:
            mask[:] = self.prediction.mask.array[box]
        return mask


class Segment:
    """The object on an image. Interactions that raise (InputError) leave everything as it was."""

    def __init__(self, predictor: Predictor, undo_bytes: int = UNDO_BYTES) -> None:
        self.predictor, self.undo_bytes = predictor, undo_bytes
        self._seen = _Seen()
        self._past: list[_Seen] = []

    @property
    def features_bytes(self) -> int:
        """Memory of the encoded crops."""
        return self.predictor.encoded.nbytes

    @property
    def predictions_bytes(self) -> int:
        """Memory of what is shown, of what undo can restore, and of a standardised scan, if the model sees one."""
        return sum(seen.nbytes for seen in (*self._past, self._seen)) + self.predictor.standardised_bytes

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The whole of what the client's buffer shows, as a new array."""
        i, j, k = (slice(0, n) for n in self.predictor.volume.grid.shape)
        return self._seen.mask((i, j, k))

    def forget_features(self) -> None:
        """Free the encoded crops."""
        self.predictor.forget_features()

    def add(self, prompts: Sequence[Prompt], predict: bool) -> Change:
        """Add an interaction: its prompts wait or, with `predict`, give a mask together with all that wait."""
        if not predict:
            for prompt in prompts:
                prompt.points(self.predictor.volume.grid)  # raises now what a later prediction would
        return self._enter(replace(self._seen, waiting=(*self._seen.waiting, *prompts)), predict)

    def seed(self, seed: Seed | None, predict: bool) -> Change:
        """Start over with an initial mask (None: an empty one), which the client's buffer already shows."""
        return self._enter(_Seen((seed.hint,), seed) if seed else _Seen(), predict)

    def predict(self) -> Change:
        """Predict a mask for all that waits, as one step with the last interaction. Nothing runs if nothing waits."""
        return self._show(self._predicted(self._seen), ran=bool(self._seen.waiting))

    def undo(self) -> Change:
        """Take back the last interaction since the last reset; nothing runs if there is none."""
        return self._show(self._past.pop(), ran=True) if self._past else Change(False)

    def reset(self) -> None:
        """Discard all interactions: another object begins, and undo cannot return to this one."""
        self._seen = _Seen()
        self._past.clear()

    def _enter(self, seen: _Seen, predict: bool) -> Change:
        """Enter an interaction, keeping the state before it for undo: as many as fit in memory, at least one."""
        before = self._seen
        ran = predict and bool(seen.waiting)
        change = self._show(self._predicted(seen) if predict else seen, ran)
        self._past = [*self._past, before][-UNDO_STEPS:]
        while len(self._past) > 1 and sum(past.nbytes for past in self._past) > self.undo_bytes:
            del self._past[0]
        return change if predict else Change(False)

    def _predicted(self, seen: _Seen) -> _Seen:
        """The state after a prediction of all that waits; negative prompts keep waiting for the first positive one."""
        before = () if seen.prediction is None else seen.prediction.prompts
        if not seen.waiting or not (before or any(map(_is_positive, seen.waiting))):
            return seen
        return _Seen(prediction=self.predictor.predict((*before, *seen.waiting), seen.prediction))

    def _show(self, seen: _Seen, ran: bool) -> Change:
        before, self._seen = self._seen, seen
        same = (before.seed, before.prediction) == (seen.seed, seen.prediction)
        box = NOWHERE if same else hull((*before.reach, *seen.reach))
        if before.prediction is not None and before.prediction is not seen.prediction:
            before.prediction.forget_pasted()
        return Change(ran) if is_empty(box) else Change(ran, box, seen.mask(box))


def _is_positive(prompt: Prompt) -> bool:
    """Whether a prompt says where the tumour is, and not only where it is not."""
    if isinstance(prompt, Point):
        return prompt.positive
    return not isinstance(prompt, Scribble) or bool((prompt.volume.array == SCRIBBLE_POSITIVE).any())

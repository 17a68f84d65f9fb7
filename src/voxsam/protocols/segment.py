"""Segment: the one object that a client works on, with its prompts, what its buffer shows, and undo; and its session.

The protocols have one object at a time: a client that begins the next one resets the interactions. An interaction may
wait without a prediction; the next prediction takes all that wait. What is shown is one value, and undo swaps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, is_empty, whole
from voxsam.interactive.history import UNDO_BYTES, UNDO_STEPS
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Slices
from voxsam.prompts import SCRIBBLE_POSITIVE, MaskHint, Point, Prompt, Scribble, prompts_bytes
from voxsam.region import EMPTY, Region
from voxsam.server.errors import Dropped, NotThere
from voxsam.server.messages import STROKE_MEMORY
from voxsam.server.sessions import OpenSession, Sessions
from voxsam.volume import Volume


@dataclass(frozen=True, eq=False)
class Change:
    """What an interaction did: whether anything ran, the box that may have changed, and the mask in it (0 and 1)."""

    ran: bool
    box: Slices = NOWHERE
    mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is shown: the last prediction, prompts that wait for the next one, and until then an initial mask."""

    waiting: tuple[Prompt, ...] = ()
    seed: Region = EMPTY
    prediction: Prediction | None = None

    @property
    def nbytes(self) -> int:
        """Memory of masks and probabilities."""
        prompts = self.waiting if self.prediction is None else (*self.waiting, *self.prediction.prompts)
        return prompts_bytes(prompts) + self.seed.nbytes + (0 if self.prediction is None else self.prediction.nbytes)

    @property
    def reach(self) -> tuple[Slices, ...]:
        """Boxes outside which the buffer is empty."""
        return (self.seed.box,) if self.prediction is None else self.prediction.reach

    def mask(self, box: Slices) -> NDArray[np.uint8]:
        """What the buffer shows in a box."""
        shown = self.seed.within(box) if self.prediction is None else self.prediction.mask.array[box]
        return shown.astype(np.uint8)


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
        return self._seen.mask(whole(self.predictor.volume.grid))

    def forget_features(self) -> None:
        """Free the encoded crops."""
        self.predictor.forget_features()

    def add(self, prompts: Sequence[Prompt], predict: bool) -> Change:
        """Add an interaction: its prompts wait or, with `predict`, give a mask together with all that wait."""
        if not predict:
            for prompt in prompts:
                prompt.points(self.predictor.volume.grid)  # raises now what a later prediction would
        return self._enter(replace(self._seen, waiting=(*self._seen.waiting, *prompts)), predict)

    def seed(self, mask: Region, predict: bool) -> Change:
        """Start over with an initial mask, which the client's buffer already shows."""
        hints = (MaskHint(mask.on(self.predictor.volume.grid)),) if mask else ()
        return self._enter(_Seen(hints, mask), predict)

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


# The session of a client


class SegmentSession(OpenSession):
    """A client's session with a Segment. Without heartbeats, it ends when it has not been used for `idle_s`."""

    def make(self, model: Promptable, volume: Volume, undo_bytes: int) -> Segment:
        """Make the object, without prompts."""
        return Segment(Predictor(model, progress=self.report).set_image(volume), undo_bytes)

    @property
    def unused_s(self) -> float:
        """Seconds until the session ends if it is not used, heartbeats aside."""
        return max(0.0, self.used + self.sessions.limits.idle_s - self.sessions.clock())

    @property
    def lease_s(self) -> float:
        """Seconds until the session ends if it is not used."""
        return self.unused_s

    def open_image(self, make: Callable[[], Volume], work_bytes: int) -> None:
        """Open the image that `make` returns, in place of the previous one; `work_bytes` is what making it takes."""
        part = self.sessions.memory.take(work_bytes, freed=self.part.nbytes if self.part else 0)
        try:
            volume = make()
            part.note(volume.array.nbytes)
            self.open(volume, part)
        except BaseException:
            part.close()
            raise


S = TypeVar("S", bound=SegmentSession)


def find_client(sessions: Sessions, kind: type[S], name: str, what: str, remedy: str) -> S:
    """The session of a client. Raises Dropped (410), which clients take for a session that has expired."""
    try:
        client = sessions.find(kind, name)
    except NotThere:
        client = None
    if client is None:
        raise Dropped(f"{what} that is over or unknown", f"{what} of this server", remedy)
    return client


async def release_client(sessions: Sessions, kind: type[SegmentSession], name: str) -> None:
    """End the session of a client, if there is one."""
    if any(session.id == name and isinstance(session, kind) for session in sessions.open):
        await asyncio.to_thread(sessions.release, name)


def stroke_bytes(prompts: Sequence[Prompt]) -> int:
    """The memory needed to turn the scribbles among the prompts into clicks."""
    return STROKE_MEMORY * sum(prompt.volume.array.size for prompt in prompts if isinstance(prompt, Scribble))

"""Segment: the one object that a client works on. What was prompted, what its buffer shows, and the way back.

The protocol has one object at a time: a client that begins the next one resets the interactions. An interaction may
wait without a prediction; the next prediction takes all that wait, in one step of the session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, intersection, is_empty, within
from voxsam.geometry import Grid
from voxsam.interactive.history import UNDO_STEPS
from voxsam.interactive.session import Session
from voxsam.preprocess import Slices
from voxsam.prompts import SCRIBBLE_POSITIVE, MaskHint, Point, Prompt, Scribble
from voxsam.server.nninteractive.interactions import trimmed
from voxsam.volume import Volume


@dataclass(frozen=True, eq=False)
class Seed:
    """An initial mask, cut to its box: until the next prediction it is what the client's buffer shows."""

    box: Slices
    mask: NDArray[np.bool_]
    hint: MaskHint


def seed_of(mask: NDArray[np.bool_], grid: Grid) -> Seed | None:
    """An initial mask (X, Y, Z) on the image's grid; None if it is empty."""
    if not mask.any():
        return None
    inside, start = trimmed(mask, "an initial mask")
    i, j, k = (slice(int(s), int(s) + n) for s, n in zip(start, inside.shape, strict=True))
    here = grid.crop(start.tolist(), inside.shape)
    return Seed((i, j, k), inside, MaskHint(Volume(inside.astype(np.uint8), here, "SEG")))


@dataclass(frozen=True, eq=False)
class Change:
    """What an interaction did: whether anything ran, the box that may have changed, and the mask in it (0 and 1)."""

    ran: bool
    box: Slices = NOWHERE
    mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.uint8))


@dataclass(eq=False)
class _Before:
    """How it was before an interaction, and how many steps of the session the interaction took."""

    waiting: tuple[Prompt, ...]
    seed: Seed | None
    steps: int = 0


class Segment:
    """The object of one Session. Interactions that raise (InputError) leave everything as it was."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._waiting: tuple[Prompt, ...] = ()
        self._seed: Seed | None = None
        self._past: list[_Before] = []

    def add(self, prompts: Sequence[Prompt], predict: bool) -> Change:
        """One interaction: prompts that wait, or with all that wait give a mask."""
        if not predict:
            for prompt in prompts:
                prompt.points(self.session.volume.grid)  # raises now what a later prediction would
        self._remember()
        try:
            self._waiting += tuple(prompts)
            return self.predict() if predict else Change(False)
        except Exception:
            self.undo()
            raise

    def seed(self, seed: Seed | None, predict: bool) -> Change:
        """Begin anew with an initial mask (None: an empty one), which the client's buffer shows already."""
        self._remember()
        try:
            self._step(self.session.reset)
            self._waiting, self._seed = ((seed.hint,), seed) if seed else ((), None)
            return self.predict() if predict else Change(False)
        except Exception:
            self.undo()
            raise

    def predict(self) -> Change:
        """A mask for all that waits. Nothing runs if nothing waits; negative prompts wait for a positive one."""
        if not self._waiting:
            return Change(False)
        if not self.session.prompts and not any(map(_is_positive, self._waiting)):
            return Change(True)
        self._step(lambda: self.session.prompt(*self._waiting))
        box = hull([self.session.changed, _box(self._seed)])
        self._waiting, self._seed = (), None
        return self._change(box)

    def undo(self) -> Change:
        """Take back the last interaction since the last reset; nothing runs if there is none."""
        if not self._past or (self._past[-1].steps and not self.session.can_undo):  # the session forgets very old steps
            self._past.clear()
            return Change(False)
        before = self._past.pop()
        boxes = [_box(self._seed), _box(before.seed)]
        for _ in range(before.steps):
            self.session.undo()
            boxes.append(self.session.changed)
        self._waiting, self._seed = before.waiting, before.seed
        return self._change(hull(boxes))

    def reset(self) -> None:
        """Forget all interactions: another object begins, and there is no way back to this one."""
        self.session.reset()
        self._waiting, self._seed = (), None
        self._past.clear()

    def _remember(self) -> None:
        self._past = [*self._past, _Before(self._waiting, self._seed)][-UNDO_STEPS:]

    def _step(self, act: Callable[[], object]) -> None:
        """A step of the session, counted for the interaction that it belongs to."""
        act()
        if self._past:
            self._past[-1].steps += 1

    def _change(self, box: Slices) -> Change:
        if is_empty(box):
            return Change(True)
        if self._seed is None:
            return Change(True, box, (self.session.mask.array[box] != 0).astype(np.uint8))
        mask = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        common = intersection(box, self._seed.box)
        mask[within(common, box)] = self._seed.mask[within(common, self._seed.box)]
        return Change(True, box, mask)


def _is_positive(prompt: Prompt) -> bool:
    """Whether a prompt says where the tumour is, and not only where it is not."""
    if isinstance(prompt, Point):
        return prompt.positive
    return not isinstance(prompt, Scribble) or bool((prompt.volume.array == SCRIBBLE_POSITIVE).any())


def _box(seed: Seed | None) -> Slices:
    return NOWHERE if seed is None else seed.box

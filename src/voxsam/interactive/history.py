"""History: what a session answered, for each object, and the way back and forth between its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import NOWHERE, hull, intersection, within
from voxsam.geometry import Grid
from voxsam.interactive.crops import Piece, around_tumour
from voxsam.preprocess import Slices, Window, paste, paste_box
from voxsam.prompts import Point, Prompt

UNDO_STEPS = 100
UNDO_BYTES = 256 << 20  # of probabilities that only past steps hold; the oldest go first, the last one always stays

Pasted = tuple[Slices, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Answer:
    """One object: what was prompted, the crops that were chosen for it, and the probabilities on the model grid."""

    prompts: tuple[Prompt, ...] = ()
    clicks: tuple[Point, ...] = ()  # that the prompts became
    windows: tuple[Window, ...] = ()
    piece: Piece | None = None
    box: Slices | None = None  # of the scan, beyond which the mask must not go
    messages: tuple[str, ...] = ()
    crops: int = 0

    @property
    def nbytes(self) -> int:
        """Memory of the probabilities."""
        return 0 if self.piece is None else self.piece[1].nbytes

    @cached_property
    def tumour(self) -> Piece | None:
        """The part of the piece that every voxel above THRESHOLD lies well inside; None if there is none."""
        return None if self.piece is None else around_tumour(self.piece)

    def reach(self, scan: Grid) -> Slices:
        """The box of the scan outside which the answer's mask is empty."""
        if self.tumour is None:
            return NOWHERE
        reached = paste_box(self.tumour[0], scan)
        return reached if self.box is None else intersection(reached, self.box)

    def on_scan(self, scan: Grid) -> Pasted:
        """The box that the answer reaches, and the probabilities in it; computed when first asked for."""
        if "pasted" not in self.__dict__:
            self.__dict__["pasted"] = self._paste(self.tumour, scan)
        return self.__dict__["pasted"]

    def probabilities(self, scan: Grid) -> Pasted:
        """The box of the scan outside which the answer knows nothing but 0, and the probabilities in it."""
        return self._paste(self.piece, scan)

    def _paste(self, piece: Piece | None, scan: Grid) -> Pasted:
        if piece is None:
            return NOWHERE, np.zeros((0, 0, 0), dtype=np.float32)
        window, probability = piece
        pasted, values = paste(probability, window, scan)
        reached = pasted if self.box is None else intersection(pasted, self.box)
        return reached, values[within(reached, pasted)]

    def forget_pasted(self) -> None:
        """Free what `on_scan` keeps; it is computed again when asked for."""
        self.__dict__.pop("pasted", None)


@dataclass(frozen=True)
class State:
    """Everything that undo gives back: the answers by object number, and which object is current."""

    answers: Mapping[int, Answer] = field(default_factory=lambda: MappingProxyType({1: Answer()}))
    current: int = 1

    @property
    def answer(self) -> Answer:
        """That of the current object."""
        return self.answers[self.current]

    def with_answer(self, answer: Answer, number: int | None = None) -> State:
        """The state after an object (None: the current one) got this answer; a new number is a new object."""
        number = self.current if number is None else number
        return State(MappingProxyType({**self.answers, number: answer}), number)


class History:
    """The state that is seen, those before it, and those that were taken back; `changed` is where the last step drew.

    A step is of the whole document: it may be of any object. States share the answers that did not change.
    """

    def __init__(self, scan: Grid, undo_bytes: int | None = None) -> None:
        self.scan, self.undo_bytes = scan, UNDO_BYTES if undo_bytes is None else undo_bytes
        self.state = State()
        self.changed = NOWHERE
        self._past: list[State] = []
        self._future: list[State] = []

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
        """Memory of the probabilities of all states, each counted once."""
        states = (*self._past, self.state, *self._future)
        answers = {id(answer): answer for state in states for answer in state.answers.values()}
        return sum(answer.nbytes for answer in answers.values())

    def enter(self, state: State) -> None:
        """Make a new step; what was taken back is forgotten."""
        self._past = _affordable([*self._past, self.state][-UNDO_STEPS:], state, self.undo_bytes)
        self._future.clear()
        self._show(state)

    def undo(self) -> None:
        """Go one step back, if there is one."""
        self.changed = NOWHERE
        if self._past:
            self._future.append(self.state)
            self._show(self._past.pop())

    def redo(self) -> None:
        """Go one step forth again, if there is one."""
        self.changed = NOWHERE
        if self._future:
            self._past.append(self.state)
            self._show(self._future.pop())

    def select(self, number: int) -> None:
        """Make an object of the state current; no step."""
        self.state = replace(self.state, current=number)

    def _show(self, state: State) -> None:
        """Make a state the one that is seen; answers that are seen no more keep only what they need to come back."""
        left = _not_in(self.state, state)
        self.changed = hull(answer.reach(self.scan) for answer in (*left, *_not_in(state, self.state)))
        for answer in left:
            answer.forget_pasted()
        self.state = state


def _not_in(state: State, other: State) -> list[Answer]:
    """The answers of a state that another one does not have."""
    return [answer for number, answer in state.answers.items() if other.answers.get(number) is not answer]


def _affordable(past: list[State], seen: State, most_bytes: int) -> list[State]:
    """The latest past states, one at least, as far as `most_bytes` suffice for what the state that is seen lacks.

    States that add nothing to those after them, as the empty one, cost nothing and stay with them.
    """
    counted = {id(answer) for answer in seen.answers.values()}
    total, kept = 0, 0
    for state in reversed(past):
        added = sum(answer.nbytes for answer in state.answers.values() if id(answer) not in counted)
        counted.update(map(id, state.answers.values()))
        total += added
        if kept and added and total > most_bytes:
            break
        kept += 1
    return past[len(past) - kept :]

"""Steps: what a client does to a session, as JSON that can be sent, kept, and done again.

A Script is the whole of it: played on the same scan and model, it brings back the session with its undo and redo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.prompts import SCRIBBLE_NEGATIVE, SCRIBBLE_POSITIVE, Box, Point, Prompt, Scribble
from voxsam.volume import Volume

MAX_PROMPTS = 256  # in one step
MAX_STROKE_VOXELS = 200_000  # of one scribble

Place = tuple[float, float, float]
Voxel = tuple[int, int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PointPrompt(_Strict):
    """A click on a voxel of the scan's own array."""

    kind: Literal["point"]
    index: Place = Field(description="Voxel (i, j, k); fractions are allowed.", examples=[[210, 148, 62]])
    positive: bool = Field(default=True, description="false: this is not the tumour.")

    def on(self, grid: Grid) -> Prompt:
        """The prompt of a session. Raises PromptError."""
        return Point.at_index(grid, self.index, self.positive)


class BoxPrompt(_Strict):
    """A box of voxels that holds the tumour; both corners belong to it."""

    kind: Literal["box"]
    low: Place = Field(examples=[[190, 130, 50]])
    high: Place = Field(examples=[[230, 170, 75]])

    def on(self, grid: Grid) -> Prompt:
        """The prompt of a session. Raises PromptError."""
        return Box.at_index(grid, self.low, self.high)


class ScribblePrompt(_Strict):
    """Voxels that were drawn over."""

    kind: Literal["scribble"]
    voxels: list[Voxel] = Field(min_length=1, max_length=MAX_STROKE_VOXELS, examples=[[[210, 148, 62], [211, 148, 62]]])
    positive: bool = Field(default=True, description="false: this is not the tumour.")

    def on(self, grid: Grid) -> Prompt:
        """The prompt of a session: its labels lie on the part of the grid that the stroke needs. Raises PromptError."""
        for voxel in self.voxels:  # in Python's integers, which do not overflow
            if not all(0 <= at < length for at, length in zip(voxel, grid.shape, strict=True)):
                last = ", ".join(str(n - 1) for n in grid.shape)
                given, expected = f"a scribble with the voxel {list(voxel)}", f"voxels from (0, 0, 0) to ({last})"
                raise PromptError(given, expected, "send (i, j, k) of the scan's own array")
        voxels = np.array(self.voxels)
        low, high = voxels.min(0), voxels.max(0)
        labels = np.zeros(high - low + 1, dtype=np.uint8)
        labels[tuple((voxels - low).T)] = SCRIBBLE_POSITIVE if self.positive else SCRIBBLE_NEGATIVE
        return Scribble(Volume(labels, grid.crop(low.tolist(), labels.shape), "SEG"))


AnyPrompt = Annotated[PointPrompt | BoxPrompt | ScribblePrompt, Field(discriminator="kind")]


class Prompts(_Strict):
    """Prompts for the current object that belong together: one step of undo."""

    prompts: list[AnyPrompt] = Field(min_length=1, max_length=MAX_PROMPTS)


class Step(_Strict):
    """Something that undo can take back; `object` was current before it."""

    do: Literal["prompt", "new_object", "reset"]
    object: int = Field(default=1, ge=1)
    prompts: tuple[AnyPrompt, ...] = ()

    def play(self, session: Session) -> None:
        """Do it. Raises PromptError and UnsupportedError, with the session as it was."""
        if self.do == "prompt":
            session.prompt(*(prompt.on(session.volume.grid) for prompt in self.prompts))
        elif self.do == "new_object":
            session.new_object()
        else:
            session.reset()


class Script(BaseModel):
    """The steps of a session: the first `done` of them are seen, the others were taken back."""

    model_config = ConfigDict(extra="forbid")

    steps: list[Step] = []
    done: NonNegativeInt = 0
    current: int = Field(default=1, ge=1)

    def take(self, session: Session, do: Literal["prompt", "new_object", "reset"], prompts: Any = ()) -> None:
        """Play a new step and note it; what was taken back is forgotten."""
        step = Step(do=do, object=session.current, prompts=tuple(prompts))
        step.play(session)
        self.steps[self.done :] = [step]
        self.done += 1
        self.current = session.current

    def undo(self, session: Session) -> None:
        """Take back the last step, if the session still can."""
        self.done -= session.can_undo
        session.undo()
        self.current = session.current

    def redo(self, session: Session) -> None:
        """Do again what undo took back, if there is any."""
        self.done += session.can_redo
        session.redo()
        self.current = session.current

    def select(self, session: Session, number: int) -> None:
        """Make an object current. Raises PromptError."""
        session.select(number)
        self.current = number

    def replay(self) -> list[Callable[[Session], None]]:
        """What brings a new session to where this script stands, piece by piece, so that others get their turn."""

        def play(step: Step) -> Callable[[Session], None]:
            def work(session: Session) -> None:
                session.select(step.object)
                step.play(session)

            return work

        def end(session: Session) -> None:
            for _ in range(len(self.steps) - self.done):
                session.undo()
            session.select(self.current)

        return [*map(play, self.steps), end]

"""Answers: what a client is told of its session, the numbers of its objects, and the labels of the box that changed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from voxsam.boxes import hull, intersection, is_empty
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Prediction
from voxsam.interactive.session import Session
from voxsam.preprocess import Slices
from voxsam.prompts import SCRIBBLE_POSITIVE, Box, Point, Prompt, Scribble
from voxsam.report.metrics import longest_axial_diameter, volume_ml
from voxsam.volume import Volume

DEFLATE_LEVEL = 6


class ObjectState(BaseModel):
    """One object of a session."""

    number: int = Field(description="Its label in the mask.")
    prompts: list[dict[str, Any]] = Field(
        description="As they were given, scribbles by their number of voxels.",
        examples=[[{"kind": "point", "index": [210, 148, 62], "positive": True}]],
    )
    volume_ml: float
    longest_diameter_mm: float = Field(description="The longest in an axial slice (RECIST 1.1); 0 without a mask.")
    messages: list[str] = Field(description="What the user should know of its mask.")


class BusyState(BaseModel):
    """What is being done now."""

    stage: str
    fraction: float = Field(ge=0, le=1)


class State(BaseModel):
    """A session as it is now."""

    id: str
    name: str
    lease_s: float = Field(description="It ends in so many seconds unless something is heard of the client.")
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: list[list[float]] = Field(description="4 x 4: voxel (i, j, k) to RAS+ millimetres.")
    modality: str = Field(description="CT, MR, or empty.")
    dicom: bool = Field(description="Whether the mask can be had as DICOM-SEG.")
    revision: int = Field(description="Grows with every step.")
    objects: list[ObjectState]
    current: int = Field(description="The object that prompts go to.")
    can_undo: bool
    can_redo: bool
    busy: BusyState | None
    notes: list[str] = Field(description="What the user should know of the session as a whole.")


class ChangedBox(BaseModel):
    """A box of voxels, `high` not in it."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]


class Answer(State):
    """The state after a step, and the labels that the step may have changed."""

    seconds: float = Field(description="That the step took, without waiting for its turn.")
    changed: ChangedBox
    labels: str = Field(description="base64 of zlib of uint8, i fastest: all labels in `changed`.")


@dataclass
class Numbers:
    """What was measured of each object, kept until a step draws where the object is."""

    known: dict[int, tuple[float, float]] = field(default_factory=dict)  # mL, mm

    def measure(self, masks: dict[int, Volume], present: set[int]) -> None:
        """Take in the masks of the objects that may have changed; `present` are all there are."""
        self.known = {number: found for number, found in self.known.items() if number in present}
        for number, mask in masks.items():
            diameter = longest_axial_diameter(mask)
            self.known[number] = (volume_ml(mask), diameter.length_mm if diameter else 0.0)


@dataclass(frozen=True)
class Seen:
    """What was taken from a session on the device's thread; the rest of the work needs no turn there.

    `labels` are those of `box`; `masks` (bool) are the objects to measure, each cut to where it is.
    """

    objects: dict[int, Prediction]
    current: int
    can_undo: bool
    can_redo: bool
    box: Slices
    labels: NDArray[np.uint8]
    masks: dict[int, Volume]


def see(session: Session, box: Slices, stale: Slices, known: Container[int] = ()) -> Seen:
    """Take what an answer with the labels of `box` needs; objects that meet `stale` or are not `known` are measured."""
    grid, mask = session.volume.grid, session.mask.array
    masks = {}
    for number, answer in session.predictions.items():
        reach = hull(answer.reach)
        if is_empty(reach):
            masks[number] = Volume(np.zeros((1, 1, 1), bool), grid.crop((0, 0, 0), (1, 1, 1)), "SEG")
        elif number not in known or not is_empty(intersection(reach, stale)):
            part = grid.crop([s.start for s in reach], [s.stop - s.start for s in reach])
            masks[number] = Volume(mask[reach] == number, part, "SEG")
    state = (session.current, session.can_undo, session.can_redo)
    return Seen(dict(session.predictions), *state, box, mask[box], masks)


def object_states(seen: Seen, numbers: Numbers, grid: Grid) -> list[ObjectState]:
    """Every object with its numbers; measures those that changed, which may take a while: on no event loop."""
    numbers.measure(seen.masks, set(seen.objects))
    return [
        ObjectState(
            number=number,
            prompts=[_plain(prompt, grid) for prompt in answer.prompts],
            volume_ml=round(numbers.known[number][0], 4),
            longest_diameter_mm=round(numbers.known[number][1], 2),
            messages=list(answer.remarks),
        )
        for number, answer in seen.objects.items()
    ]


def changed_box(box: Slices) -> ChangedBox:
    """For JSON."""
    low, high = [s.start for s in box], [s.stop for s in box]
    return ChangedBox(low=tuple(low), high=tuple(high))


def packed(labels: NDArray[np.uint8]) -> str:
    """base64 of zlib of the labels, i fastest."""
    return base64.b64encode(zlib.compress(labels.tobytes("F"), DEFLATE_LEVEL)).decode()


def whole(grid: Grid) -> Slices:
    """The box of all voxels."""
    i, j, k = (slice(0, n) for n in grid.shape)
    return i, j, k


def _plain(prompt: Prompt, grid: Grid) -> dict[str, Any]:
    """A prompt as JSON, in voxels of the scan."""
    if isinstance(prompt, Point):
        index = [round(float(at), 3) for at in grid.world_to_index(prompt.world_mm)]
        return {"kind": "point", "index": index, "positive": prompt.positive}
    if isinstance(prompt, Box):
        low, high = prompt.index_range(grid)
        return {"kind": "box", "low": low.tolist(), "high": high.tolist()}
    array = prompt.volume.array
    count = int(np.count_nonzero(array))
    if isinstance(prompt, Scribble):
        return {"kind": "scribble", "count": count, "positive": bool(array.max() == SCRIBBLE_POSITIVE)}
    return {"kind": "hint", "count": count}

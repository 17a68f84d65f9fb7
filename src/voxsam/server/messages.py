"""JSON messages: the sources of scans and prompts in; a session's state, measurements and changed labels out."""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, PlainSerializer, PlainValidator, TypeAdapter, WithJsonSchema

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive.history import Snapshot
from voxsam.interactive.session import Session
from voxsam.io.segments import SegmentInfo, in_hex
from voxsam.preprocess import Slices
from voxsam.prompts import SCRIBBLE_NEGATIVE, SCRIBBLE_POSITIVE, Box, Point, Prompt, Scribble
from voxsam.region import Region
from voxsam.report.metrics import Diameter, Measurement, measure
from voxsam.server.edits import ObjectType, Place, Strict
from voxsam.volume import Volume

MAX_PROMPTS = 256  # in one step
MAX_STROKE_VOXELS = 200_000  # of one scribble
MAX_STROKE_BOX = 1 << 23  # voxels of the box that holds a scribble
STROKE_MEMORY = 24  # bytes per voxel of that box, while clicks are spread over the stroke
DEFLATE_LEVEL = 6

Voxel = tuple[int, int, int]


# Sources


class DemoSource(Strict):
    """The generated scan of `voxsam demo`."""

    demo: Literal[True]


class FolderSource(Strict):
    """A file or a DICOM folder in a served folder."""

    folder: str = Field(max_length=16, description="The id of a folder in /api/info.", examples=["0"])
    path: str = Field(max_length=4096, description="As listed by /api/files.", examples=["patient1/ct.nii.gz"])
    series: str = Field(default="", max_length=64, description="Of several: the uid that the answer 409 listed.")


class UploadSource(Strict):
    """Files that were sent to /api/uploads."""

    upload: str = Field(max_length=64, description="The id that /api/uploads gave.")
    series: str = Field(default="", max_length=64, description="Of several: the uid that the answer 409 listed.")


class CaseSource(Strict):
    """A scan of the server's project; opening it takes it into work."""

    case: str = Field(max_length=300, description="As listed by /api/project.")
    reader: str = Field(max_length=100, description="Whose work it is.", examples=["anna"])


Source = DemoSource | FolderSource | UploadSource
AnySource = Source | CaseSource


# Prompts


class PointPrompt(Strict):
    """A click on a voxel of the scan's own array."""

    kind: Literal["point"]
    index: Place = Field(description="Voxel (i, j, k); fractions are allowed.", examples=[[210, 148, 62]])
    positive: bool = Field(default=True, description="false: this is not the tumour.")

    def on(self, grid: Grid) -> Prompt:
        """The prompt for a session. Raises PromptError."""
        return Point.at_index(grid, self.index, self.positive)


class BoxPrompt(Strict):
    """A box of voxels that holds the tumour; both corners belong to it."""

    kind: Literal["box"]
    low: Place = Field(examples=[[190, 130, 50]])
    high: Place = Field(examples=[[230, 170, 75]])

    def on(self, grid: Grid) -> Prompt:
        """The prompt for a session. Raises PromptError."""
        return Box.at_index(grid, self.low, self.high)


_INT32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
_VOXELS = TypeAdapter(
    Annotated[list[tuple[_INT32, _INT32, _INT32]], Field(min_length=1, max_length=MAX_STROKE_VOXELS)],
)
Voxels = Annotated[
    array,  # of i, j, k, i, j, k ...: twelve bytes per voxel, where lists of numbers take over a hundred
    PlainValidator(lambda given: given if isinstance(given, array) else _flat(given)),
    PlainSerializer(lambda voxels: np.reshape(voxels, (-1, 3)).tolist(), return_type=list),
    WithJsonSchema(_VOXELS.json_schema()),
]


def _flat(given: Any) -> array[int]:
    return array("i", (at for voxel in _VOXELS.validate_python(given) for at in voxel))


class ScribblePrompt(Strict):
    """Voxels that were drawn over."""

    kind: Literal["scribble"]
    voxels: Voxels = Field(examples=[[[210, 148, 62], [211, 148, 62]]])
    positive: bool = Field(default=True, description="false: this is not the tumour.")

    @property
    def box_voxels(self) -> int:
        """The voxels of the box that holds the stroke, in Python's integers, which do not overflow."""
        spans = (int(n) + 1 for n in np.ptp(np.reshape(self.voxels, (-1, 3)).astype(np.int64), axis=0))
        a, b, c = spans
        return a * b * c

    def on(self, grid: Grid) -> Prompt:
        """The prompt for a session, its labels on the part of the grid that the stroke needs. Raises PromptError."""
        voxels = np.reshape(self.voxels, (-1, 3))
        outside = ((voxels < 0) | (voxels >= grid.shape)).any(axis=1)
        if outside.any():
            last = ", ".join(str(n - 1) for n in grid.shape)
            given, expected = f"a scribble with the voxel {voxels[outside][0].tolist()}", f"(0, 0, 0) to ({last})"
            raise PromptError(given, f"voxels from {expected}", "send (i, j, k) of the scan's own array")
        if self.box_voxels > MAX_STROKE_BOX:
            given, expected = "a scribble all over the scan", f"a box of {MAX_STROKE_BOX:,} voxels that holds it"
            raise PromptError(given, expected, "send its parts as scribbles of their own")
        low, high = voxels.min(0), voxels.max(0)
        labels = np.zeros(high - low + 1, dtype=np.uint8)
        labels[tuple((voxels - low).T)] = SCRIBBLE_POSITIVE if self.positive else SCRIBBLE_NEGATIVE
        return Scribble(Volume(labels, grid.crop(low.tolist(), labels.shape), "SEG"))


AnyPrompt = Annotated[PointPrompt | BoxPrompt | ScribblePrompt, Field(discriminator="kind")]


class Prompts(Strict):
    """Prompts for the current object that belong together: one step of undo."""

    prompts: list[AnyPrompt] = Field(min_length=1, max_length=MAX_PROMPTS)


def work_bytes(prompts: Sequence[AnyPrompt]) -> int:
    """The memory needed to turn prompts into clicks: all of their boxes, and the work on the largest."""
    boxes = [prompt.box_voxels for prompt in prompts if isinstance(prompt, ScribblePrompt)]
    return sum(boxes) + STROKE_MEMORY * max(boxes, default=0)


# States and answers


class Line(BaseModel):
    """A diameter: its length, and its ends as fractional voxel indices of the scan."""

    mm: float
    ends: tuple[Place, Place]

    @classmethod
    def of(cls, diameter: Diameter | None) -> Line | None:
        """The message of a diameter, if there is one."""
        if diameter is None:
            return None
        first, second = (tuple(end) for end in diameter.ends.round(3).tolist())
        return cls(mm=round(diameter.length_mm, 2), ends=(first, second))


class ConfidenceState(BaseModel):
    """How good a mask probably is, as calibrated on validation lesions."""

    dice: float = Field(description="Expected.")
    volume_ml: tuple[float, float] = Field(description="Holds the lesion's true volume in 80 % of cases.")
    doubtful: bool = Field(description="Whether what was clicked may be no lesion.")


class ObjectState(BaseModel):
    """One object of a session."""

    number: int = Field(description="Its label in the mask.")
    prompts: list[dict[str, Any]] = Field(
        description="As they were given, scribbles by their number of voxels.",
        examples=[[{"kind": "point", "index": [210, 148, 62], "positive": True}]],
    )
    volume_ml: float
    longest_diameter_mm: float = Field(description="The longest in an axial slice (RECIST 1.1); 0 without a mask.")
    longest: Line | None = Field(description="That diameter; null without a mask.")
    perpendicular: Line | None = Field(description="The longest one perpendicular to it, in the same slice.")
    name: str
    colour: str = Field(examples=["#ff5a5f"])
    visible: bool
    locked: bool = Field(description="Whether no other object takes its voxels.")
    type: ObjectType
    edited: bool = Field(description="Whether a hand or a loaded mask decides on some of its voxels.")
    confidence: ConfidenceState | None = Field(description="null for a model without calibration, or an edited mask.")
    class_name: str | None = Field(description="Which of the model's classes it looks like; null if it has none.")
    messages: list[str] = Field(description="What the user should know of its mask.")


class BusyState(BaseModel):
    """What is being done now."""

    stage: str
    fraction: float = Field(ge=0, le=1)


class Earlier(BaseModel):
    """Another session on the same scan, whose work is saved."""

    id: str
    name: str
    saved: str = Field(description="When, UTC.", examples=["2026-11-30T09:15:00+00:00"])


class SessionState(BaseModel):
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
    current: int = Field(description="The object that prompts and edits go to.")
    overlap: bool = Field(description="Whether objects may share voxels.")
    keep_clicked: bool = Field(description="Whether masks are the clicked components alone.")
    can_undo: bool
    can_redo: bool
    busy: BusyState | None
    case: str | None = Field(description="The scan of the server's project that it is on.")
    notes: list[str] = Field(description="What the user should know of the session as a whole.")
    earlier: list[Earlier] = Field(description="Saved sessions on a scan of the same content, the latest first.")


class ChangedBox(BaseModel):
    """A box of voxels; `high` is exclusive."""

    low: Voxel
    high: Voxel


class StepState(SessionState):
    """The state after a step, and the labels that the step may have changed."""

    seconds: float = Field(description="That the step took, without waiting for its turn.")
    changed: ChangedBox
    labels: str = Field(description="base64 of zlib of uint8, i fastest: all labels in `changed`.")


@dataclass(frozen=True)
class View:
    """What a response needs of a session, taken on the worker's thread; the rest of it needs no turn there.

    `labels` are those of `box`.
    """

    step: Snapshot
    infos: dict[int, SegmentInfo]
    can_undo: bool
    can_redo: bool
    box: Slices
    labels: NDArray[np.uint8]

    @classmethod
    def of(cls, session: Session, box: Slices) -> View:
        """The view of a session, with the labels of `box`."""
        infos = {number: session.info(number) for number in session.objects}
        return cls(session.step, infos, session.can_undo, session.can_redo, box, session.labels_in(box))

    def changes(self) -> dict[str, Any]:
        """The box and its labels, for a StepState."""
        low, high = tuple(s.start for s in self.box), tuple(s.stop for s in self.box)
        packer = zlib.compressobj(DEFLATE_LEVEL)
        pieces = [packer.compress(self.labels[:, :, k].tobytes("F")) for k in range(self.labels.shape[2])]
        packed = base64.b64encode(b"".join([*pieces, packer.flush()])).decode()
        return {"changed": ChangedBox(low=low, high=high), "labels": packed}

    def object_states(self, measured: dict[int, tuple[Region, Measurement]], grid: Grid) -> list[ObjectState]:
        """The state of every object; measures those whose voxels changed, and notes that in `measured`.

        May take a while, so not to be called on an event loop.
        """
        before = dict(measured)
        measured.clear()
        for number, found in self.step.objects.items():
            region, size = before.get(number, (None, None))
            if size is None or region is not found.region:
                size = measure(found.region, grid)
            measured[number] = (found.region, size)
        return [self._object_state(number, size, grid) for number, (_, size) in measured.items()]

    def _object_state(self, number: int, size: Measurement, grid: Grid) -> ObjectState:
        found, info = self.step.objects[number], self.infos[number]
        return ObjectState(
            number=number,
            prompts=[_as_given(prompt, grid) for prompt in found.prediction.prompts],
            volume_ml=round(size.volume_ml, 4),
            longest_diameter_mm=round(size.longest.length_mm, 2) if size.longest else 0.0,
            longest=Line.of(size.longest),
            perpendicular=Line.of(size.perpendicular),
            name=info.name,
            colour=in_hex(info.colour),
            visible=info.visible,
            locked=found.locked,
            type=ObjectType.of(info.type),
            edited=found.edited,
            confidence=None if found.confidence is None else ConfidenceState(**found.confidence.facts),
            class_name=found.prediction.class_name,
            messages=list(found.remarks),
        )


def _as_given(prompt: Prompt, grid: Grid) -> dict[str, Any]:
    """A prompt as JSON, in voxels of the scan."""
    if isinstance(prompt, Point):
        index = [round(float(at), 3) for at in grid.world_to_index(prompt.world_mm)]
        return {"kind": "point", "index": index, "positive": prompt.positive}
    if isinstance(prompt, Box):
        low, high = prompt.index_range(grid)
        return {"kind": "box", "low": low.tolist(), "high": high.tolist()}
    labels = prompt.volume.array
    count = int(np.count_nonzero(labels))
    if isinstance(prompt, Scribble):
        return {"kind": "scribble", "count": count, "positive": bool(labels.max() == SCRIBBLE_POSITIVE)}
    return {"kind": "hint", "count": count}

"""Manual edits of the current object as JSON, and masks as a journal stores them."""

from __future__ import annotations

import base64
import zlib
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive import editing
from voxsam.interactive.session import EditFunction
from voxsam.io.segments import LONGEST_NAME, Code, SegmentInfo, is_name
from voxsam.preprocess import Slices
from voxsam.region import Region
from voxsam.volume import Volume

MAX_EDITS = 256  # in one step
MAX_DRAWN_POINTS = 10_000  # of one stroke or outline
MAX_RADIUS_MM = 200.0
MAX_BRUSH_VOXELS = 1 << 26  # that a step's brushes examine: some ten seconds
MAX_BRUSH_BOX = 1 << 28  # voxels of the box that holds one stroke

Place = tuple[float, float, float]
Axis = Annotated[int, Field(ge=0, le=2, description="Of the scan's array: the slices are perpendicular to it.")]
Drawn = Annotated[list[Place], Field(max_length=MAX_DRAWN_POINTS, examples=[[[210, 148, 62], [214, 150, 62]]])]


class Strict(BaseModel):
    """A message that allows no other fields, and no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BrushEdit(Strict):
    """A stroke of the brush or the eraser: of a ball or, with `axis`, of a disc in one slice."""

    kind: Literal["brush"]
    stroke: Drawn = Field(min_length=1)
    radius_mm: float = Field(gt=0, le=MAX_RADIUS_MM)
    add: bool = Field(default=True, description="false: erase.")
    axis: Axis | None = None
    intensities: tuple[float, float] | None = Field(default=None, description="Only voxels of the scan from, to.")

    def voxels(self, grid: Grid) -> int:
        """The number of voxels to examine. Raises PromptError for a stroke all over a large scan."""
        points = np.array(self.stroke)
        reach = 2 * self.radius_mm * np.linalg.norm(np.linalg.inv(grid.affine[:3, :3]), axis=1) + 1
        if self.axis is not None:
            reach[self.axis] = 1
        if np.prod(np.minimum(np.ptp(points, axis=0) + reach, grid.shape)) > MAX_BRUSH_BOX:
            raise PromptError("a stroke all over the scan", "one that a smaller box holds", "send its parts as strokes")
        steps = np.abs(np.diff(points, axis=0, prepend=points[:1])) + reach
        return int(np.prod(np.minimum(steps, grid.shape), axis=1).sum())

    def on(self, scan: Volume) -> EditFunction:
        """The edit as a session applies it."""
        image = None if self.intensities is None else scan.array
        return partial(
            editing.brush,
            stroke=self.stroke,
            radius_mm=self.radius_mm,
            add=self.add,
            axis=self.axis,
            image=image,
            intensities=self.intensities or (-np.inf, np.inf),
        )


class LassoEdit(Strict):
    """The inside of an outline in one slice, closed automatically; with `slices`, in that many, centred on it."""

    kind: Literal["lasso"]
    polygon: Drawn = Field(min_length=3)
    axis: Axis
    add: bool = Field(default=True, description="false: erase.")
    slices: int | None = Field(default=None, ge=1, le=4096)

    def on(self, scan: Volume) -> EditFunction:
        """The edit as a session applies it."""
        return partial(editing.lasso, polygon=self.polygon, axis=self.axis, add=self.add, slices=self.slices or 1)


class FillEdit(Strict):
    """Fill what the object encloses, in 3D or in each slice."""

    kind: Literal["fill"]
    axis: Axis | None = None

    def on(self, scan: Volume) -> EditFunction:
        """The edit as a session applies it."""
        return partial(editing.fill_holes, axis=self.axis)


class SmoothEdit(Strict):
    """Smooth the object, keeping its volume."""

    kind: Literal["smooth"]
    sd_mm: float = Field(gt=0, le=50, description="Of the Gaussian.")

    def on(self, scan: Volume) -> EditFunction:
        """The edit as a session applies it."""
        return partial(editing.smooth, sigma_mm=self.sd_mm)


class ComponentEdit(Strict):
    """Keep the component at a voxel and clear the others, or the other way round."""

    kind: Literal["component"]
    index: Place
    keep: bool

    def on(self, scan: Volume) -> EditFunction:
        """The edit as a session applies it."""
        return partial(editing.keep_component if self.keep else editing.remove_component, index=self.index)


class InterpolateEdit(Strict):
    """Fill the empty slices between those in which the object was drawn."""

    kind: Literal["interpolate"]
    axis: Axis

    def on(self, scan: Volume) -> EditFunction:
        """The edit as a session applies it."""
        return partial(editing.interpolate_slices, axis=self.axis)


AnyEdit = Annotated[
    BrushEdit | LassoEdit | FillEdit | SmoothEdit | ComponentEdit | InterpolateEdit, Field(discriminator="kind")
]


class Edits(Strict):
    """Edits of the current object that belong together: one step of undo."""

    edits: list[AnyEdit] = Field(min_length=1, max_length=MAX_EDITS)


def check_work(edits: tuple[AnyEdit, ...], grid: Grid) -> None:
    """Raises PromptError for brushes so large that everyone else would have to wait."""
    voxels = sum(edit.voxels(grid) for edit in edits if isinstance(edit, BrushEdit))
    if voxels > MAX_BRUSH_VOXELS:
        given = f"strokes over {voxels:,} voxels"
        raise PromptError(given, f"at most {MAX_BRUSH_VOXELS:,} in one step", "choose a smaller brush, or send less")


class ObjectType(Strict):
    """The type of an object: a code as in DICOM, of SNOMED CT or another scheme."""

    value: str = Field(min_length=1, max_length=16, pattern=r"^[^\\]+$", examples=["108369006"])
    scheme: str = Field(default="SCT", min_length=1, max_length=16, pattern=r"^[^\\]+$")
    meaning: str = Field(min_length=1, max_length=64, pattern=r"^[^\\]+$", examples=["Neoplasm"])

    @classmethod
    def of(cls, code: Code) -> ObjectType:
        """The message of a code."""
        return cls(value=code.value, scheme=code.scheme, meaning=code.meaning)


class Description(Strict):
    """Changes to an object's name, type and display; what is left out stays as it is."""

    name: str | None = Field(
        default=None, min_length=1, max_length=LONGEST_NAME, pattern=r"^[^\\\x00-\x1f]*\S[^\\\x00-\x1f]*$"
    )
    colour: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$", examples=["#ff5a5f"])
    visible: bool | None = None
    locked: bool | None = Field(default=None, description="Whether no other object takes its voxels: a step.")
    type: ObjectType | None = None

    def of(self, info: SegmentInfo) -> SegmentInfo:
        """The object's info with these changes."""
        colour = info.colour if self.colour is None else tuple(bytes.fromhex(self.colour[1:]))
        return SegmentInfo(
            info.name if self.name is None else self.name,
            colour,  # type: ignore[arg-type]
            info.type if self.type is None else Code(self.type.value, self.type.scheme, self.type.meaning),
            info.description,
            info.visible if self.visible is None else self.visible,
        )


class Switches(Strict):
    """Settings of how masks are made; each change is a step."""

    overlap: bool | None = Field(default=None, description="Whether objects may share voxels.")
    keep_clicked: bool | None = Field(
        default=None, description="Of what the network finds, only the components that hold a positive click."
    )


class KeptMask(Strict):
    """A loaded mask in a journal: its file may be gone when the work is resumed."""

    name: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    bits: str  # base64 of zlib of a bit for each voxel of the box, C order

    @classmethod
    def of(cls, name: str, region: Region, notes: tuple[str, ...] = ()) -> KeptMask:
        """A region as it is kept; a name that is not valid for a segment is left out."""
        low, high = tuple(part.start for part in region.box), tuple(part.stop for part in region.box)
        bits = base64.b64encode(zlib.compress(region.bits.tobytes())).decode()
        return cls(name=name if is_name(name) else "", low=low, high=high, notes=notes, bits=bits)

    @property
    def region(self) -> Region:
        """The region as it was loaded."""
        box: Slices = tuple(map(slice, self.low, self.high))  # type: ignore[assignment]
        return Region(box, np.frombuffer(zlib.decompress(base64.b64decode(self.bits)), np.uint8))

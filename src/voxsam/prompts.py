"""Prompts: clicks, boxes, scribbles and mask hints, kept in world millimetres; each becomes a few clicks.

The model samples prompt features at the clicks (paper, Sec. 3.3: "other prompts ... can be transformed into points
through sampling"), so every prompt is reduced to points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from voxsam.boxes import bounding_box
from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.preprocess import Slices
from voxsam.volume import Volume

MAX_POINTS = 10  # per polarity from a scribble or hint; the released model was trained with 10 in the tumour
MAX_HINT_LABELS = 32  # non-zero values in a mask hint, at most: a scan has more
MAX_LOOKED_AT = 1_000_000  # voxels of a hint in which values are counted, at most
MAX_CANDIDATES = 20_000  # voxels considered when points are spread over a region
SCRIBBLE_POSITIVE, SCRIBBLE_NEGATIVE = 1, 2

World = tuple[float, float, float]


@dataclass(frozen=True)
class Point:
    """A click at RAS+ millimetres: "this is the tumour", or with `positive=False` "this is not"."""

    world_mm: World
    positive: bool = True

    @classmethod
    def at_index(cls, grid: Grid, index: Sequence[float], positive: bool = True) -> Point:
        """A click on voxel (i, j, k) of a grid. Raises PromptError unless they are three finite numbers on it."""
        return cls(_world(grid, index, "click"), positive)

    def index_on(self, scan: Grid) -> tuple[float, float, float]:
        """(i, j, k) of the click on a scan, rounded to a thousandth of a voxel: the index as it was given."""
        i, j, k = (scan.world_to_index(self.world_mm).round(3) + 0.0).tolist()  # + 0.0: no -0
        return i, j, k

    def points(self, scan: Grid) -> list[Point]:
        """The click itself. Raises PromptError if it lies outside the scan."""
        _require_inside(scan, self.world_mm, "click")
        return [self]


@dataclass(frozen=True)
class Box:
    """Two opposite corners, in RAS+ mm, of a box along the scan's axes that holds the whole tumour."""

    corner_mm: World
    opposite_mm: World
    click_mm: World | None = None  # a point surely inside the tumour; None: the middle of the box

    @classmethod
    def at_index(cls, grid: Grid, low: Sequence[float], high: Sequence[float]) -> Box:
        """The box from voxel `low` to voxel `high`, both included; any two opposite corners will do."""
        return cls(_world(grid, low, "box corner"), _world(grid, high, "box corner"))

    def index_range(self, scan: Grid) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        """First and last voxel (3,) of the scan inside the box."""
        corners = scan.voxel_of(scan.world_to_index([self.corner_mm, self.opposite_mm]))
        return corners.min(0), corners.max(0)

    def points(self, scan: Grid) -> list[Point]:
        """One click, at `click_mm` or the middle. Raises PromptError if it or a corner lies outside the scan."""
        for corner in (self.corner_mm, self.opposite_mm):
            _require_inside(scan, corner, "box corner")
        if self.click_mm is not None:
            return Point(self.click_mm).points(scan)
        middle = (np.array(self.corner_mm) + np.array(self.opposite_mm)) / 2
        return [Point(tuple(middle.tolist()))]


@dataclass(frozen=True, eq=False)
class Scribble:
    """Strokes as a label volume on any grid: 1 is tumour, 2 is not; at least some of them lie on the scan."""

    volume: Volume

    def points(self, scan: Grid) -> list[Point]:
        """Up to ten clicks of each polarity, spread over all strokes.

        Raises PromptError if no stroke lies on the scan, or for values other than 0, 1 and 2.
        """
        highest, lowest = self.volume.array.max(), self.volume.array.min()
        if lowest < 0 or highest > SCRIBBLE_NEGATIVE:
            given = f"a scribble with values from {lowest:g} to {highest:g}"
            raise PromptError(given, "0, 1 (tumour) and 2 (not tumour)", "give the label file, not the scan")
        labels, grid = _part_on_scan(self.volume, scan, "scribble"), self.volume.grid
        found = []
        for value, positive in ((SCRIBBLE_POSITIVE, True), (SCRIBBLE_NEGATIVE, False)):
            chosen = spread(labels == value, grid.spacing_mm, inner=False)
            found += [Point(_triple(world), positive) for world in grid.index_to_world(chosen)]
        if not found:
            raise PromptError("a scribble without strokes", "voxels of 1 (tumour) or 2 (not tumour)", "draw a stroke")
        return found


@dataclass(frozen=True, eq=False)
class MaskHint:
    """A rough mask of the tumour (non-zero is inside) on any grid; some of it lies on the scan."""

    volume: Volume

    def points(self, scan: Grid) -> list[Point]:
        """Up to ten clicks spread over the inside of the mask, the first at its deepest point.

        Raises PromptError if no part of the mask lies on the scan, or if the volume is a scan rather than a mask.
        """
        values = self.volume.array[self.volume.array != 0]
        count = len(np.unique(values[:: 1 + len(values) // MAX_LOOKED_AT]))
        if count > MAX_HINT_LABELS:
            given, expected = (
                f"a mask hint with {count} different values",
                "0 outside the tumour, a label or a few inside",
            )
            raise PromptError(given, expected, "give the label file, not a scan")
        inside, grid = _part_on_scan(self.volume, scan, "mask hint") != 0, self.volume.grid
        if not inside.any():
            raise PromptError("an empty mask hint", "a mask with voxels of the tumour in it", "leave the hint out")
        return [Point(_triple(world)) for world in grid.index_to_world(spread(inside, grid.spacing_mm))]


Prompt = Point | Box | Scribble | MaskHint


def prompts_bytes(prompts: Iterable[Prompt]) -> int:
    """Bytes that the labels of scribbles and hints take."""
    return sum(prompt.volume.array.nbytes for prompt in prompts if isinstance(prompt, Scribble | MaskHint))


def common_box(prompts: Sequence[Prompt], clicks: Sequence[Point], scan: Grid) -> Slices | None:
    """The hull of all boxes, in scan voxels; None without boxes, or if a positive one of `clicks` lies outside it."""
    ranges = [prompt.index_range(scan) for prompt in prompts if isinstance(prompt, Box)]
    if not ranges:
        return None
    low, high = np.min([r[0] for r in ranges], axis=0), np.max([r[1] for r in ranges], axis=0)
    at = scan.world_to_index([click.world_mm for click in clicks if click.positive])
    if (at < low - 0.5).any() or (at > high + 0.5).any():
        return None
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def spread(
    region: NDArray[np.bool_], spacing_mm: NDArray[np.float64], count: int = MAX_POINTS, *, inner: bool = True
) -> NDArray[np.int_]:
    """(n, 3) up to `count` voxels of a region: first the deepest, then always the one farthest from those before.

    Deterministic. With `inner`, only the inner half (by depth) of the region is used, so that specks, and an outline
    drawn slightly too wide, do not matter.
    """
    if not region.any():
        return np.empty((0, 3), dtype=int)
    box = bounding_box(region)
    depth = np.asarray(scipy.ndimage.distance_transform_edt(np.pad(region[box], 1), sampling=spacing_mm))
    depth = depth[1:-1, 1:-1, 1:-1]
    candidates = np.argwhere(depth >= depth.max() / 2 if inner else region[box])
    candidates = candidates[:: max(1, len(candidates) // MAX_CANDIDATES)]
    deepest = np.array(np.unravel_index(depth.argmax(), depth.shape))
    chosen = [deepest]
    distance = np.linalg.norm((candidates - deepest) * spacing_mm, axis=1)
    while len(chosen) < count and distance.max() > 0:
        chosen.append(candidates[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm((candidates - chosen[-1]) * spacing_mm, axis=1))
    return np.array(chosen) + [b.start for b in box]


def _world(grid: Grid, index: Sequence[float], what: str) -> World:
    try:
        at = np.asarray(index, dtype=float)
    except (TypeError, ValueError):
        at = np.empty(0)
    if at.shape != (3,) or not np.isfinite(at).all():
        raise PromptError(f"{what} {index}", "three numbers i, j, k", "give the voxel's index on each axis")
    _require_on(grid, at, what)
    return _triple(grid.index_to_world(at))


def _triple(world_mm: NDArray[np.float64]) -> World:
    return tuple(world_mm.tolist())  # type: ignore[return-value]


def _require_inside(scan: Grid, world_mm: ArrayLike, what: str) -> None:
    if np.shape(world_mm) != (3,) or not np.isfinite(world_mm).all():
        given, remedy = f"a {what} at {world_mm}", "give RAS+ coordinates, or the voxel's index"
        raise PromptError(given, "three numbers x, y, z in millimetres", remedy)
    _require_on(scan, scan.world_to_index(world_mm), what)


def _require_on(scan: Grid, index: NDArray[np.float64], what: str) -> None:
    # Millimetres written with a few digits may be off by a thousandth of a voxel.
    index = np.round(index, 3) + 0.0  # + 0.0: no -0
    if not scan.contains(index):
        at = ", ".join(f"{v:.4g}" for v in index)
        last = ", ".join(str(n - 1) for n in scan.shape)
        raise PromptError(
            f"a {what} outside the scan, at voxel ({at})",
            f"a voxel from (0, 0, 0) to ({last})",
            "check the order i, j, k of the file's array, or use millimetres (RAS+)",
        )


def _part_on_scan(volume: Volume, scan: Grid, what: str) -> NDArray:
    """The labels on their own grid, set to 0 outside the scan. Raises PromptError if all of them lie outside.

    Resampling them to the scan would lose strokes between its voxels.
    """
    ends = np.stack(np.meshgrid(*((0, n - 1) for n in volume.grid.shape), indexing="ij"), -1)
    if scan.contains(volume.grid.index_in(scan, ends)).all():  # then so do all voxels between them
        return volume.array
    labelled = np.argwhere(volume.array != 0)
    inside = labelled[scan.contains(volume.grid.index_in(scan, labelled))]
    if len(labelled) and not len(inside):
        middle, corners = volume.grid.index_to_world(labelled.mean(axis=0)), scan.corners_world_mm()
        raise PromptError(
            f"a {what} that lies elsewhere: about {_place(middle)}, and the scan from {_place(corners.min(0))}"
            f" to {_place(corners.max(0))} mm (RAS+)",
            "labels that lie on the scan",
            "check that both show the same patient and study",
        )
    part = np.zeros_like(volume.array)
    part[tuple(inside.T)] = volume.array[tuple(inside.T)]
    return part


def _place(world_mm: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{v:g}' for v in np.rint(world_mm) + 0.0)})"  # + 0.0: no -0

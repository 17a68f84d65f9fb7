"""Planes of a scan as a radiologist expects them, to scale, with a mask's contours and the clicks.

Every plane is a Grid of one slice whose first index runs to the viewer's right, and the second down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import ArrayLike, NDArray

from voxsam.boxes import crop_to_objects, labels_of
from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.io.segments import COLOURS, in_hex
from voxsam.resample import resample
from voxsam.volume import Volume

# To the right, down, through the plane. Radiological: the patient's left is at the viewer's right.
PLANE_AXES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Plane:
    """One slice of a scan's grid, oriented for display; coordinates on it are mm from its top left corner."""

    name: str
    grid: Grid  # (columns, rows, 1)

    @classmethod
    def through(cls, name: str, grid: Grid, index: ArrayLike, side_mm: float = np.inf) -> Plane:
        """The plane `name` of `grid` through `index`, cropped to at most `side_mm` around it and to the grid."""
        turned = grid.reorient(PLANE_AXES[name])
        at = np.clip(np.rint(grid.index_in(turned, index)).astype(int), 0, np.array(turned.shape) - 1)
        start, shape = [0, 0, int(at[2])], [turned.shape[0], turned.shape[1], 1]
        for axis in (0, 1):
            length = int(min(np.ceil(side_mm / turned.spacing_mm[axis]), turned.shape[axis]))
            start[axis] = int(np.clip(at[axis] - length // 2, 0, turned.shape[axis] - length))
            shape[axis] = length
        return cls(name, turned.crop(start, shape))

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height in mm."""
        width, height = (n * s for n, s in zip(self.grid.shape[:2], self.grid.spacing_mm[:2], strict=True))
        return float(width), float(height)

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """The patient's directions at the left, right, top and bottom edge."""
        right, down, _ = self.grid.axes
        return OPPOSITE[right], right, OPPOSITE[down], down

    def read(self, volume: Volume) -> NDArray[np.float32]:
        """(rows, columns) voxels of a volume on the grid from which the plane was cut."""
        return resample(volume, self.grid, "nearest")[:, :, 0].T

    def place_mm(self, grid: Grid, index: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(..., 3) indices of `grid` -> (..., 2) mm to the right and down on the plane, and (...) mm off the plane."""
        at = (grid.index_in(self.grid, index) + [0.5, 0.5, 0]) * self.grid.spacing_mm
        return at[..., :2], at[..., 2]


def three_planes(grid: Grid, index: ArrayLike, side_mm: float = np.inf) -> list[Plane]:
    """Axial, coronal, sagittal through `index`."""
    return [Plane.through(name, grid, index, side_mm) for name in PLANE_AXES]


ShownClick = tuple[Sequence[float], bool]  # index (i, j, k) on the scan, and whether it is positive
Window = Literal["auto"] | tuple[float, float]  # level and width

SOFT_TISSUE_HU = (40.0, 400.0)
BACKGROUND, PANEL, INK, FAINT = "#0b0e13", "#000000", "#e8edf4", "#8a96a8"
OBJECT_COLOURS = tuple(map(in_hex, COLOURS))
TRUTH, POSITIVE, NEGATIVE = "#ffffff", "#4dff88", "#ff3b30"
# keeps letters readable on bright tissue
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground="#000000b0")]
CLICK_REACH_MM = 5.0  # a click is shown on planes at most this far away
SCALE_BAR_MM = 50.0
VIEW_MM = (150.0, 2.1)  # the planes show at least this many mm, or this many times the longest side of the mask


@dataclass(frozen=True)
class Scene:
    """What all panels have in common."""

    scan: Volume
    mask: Volume
    objects: Volume  # the part of the mask that is not background
    clicks: Sequence[ShownClick]
    truth: Volume | None
    limits: tuple[float, float]  # black and white
    labels: list[int]

    def colour(self, label: int) -> str:
        return OBJECT_COLOURS[self.labels.index(label) % len(OBJECT_COLOURS)]

    @classmethod
    def of(
        cls,
        scan: Volume,
        mask: Volume,
        clicks: Sequence[ShownClick],
        window: Window = "auto",
        truth: Volume | None = None,
    ) -> Scene:
        """The scene of a mask, and optionally a `truth`, on the scan's grid. Raises GeometryError for another grid."""
        for name, other in (("mask", mask), ("truth", truth)):
            if other is not None and not other.grid.close_to(scan.grid):
                raise GeometryError(f"a {name} on {other.grid}", f"the scan's {scan.grid}", "resample it onto the scan")
        objects = crop_to_objects(mask)
        if window == "auto" and scan.modality != "CT":
            sample = scan.array[tuple(slice(None, None, max(1, n // 64)) for n in scan.array.shape)]
            low, high = np.percentile(sample, (1, 99.5))
            limits = float(low), float(max(high, low + 1e-6))
        else:
            level, width = SOFT_TISSUE_HU if window == "auto" else window
            limits = level - width / 2, level + width / 2
        return cls(scan, mask, objects, clicks, truth, limits, labels_of(objects))

    def middle(self) -> NDArray[np.float64]:
        """The index through which the planes go: a positive click in the mask, or the middle of the largest object."""
        positive = [np.asarray(index, dtype=float) for index, is_positive in self.clicks if is_positive]
        shape, objects = np.array(self.mask.grid.shape), self.objects
        if not self.labels:
            return positive[0] if positive else (shape - 1) / 2
        for index in positive:
            if self.mask.array[tuple(np.clip(np.rint(index).astype(int), 0, shape - 1))]:
                return index
        largest = max(self.labels, key=lambda label: np.count_nonzero(objects.array == label))
        voxels = np.argwhere(objects.array == largest)
        middle = voxels[((voxels - voxels.mean(0)) ** 2 @ objects.grid.spacing_mm**2).argmin()]
        return objects.grid.index_in(self.mask.grid, middle)

    def planes(self, centre: ArrayLike | None = None) -> list[Plane]:
        """Axial, coronal and sagittal through `centre`, a scan index, or the middle, as wide as VIEW_MM says."""
        side_mm, (least, times) = np.inf, VIEW_MM
        if self.labels:
            side_mm = max(least, times * float((self.objects.grid.shape * self.objects.grid.spacing_mm).max()))
        return three_planes(self.scan.grid, self.middle() if centre is None else centre, side_mm)


def draw_plane(axes: Axes, scene: Scene, plane: Plane, others: Sequence[Plane], shown_mm: float = 0.0) -> None:
    """Draw one plane with everything on it, and faint lines where the `others` cut it; at least `shown_mm` wide."""
    width, height = plane.size_mm
    axes.set_facecolor(PANEL)
    low, high = scene.limits
    image = np.clip((plane.read(scene.scan) - low) / (high - low), 0, 1)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="bicubic")
    mask = plane.read(scene.mask)
    for label in scene.labels:
        _outline(axes, plane, mask == label, scene.colour(label), 1.8, "solid")
        tint = np.zeros((*mask.shape, 4))
        tint[mask == label] = (*to_rgb(scene.colour(label)), 0.16)
        axes.imshow(tint, extent=(0, width, height, 0), interpolation="nearest")
    if scene.truth is not None:
        _outline(axes, plane, plane.read(scene.truth) != 0, TRUTH, 1.3, "dashed")
    side = max(width, height, shown_mm)  # a square with the plane in its middle: panels of one size have one scale
    axes.set(xlim=((width - side) / 2, (width + side) / 2), ylim=((height + side) / 2, (height - side) / 2))
    axes.set(aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color("#232b38")
    for other in others:
        middle = (np.array(other.grid.shape) - 1) / 2
        ends = [middle + np.array(step) for step in ((-1e3, 0, 0), (1e3, 0, 0), (0, -1e3, 0), (0, 1e3, 0))]
        places, depths = plane.place_mm(other.grid, np.array(ends))
        first, second = (0, 1) if abs(depths[0] - depths[1]) < abs(depths[2] - depths[3]) else (2, 3)
        axes.plot(*places[[first, second]].T, color="#6fb7ff", linewidth=0.6, alpha=0.35, scalex=False, scaley=False)
    _draw_clicks(axes, scene, plane)
    _draw_letters(axes, plane)
    _draw_scale_bar(axes)


def _outline(axes: Axes, plane: Plane, inside: NDArray[np.bool_], colour: str, width: float, style: str) -> None:
    if inside.any():
        padded = np.pad(inside, 1).astype(float)  # contours close at the border of the scan
        columns, rows = (
            (np.arange(n + 2) - 0.5) * s for n, s in zip(plane.grid.shape, plane.grid.spacing_mm[:2], strict=False)
        )
        axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=style)


def _draw_clicks(axes: Axes, scene: Scene, plane: Plane) -> None:
    reach = max(CLICK_REACH_MM, float(plane.grid.spacing_mm[2]))
    for index, positive in scene.clicks:
        (x, y), depth = plane.place_mm(scene.scan.grid, np.asarray(index, dtype=float))
        if abs(depth) > reach:
            continue
        colour = POSITIVE if positive else NEGATIVE
        ring = {"markersize": 13, "markerfacecolor": "none"}
        axes.plot([x], [y], "o", markeredgecolor="black", markeredgewidth=3.4, alpha=0.6, **ring)
        axes.plot([x], [y], "o", markeredgecolor=colour, markeredgewidth=1.8, **ring)
        axes.plot([x], [y], "+" if positive else "x", markersize=7, markeredgecolor=colour, markeredgewidth=1.8)


def _draw_letters(axes: Axes, plane: Plane) -> None:
    left, right, top, bottom = plane.letters
    big = plane.name == "axial"
    edge, size = (0.02, 13) if big else (0.035, 10)
    places = ((left, edge, 0.5), (right, 1 - edge, 0.5), (top, 0.5, 1 - edge), (bottom, 0.5, edge))
    sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    style = {"transform": axes.transAxes, "path_effects": HALO}
    for (letter, x, y), (across, along) in zip(places, sides, strict=True):
        axes.text(x, y, letter, color=INK, fontsize=size, fontweight="bold", ha=across, va=along, **style)
    axes.text(edge, 1 - edge, plane.name.capitalize(), color="#b9c4d4", fontsize=size - 1, ha="left", va="top", **style)


def _draw_scale_bar(axes: Axes) -> None:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    side = right - left
    end, level = right - 0.045 * side, bottom + 0.045 * (top - bottom)
    style = {"color": INK, "linewidth": 2.4, "solid_capstyle": "butt", "path_effects": HALO}
    axes.plot([end - SCALE_BAR_MM, end], [level, level], **style)
    x, y = end - SCALE_BAR_MM / 2, level - 0.012 * side
    axes.text(x, y, "5 cm", color=INK, fontsize=9, ha="center", va="bottom", path_effects=HALO)

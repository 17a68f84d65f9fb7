"""One picture of a result: axial, coronal and sagittal planes with contours and clicks, and a shaded 3D view."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray

from voxsam.errors import GeometryError
from voxsam.evaluation.metrics import Diameter, crop_to_objects, dice, labels_of, longest_axial_diameter, volume_ml
from voxsam.evaluation.planes import Plane, three_planes
from voxsam.evaluation.view3d import draw_scene
from voxsam.geometry import Grid
from voxsam.io.atomic import atomic_path
from voxsam.volume import Volume

Click = tuple[Sequence[float], bool]  # index (i, j, k) on the scan, and whether it is positive
Window = Literal["auto"] | tuple[float, float]  # level and width

SOFT_TISSUE_HU = (40.0, 400.0)
BACKGROUND, PANEL, INK, FAINT = "#0b0e13", "#000000", "#e8edf4", "#8a96a8"
OBJECT_COLOURS = ("#ff5a5f", "#3ec5ff", "#ffc247", "#7ee081", "#c58bff", "#ff8fd2")
TRUTH, POSITIVE, NEGATIVE = "#ffffff", "#4dff88", "#ff3b30"
SIZE_INCHES, DPI = (16.0, 9.0), 100
HALO: list[AbstractPathEffect] = [
    withStroke(linewidth=2.5, foreground="#000000b0")
]  # keeps letters readable on bright tissue
CLICK_REACH_MM = 5.0  # a click is shown on planes at most this far away
SCALE_BAR_MM = 50.0
VIEW_MM = (150.0, 2.1)  # the planes show at least this much, or so many times the longest side of the mask


@dataclass(frozen=True)
class Scene:
    """What all panels share."""

    scan: Volume
    mask: Volume
    objects: Volume  # the part of the mask that is not background
    clicks: Sequence[Click]
    truth: Volume | None
    limits: tuple[float, float]  # black and white
    labels: list[int]

    def colour(self, label: int) -> str:
        return OBJECT_COLOURS[self.labels.index(label) % len(OBJECT_COLOURS)]


def overview_figure(
    scan: Volume,
    mask: Volume,
    clicks: Sequence[Click],
    path: str | os.PathLike[str],
    *,
    truth: Volume | None = None,
    window: Window = "auto",
    title: str = "",
    centre: Sequence[float] | None = None,
) -> None:
    """Write a PNG of 1600 x 900 pixels: three planes through the first positive click in the mask, and a 3D view.

    `mask` (labels, 0 background) and `truth` lie on the scan's grid; clicks are (index, positive). Without such a click
    the planes go through the middle of the mask; with an empty mask, through the first click or the middle of the scan.
    `centre`, an index (i, j, k), is another place for them.
    Raises GeometryError for another grid, FileError if `path` cannot be written.
    """
    for name, other in (("mask", mask), ("truth", truth)):
        if other is not None and not other.grid.close_to(scan.grid):
            raise GeometryError(f"a {name} on {other.grid}", f"the scan's {scan.grid}", "resample it onto the scan")
    objects = crop_to_objects(mask)
    scene = Scene(scan, mask, objects, clicks, truth, _limits(scan, window), labels_of(objects))
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    through = _centre(scene) if centre is None else centre
    planes = three_planes(scan.grid, through, _side_mm(scene))
    boxes = ((0.012, 0.062, 0.478, 0.85), (0.498, 0.492, 0.236, 0.42), (0.498, 0.062, 0.236, 0.42))
    diameters = {label: longest_axial_diameter(objects, label) for label in scene.labels}
    for plane, box in zip(planes, boxes, strict=True):
        _draw_plane(figure.add_axes(box), scene, plane, [p for p in planes if p is not plane], diameters)
    draw_scene(
        figure.add_axes((0.742, 0.252, 0.246, 0.66)), scan, objects, [to_rgb(scene.colour(n)) for n in scene.labels]
    )
    _write_facts(figure, scene, diameters)
    _write_header(figure, scene, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=BACKGROUND)


# What is shown


def _limits(scan: Volume, window: Window) -> tuple[float, float]:
    if window == "auto" and scan.modality != "CT":
        sample = scan.array[tuple(slice(None, None, max(1, n // 64)) for n in scan.array.shape)]
        low, high = np.percentile(sample, (1, 99.5))
        return float(low), float(max(high, low + 1e-6))
    level, width = SOFT_TISSUE_HU if window == "auto" else window
    return level - width / 2, level + width / 2


def _centre(scene: Scene) -> NDArray[np.float64]:
    """The index through which the planes go."""
    positive = [np.asarray(index, dtype=float) for index, is_positive in scene.clicks if is_positive]
    shape = np.array(scene.mask.grid.shape)
    if not scene.labels:
        return positive[0] if positive else (shape - 1) / 2
    for index in positive:
        if scene.mask.array[tuple(np.clip(np.rint(index).astype(int), 0, shape - 1))]:
            return index
    objects = scene.objects
    largest = max(scene.labels, key=lambda label: volume_ml(objects, label))
    voxels = np.argwhere(objects.array == largest)
    middle = voxels[((voxels - voxels.mean(0)) ** 2 @ objects.grid.spacing_mm**2).argmin()]
    return objects.grid.index_in(scene.mask.grid, middle)


def _side_mm(scene: Scene) -> float:
    least, times = VIEW_MM
    if not scene.labels:
        return np.inf
    return max(least, times * float((scene.objects.grid.shape * scene.objects.grid.spacing_mm).max()))


# The planes


def _draw_plane(
    axes: Axes, scene: Scene, plane: Plane, others: Sequence[Plane], diameters: dict[int, Diameter | None]
) -> None:
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
    _square_view(axes, width, height)
    _draw_crosshair(axes, plane, others)
    _draw_clicks(axes, scene, plane)
    _draw_letters(axes, plane)
    _draw_scale_bar(axes)
    if plane.name == "axial":
        _draw_diameters(axes, scene, plane, diameters)


def _outline(axes: Axes, plane: Plane, inside: NDArray[np.bool_], colour: str, width: float, style: str) -> None:
    if inside.any():
        padded = np.pad(inside, 1).astype(float)  # contours close at the border of the scan
        columns, rows = (
            (np.arange(n + 2) - 0.5) * s for n, s in zip(plane.grid.shape, plane.grid.spacing_mm[:2], strict=False)
        )
        axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=style)


def _square_view(axes: Axes, width: float, height: float) -> None:
    """The plane in the middle of a square, so that all panels of one size have one scale."""
    side = max(width, height)
    axes.set_xlim((width - side) / 2, (width + side) / 2)
    axes.set_ylim((height + side) / 2, (height - side) / 2)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#232b38")


def _draw_crosshair(axes: Axes, plane: Plane, others: Sequence[Plane]) -> None:
    """Where the two other planes cut this one."""
    for other in others:
        middle = (np.array(other.grid.shape) - 1) / 2
        ends = [middle + np.array(step) for step in ((-1e3, 0, 0), (1e3, 0, 0), (0, -1e3, 0), (0, 1e3, 0))]
        places, depths = plane.place_mm(other.grid, np.array(ends))
        first, second = (0, 1) if abs(depths[0] - depths[1]) < abs(depths[2] - depths[3]) else (2, 3)
        axes.plot(*places[[first, second]].T, color="#6fb7ff", linewidth=0.6, alpha=0.35, scalex=False, scaley=False)


def _draw_clicks(axes: Axes, scene: Scene, plane: Plane) -> None:
    reach = max(CLICK_REACH_MM, float(plane.grid.spacing_mm[2]))
    for index, positive in scene.clicks:
        (x, y), depth = plane.place_mm(scene.scan.grid, np.asarray(index, dtype=float))
        if abs(depth) > reach:
            continue
        colour = POSITIVE if positive else NEGATIVE
        axes.plot(
            [x],
            [y],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor="black",
            markeredgewidth=3.4,
            alpha=0.6,
        )
        axes.plot([x], [y], "o", markersize=13, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8)
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
    line = axes.plot([end - SCALE_BAR_MM, end], [level, level], color=INK, linewidth=2.4, solid_capstyle="butt")[0]
    line.set_path_effects(HALO)
    text = axes.text(
        end - SCALE_BAR_MM / 2, level - 0.012 * side, "5 cm", color=INK, fontsize=9, ha="center", va="bottom"
    )
    text.set_path_effects(HALO)


def _draw_diameters(axes: Axes, scene: Scene, plane: Plane, diameters: dict[int, Diameter | None]) -> None:
    """Lines of RECIST diameters, on the slice that they were measured on."""
    for diameter in diameters.values():
        if diameter is None:
            continue
        places, depths = plane.place_mm(scene.objects.grid, diameter.ends)
        if np.abs(depths).max() < 0.5 * plane.grid.spacing_mm[2]:
            axes.plot(*places.T, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))


# The words


def _write_facts(figure: Figure, scene: Scene, diameters: dict[int, Diameter | None]) -> None:
    lines = []
    for label in scene.labels[:3]:
        diameter = diameters[label]
        length = f"{diameter.length_mm:.0f} mm" if diameter else ""
        lines.append((f"{volume_ml(scene.objects, label):,.1f} mL", length, scene.colour(label)))
    axes = figure.add_axes((0.742, 0.062, 0.246, 0.178))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    if not lines:
        axes.text(0.02, 0.85, "empty mask", color=INK, fontsize=20, va="center")
    for row, (volume, length, colour) in enumerate(lines):
        level = 0.87 - 0.27 * row
        axes.plot([0.025], [level], "s", color=colour, markersize=11)
        axes.text(0.075, level, volume, color=INK, fontsize=19, fontweight="bold", va="center")
        axes.text(0.985, level + 0.045, length, color=INK, fontsize=14, va="center", ha="right")
        axes.text(0.985, level - 0.085, "longest axial diameter", color=FAINT, fontsize=8.5, va="center", ha="right")
    notes = []
    if len(scene.labels) > len(lines):
        notes.append(f"and {len(scene.labels) - len(lines)} more objects")
    if scene.truth is not None:
        notes.append(f"Dice {dice(scene.mask.array, scene.truth.array):.3f} against the dashed contour")
    axes.text(0.02, 0.04, "   ".join(notes), color=INK, fontsize=11, va="bottom")


def _write_header(figure: Figure, scene: Scene, title: str) -> None:
    figure.text(0.012, 0.957, title, color=INK, fontsize=18, fontweight="bold", va="center", parse_math=False)
    positive = sum(is_positive for _, is_positive in scene.clicks)
    negative = len(scene.clicks) - positive
    clicks = (
        f"{positive} positive, {negative} negative clicks" if negative else f"{positive} click{'s' * (positive != 1)}"
    )
    figure.text(0.988, 0.957, clicks, color=FAINT, fontsize=13, va="center", ha="right")
    low, high = scene.limits
    unit = " HU" if scene.scan.modality == "CT" else ""
    left = f"level {(low + high) / 2:.4g}{unit}, width {high - low:.4g}{unit}   ·   {_size(scene.scan.grid)}"
    figure.text(0.012, 0.03, left, color=FAINT, fontsize=10, va="center")
    text = "radiological convention: the patient's left is at the right   ·   research use only"
    figure.text(0.988, 0.03, text, color=FAINT, fontsize=10, va="center", ha="right")


def _size(grid: Grid) -> str:
    voxels, spacing = " × ".join(map(str, grid.shape)), " × ".join(f"{s:.3g}" for s in grid.spacing_mm)
    return f"{voxels} voxels of {spacing} mm, axes {grid.axes}"

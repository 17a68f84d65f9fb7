"""Pictures of a scan with its mask: an overview as a PNG file, and what a notebook shows for a session."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from voxsam.atomic import atomic_path
from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.io.nifti import write
from voxsam.report.metrics import Diameter, dice, longest_axial_diameter, perpendicular_diameter, volume_ml
from voxsam.report.panels import (
    BACKGROUND,
    FAINT,
    INK,
    OBJECT_COLOURS,
    Plane,
    Scene,
    ShownClick,
    Window,
    draw_plane,
    middle,
    side_mm,
    three_planes,
)
from voxsam.report.view3d import draw_scene
from voxsam.volume import Volume

SIZE_INCHES, DPI = (16.0, 9.0), 100


def overview_figure(
    scan: Volume,
    mask: Volume,
    clicks: Sequence[ShownClick],
    path: str | os.PathLike[str],
    *,
    truth: Volume | None = None,
    title: str = "",
    centre: Sequence[float] | None = None,
) -> None:
    """Write a PNG of 1600 x 900 pixels: three planes through the first positive click in the mask, and a 3D view.

    `mask` (labels, 0 background) and `truth` lie on the scan's grid; clicks are (index, positive). Without such a click
    the planes go through the middle of the mask; with an empty mask, through the first click or the middle of the scan.
    Instead they go through `centre`, an index (i, j, k), if it is given. Raises GeometryError for another grid,
    FileError if `path` cannot be written.
    """
    scene = Scene.of(scan, mask, clicks, "auto", truth)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    through = middle(scene) if centre is None else centre
    planes = three_planes(scan.grid, through, side_mm(scene))
    boxes = ((0.012, 0.062, 0.478, 0.85), (0.498, 0.492, 0.236, 0.42), (0.498, 0.062, 0.236, 0.42))
    diameters = {label: _diameters(scene.objects, label) for label in scene.labels}
    for plane, box in zip(planes, boxes, strict=True):
        axes = figure.add_axes(box)
        draw_plane(axes, scene, plane, [p for p in planes if p is not plane])
        if plane.name == "axial":
            _draw_diameters(axes, scene, plane, diameters)
    draw_scene(
        figure.add_axes((0.742, 0.252, 0.246, 0.66)),
        scan,
        scene.objects,
        [to_rgb(scene.colour(n)) for n in scene.labels],
    )
    _write_facts(figure, scene, diameters)
    _write_header(figure, scene, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=BACKGROUND)


def _diameters(objects: Volume, label: int) -> list[Diameter]:
    """The longest axial diameter of a label and its perpendicular; none if it has no voxels."""
    longest = longest_axial_diameter(objects, label)
    return [] if longest is None else [longest, perpendicular_diameter(objects, longest, label)]


def _draw_diameters(axes: Axes, scene: Scene, plane: Plane, diameters: dict[int, list[Diameter]]) -> None:
    """Draw the RECIST diameters, if this is the slice on which they were measured."""
    for diameter in (line for lines in diameters.values() for line in lines):
        places, depths = plane.place_mm(scene.objects.grid, diameter.ends)
        if np.abs(depths).max() < 0.5 * plane.grid.spacing_mm[2]:
            axes.plot(*places.T, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))


# Text


def _write_facts(figure: Figure, scene: Scene, diameters: dict[int, list[Diameter]]) -> None:
    lines = []
    for label in scene.labels[:3]:
        length = " × ".join(f"{line.length_mm:.0f}" for line in diameters[label]) + " mm"
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
        axes.text(
            0.985,
            level - 0.085,
            "longest axial × perpendicular",
            color=FAINT,
            fontsize=8.5,
            va="center",
            ha="right",
        )
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


CELL_INCHES, CELL_DPI = (12.0, 4.3), 80  # 960 x 344 pixels: the width of a notebook's cell
VIEWER_HEIGHT = 480


class Picture:
    """A PNG that Jupyter shows if it is the last line of a cell; `png` holds its bytes."""

    def __init__(self, png: bytes, words: str) -> None:
        self.png, self.words = png, words

    def __repr__(self) -> str:
        return self.words

    def _repr_png_(self) -> bytes:
        """The PNG's bytes, as IPython asks for them."""
        return self.png

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PNG. Raises FileError if `path` cannot be written."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.png)


def picture(
    scan: Volume,
    mask: Volume,
    clicks: Sequence[ShownClick],
    *,
    centre: Sequence[float] | None = None,
    window: Window = "auto",
) -> Picture:
    """Axial, coronal and sagittal planes, to scale, through the first positive click in the mask or its middle.

    With `centre`, an index (i, j, k), they go through that instead; `window` is level and width.
    """
    scene = Scene.of(scan, mask, clicks, window)
    figure = Figure(figsize=CELL_INCHES, dpi=CELL_DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    planes = three_planes(scan.grid, middle(scene) if centre is None else centre, side_mm(scene))
    shown_mm = max(length for plane in planes for length in plane.size_mm)  # one scale for all three
    for number, plane in enumerate(planes):
        axes = figure.add_axes((0.005 + number * 0.332, 0.075, 0.326, 0.91))
        draw_plane(axes, scene, plane, [other for other in planes if other is not plane], shown_mm)
    words = _words(scene)
    figure.text(0.008, 0.034, words, color=INK, fontsize=11, va="center")
    note = "patient's left at the right · research use only"
    figure.text(0.992, 0.034, note, color=FAINT, fontsize=9, ha="right", va="center")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=BACKGROUND)
    return Picture(stream.getvalue(), words)


THUMBNAIL_INCHES, THUMBNAIL_DPI = (1.6, 1.6), 100


def thumbnail(scan: Volume, mask: Volume | None = None) -> bytes:
    """A PNG of 160 x 160 pixels: the axial plane through the outlined mask, or through the middle of the scan."""
    empty = scan.with_array(np.zeros(scan.grid.shape, np.uint8), "SEG") if mask is None else mask
    scene = Scene.of(scan, empty, ())
    plane = Plane.through("axial", scan.grid, middle(scene))
    figure = Figure(figsize=THUMBNAIL_INCHES, dpi=THUMBNAIL_DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    width, height = plane.size_mm
    low, high = scene.limits
    axes.imshow(plane.read(scan), cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0))
    if mask is not None:
        inside = plane.read(mask.with_array((mask.array > 0).astype(np.uint8)))
        y, x = ((np.arange(n) + 0.5) * length / n for n, length in zip(inside.shape, (height, width), strict=True))
        if 0 < inside.sum() < inside.size:
            axes.contour(x, y, inside, levels=[0.5], colors=[OBJECT_COLOURS[0]], linewidths=1)
    axes.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=BACKGROUND)
    return stream.getvalue()


def viewer(scan: Volume, mask: Volume, window: Window = "auto") -> Any:
    """NiiVue's widget with the scan and the mask. Raises UnsupportedError if ipyniivue is not installed."""
    try:
        from ipyniivue import NiiVue
        from ipyniivue import Volume as Layer
    except ImportError as error:
        given = "the interactive viewer without the ipyniivue package"
        remedy = "pip install 'voxsam[notebook]', or leave interactive out for a picture"
        raise UnsupportedError(given, "the notebook extra", remedy) from error
    scene, layers = Scene.of(scan, mask, (), window), []
    shown = ((scan, "scan", "gray", 1.0, scene.limits), (mask, "mask", "red", 0.5, (0.0, 1.0)))
    with TemporaryDirectory(prefix="voxsam-") as folder:
        for volume, name, colours, opacity, (low, high) in shown:
            path = Path(folder, f"{name}.nii.gz")
            write(volume, path)
            data = path.read_bytes()
            layers.append(
                Layer(data=data, name=path.name, colormap=colours, opacity=opacity, cal_min=low, cal_max=high)
            )
    widget = NiiVue(height=VIEWER_HEIGHT)
    widget.load_volumes(layers)
    return widget


def _words(scene: Scene) -> str:
    """One line of text: the volume of the mask, in how many objects, and the number of clicks."""
    count, clicks = len(scene.labels), len(scene.clicks)
    what = "an empty mask" if not count else f"{scene.objects.volume_ml:.1f} mL"
    if count > 1:
        what += f" in {count} objects"
    return f"{what}, {clicks} click{'s' * (clicks != 1)}"

"""Pictures of a scan with its mask: an overview as a PNG file, and what a notebook shows for a session."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from voxsam.atomic import atomic_path
from voxsam.errors import UnsupportedError
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
    diameters: dict[int, list[Diameter]] = {}  # of each label, the longest axial one and its perpendicular
    for label in scene.labels:
        if longest := longest_axial_diameter(scene.objects, label):
            diameters[label] = [longest, perpendicular_diameter(scene.objects, longest, label)]
    planes = scene.planes(centre)
    boxes = ((0.012, 0.062, 0.478, 0.85), (0.498, 0.492, 0.236, 0.42), (0.498, 0.062, 0.236, 0.42))
    for plane, box in zip(planes, boxes, strict=True):
        axes = figure.add_axes(box)
        draw_plane(axes, scene, plane, [p for p in planes if p is not plane])
        for diameter in chain.from_iterable(diameters.values()) if plane.name == "axial" else ():
            places, depths = plane.place_mm(scene.objects.grid, diameter.ends)
            if np.abs(depths).max() < 0.5 * plane.grid.spacing_mm[2]:  # the slice on which it was measured
                axes.plot(*places.T, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    colours = [to_rgb(scene.colour(label)) for label in scene.labels]
    draw_scene(figure.add_axes((0.742, 0.252, 0.246, 0.66)), scan, scene.objects, colours)
    _write_facts(figure, scene, diameters)
    _write_header(figure, scene, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=BACKGROUND)


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
        words = "longest axial × perpendicular"
        axes.text(0.985, level - 0.085, words, color=FAINT, fontsize=8.5, va="center", ha="right")
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
    clicks = f"{positive} click{'s' * (positive != 1)}"
    if negative:
        clicks = f"{positive} positive, {negative} negative clicks"
    figure.text(0.988, 0.957, clicks, color=FAINT, fontsize=13, va="center", ha="right")
    low, high = scene.limits
    unit = " HU" if scene.scan.modality == "CT" else ""
    grid = scene.scan.grid
    voxels, spacing = " × ".join(map(str, grid.shape)), " × ".join(f"{s:.3g}" for s in grid.spacing_mm)
    left = f"level {(low + high) / 2:.4g}{unit}, width {high - low:.4g}{unit}"
    left += f"   ·   {voxels} voxels of {spacing} mm, axes {grid.axes}"
    figure.text(0.012, 0.03, left, color=FAINT, fontsize=10, va="center")
    text = "radiological convention: the patient's left is at the right   ·   research use only"
    figure.text(0.988, 0.03, text, color=FAINT, fontsize=10, va="center", ha="right")


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
    planes = scene.planes(centre)
    shown_mm = max(length for plane in planes for length in plane.size_mm)  # one scale for all three
    for number, plane in enumerate(planes):
        axes = figure.add_axes((0.005 + number * 0.332, 0.075, 0.326, 0.91))
        draw_plane(axes, scene, plane, [other for other in planes if other is not plane], shown_mm)
    count = len(scene.labels)
    words = f"{scene.objects.volume_ml:.1f} mL" if count else "an empty mask"
    words += f" in {count} objects" * (count > 1) + f", {len(clicks)} click{'s' * (len(clicks) != 1)}"
    figure.text(0.008, 0.034, words, color=INK, fontsize=11, va="center")
    note = "patient's left at the right · research use only"
    figure.text(0.992, 0.034, note, color=FAINT, fontsize=9, ha="right", va="center")
    return Picture(_png(figure), words)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=BACKGROUND)
    return stream.getvalue()


THUMBNAIL_INCHES, THUMBNAIL_DPI = (1.6, 1.6), 100


def thumbnail(scan: Volume, mask: Volume | None = None) -> bytes:
    """A PNG of 160 x 160 pixels: the axial plane through the outlined mask, or through the middle of the scan."""
    empty = scan.with_array(np.zeros(scan.grid.shape, np.uint8), "SEG") if mask is None else mask
    scene = Scene.of(scan, empty, ())
    plane = Plane.through("axial", scan.grid, scene.middle())
    figure = Figure(figsize=THUMBNAIL_INCHES, dpi=THUMBNAIL_DPI, facecolor=BACKGROUND)
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
    return _png(figure)


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
            look = {"colormap": colours, "opacity": opacity, "cal_min": low, "cal_max": high}
            layers.append(Layer(data=data, name=path.name, **look))
    widget = NiiVue(height=VIEWER_HEIGHT)
    widget.load_volumes(layers)
    return widget

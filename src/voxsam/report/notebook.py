"""What a notebook shows of a session: a picture that needs nothing but matplotlib, or NiiVue's viewer in the page."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from voxsam.atomic import atomic_path
from voxsam.errors import UnsupportedError
from voxsam.io.nifti import write
from voxsam.report.panels import BACKGROUND, FAINT, INK, Click, Scene, Window, draw_plane, middle, side_mm
from voxsam.report.planes import three_planes
from voxsam.volume import Volume

SIZE_INCHES, DPI = (12.0, 4.3), 80  # 960 x 344 pixels: the width of a notebook's cell
VIEWER_HEIGHT = 480


class Picture:
    """A PNG that Jupyter shows when it is the last line of a cell; `png` are its bytes."""

    def __init__(self, png: bytes, words: str) -> None:
        self.png, self.words = png, words

    def __repr__(self) -> str:
        return self.words

    def _repr_png_(self) -> bytes:
        """What IPython asks a value for."""
        return self.png

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PNG. Raises FileError if that cannot be done."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.png)


def picture(
    scan: Volume,
    mask: Volume,
    clicks: Sequence[Click],
    *,
    centre: Sequence[float] | None = None,
    window: Window = "auto",
) -> Picture:
    """Axial, coronal and sagittal planes, to scale, through the first positive click in the mask or its middle.

    `centre`, an index (i, j, k), is another place for them; `window` is level and width.
    """
    scene = Scene.of(scan, mask, clicks, window)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor=BACKGROUND)
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
    """One line: how much is marked, in how many objects."""
    count, clicks = len(scene.labels), len(scene.clicks)
    what = "an empty mask" if not count else f"{scene.objects.volume_ml:.1f} mL"
    if count > 1:
        what += f" in {count} objects"
    return f"{what}, {clicks} click{'s' * (clicks != 1)}"

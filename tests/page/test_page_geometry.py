"""A click on the screen is on the voxel of the file that is drawn there, in every plane, oblique and flipped."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tests.page.running import Server, Viewer
from voxsam.geometry import Grid
from voxsam.io import write_volume
from voxsam.volume import Volume

pytestmark = pytest.mark.slow

BLOCK = (25, 9, 6)  # far from the middle on each axis
HALF = 2
WHITE = 0.97  # letters and lines that the page draws are darker


def _oblique(axes: str) -> Grid:
    """An anisotropic grid with its axes along `axes`, turned by 3-4-5 about the last."""
    upright = Grid.from_spacing((36, 30, 24), (2.0, 2.5, 3.5)).reorient(axes)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = upright.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    return Grid(upright.shape, affine)


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
def test_a_click_on_what_is_white_marks_the_white_voxel(
    viewer: Viewer, server: Server, tmp_path: Path, axes: str
) -> None:
    grid = _oblique(axes)
    array = np.full(grid.shape, -200, np.int16)
    block = tuple(min(b, n - 4) for b, n in zip(BLOCK, grid.shape, strict=True))
    array[tuple(slice(b - HALF, b + HALF + 1) for b in block)] = 300
    write_volume(Volume(array, grid, "CT"), tmp_path / "block.nii.gz")
    viewer.upload(tmp_path / "block.nii.gz")
    page = viewer.page
    page.evaluate("voxsam.view.setWindow(-160, 240)")
    viewer.look_at(block)
    page.evaluate("voxsam.tool('look')")
    for plane in ("axial", "coronal", "sagittal"):
        page.evaluate("index => voxsam.viewer.moveTo(index)", [int(b) for b in block])
        viewer.drawn()
        page.mouse.click(*_middle_of_white(viewer, plane))
        viewer.drawn()
        assert page.evaluate("voxsam.viewer.cursor") == list(block), plane
    page.evaluate("voxsam.tool('point')")
    viewer.answered(lambda: page.mouse.click(*_middle_of_white(viewer, "coronal")))
    (clicked,) = server.ask(f"sessions/{viewer.session}")["objects"][0]["prompts"]
    assert clicked == {"kind": "point", "index": list(block), "positive": True}


def _middle_of_white(viewer: Viewer, plane: str) -> tuple[float, float]:
    """The place on the screen in the middle of the white pixels of a plane."""
    script = """plane => {
        const {left, top} = document.getElementById("planes").getBoundingClientRect();
        const {x, y, width, height} = voxsam.viewer.tiles.rect(plane);
        return {x: left + x, y: top + y, width, height}; }"""
    clip = viewer.page.evaluate(script, plane)
    picture = matplotlib.image.imread(io.BytesIO(viewer.page.screenshot(clip=clip)))
    rows, columns = np.nonzero((picture[..., :3] > WHITE).all(-1))
    assert len(rows) > 50
    # The lines of the cursor cross the block: its middle is that of its outermost pixels.
    return clip["x"] + (columns.min() + columns.max() + 1) / 2, clip["y"] + (rows.min() + rows.max() + 1) / 2

"""The 3D panel of a figure: lesions in a glassy body with its bones, the scan's box, and the patient's directions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from voxsam.boxes import labels_of
from voxsam.report.render import Camera, Layer, Mesh, View, compose, glass, object_mesh, solid, tissue_mesh
from voxsam.volume import Volume

Colour = tuple[float, float, float]
BODY_HU, BONE_HU = -300.0, 230.0
GLASS, BONE, GROUND = (0.50, 0.64, 0.84), (1.0, 0.95, 0.83), "#0e131b"
DIRECTIONS = (("L", (-1, 0, 0), "#ff7b7b"), ("A", (0, 1, 0), "#7ee081"), ("S", (0, 0, 1), "#6fb7ff"))
SUPERSAMPLING = 2


def draw_scene(axes: Axes, scan: Volume, mask: Volume, colours: Sequence[Colour]) -> None:
    """Draw the surfaces of the mask's labels (one colour each) within the scan, to scale, seen from the front.

    The camera stands on the side of the patient on which the mask lies, so that little is in front of it.
    """
    width, height = (int(n) for n in axes.get_window_extent().size)
    meshes = [object_mesh(mask, label) for label in labels_of(mask)]
    camera = Camera(turn=_side(scan, [m for m in meshes if m is not None]) * Camera.turn)
    corners = scan.grid.corners_world_mm()
    view = View.around(camera, corners, height * SUPERSAMPLING, width * SUPERSAMPLING)
    layers = [solid(mesh, view, colour) for mesh, colour in zip(meshes, colours, strict=True) if mesh is not None]
    layers += _context(scan, view)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], facecolor=GROUND)
    if layers:
        image = compose(layers, to_rgb(GROUND)).reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3)
        axes.imshow(image.mean(axis=(1, 3)), extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    places = view.pixels(corners)[:, :2] / SUPERSAMPLING
    # Corners count in binary: an edge of the box joins two that differ in one axis.
    edges = [(a, b) for a, b in combinations(range(8), 2) if (a ^ b).bit_count() == 1]
    axes.add_collection(LineCollection([places[list(e)] for e in edges], colors="#8a96a8", linewidths=0.8, alpha=0.45))
    for spine in axes.spines.values():
        spine.set_color("#232b38")
    _draw_directions(axes, camera, width, height)


def _side(scan: Volume, meshes: list[Mesh]) -> int:
    """1 if the objects lie on the patient's left half of the scan, -1 if on the right."""
    if not meshes:
        return 1
    lesion = np.mean([mesh.vertices_mm.mean(0) for mesh in meshes], axis=0)
    return 1 if lesion[0] < scan.grid.corners_world_mm().mean(0)[0] else -1


def _context(scan: Volume, view: View) -> list[Layer]:
    """Body and bones of a CT; of another image what is brighter than its background."""
    if scan.modality == "CT":
        body, bone = tissue_mesh(scan, BODY_HU, 0.8, largest_only=True), tissue_mesh(scan, BONE_HU, 0.5)
    else:
        sample = scan.array[tuple(slice(None, None, max(1, n // 64)) for n in scan.array.shape)]
        low, high = np.percentile(sample, (5, 95))
        body, bone = tissue_mesh(scan, float(low + 0.15 * (high - low)), 1.5, largest_only=True), None
    found = [glass(body, view, GLASS, 0.5)] if body is not None else []
    return found + ([solid(bone, view, BONE, 0.65)] if bone is not None else [])


def _draw_directions(axes: Axes, camera: Camera, width: int, height: int) -> None:
    """Three short lines that point to the patient's Left, Anterior and Superior."""
    origin, length = np.array([50.0, height - 45.0]), 30.0
    for letter, direction, colour in DIRECTIONS:
        right, up, _ = camera.project(np.array(direction, dtype=float))
        step = np.array([right, -up])
        axes.plot(*np.stack([origin, origin + length * step]).T, color=colour, linewidth=2)
        place = origin + length * step + 9 * step / max(float(np.linalg.norm(step)), 0.2)
        axes.text(place[0], place[1], letter, color=colour, fontsize=9, fontweight="bold", ha="center", va="center")

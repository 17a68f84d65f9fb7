"""Surfaces of objects: the 3D panel of a figure, with body, bones, box and directions; and STL files.

Surfaces come from marching cubes and are drawn with a z-buffer and per-pixel lighting, without OpenGL or a window, so
that they look the same on every machine. matplotlib's 3D axes sort whole triangles by their centres, and show the wrong
one of two surfaces that intersect or nest, such as a lesion in a body.

STL is for viewers and printers, one named solid per object: ASCII, since the binary format has no names and only one
solid. Coordinates are LPS+, DICOM's patient system; the name of each solid says so as 3D Slicer reads it (SPACE=LPS).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from voxsam.atomic import atomic_path
from voxsam.boxes import crop_to_objects, labels_of
from voxsam.errors import ImageError
from voxsam.geometry import Grid, flip_lps
from voxsam.region import Region
from voxsam.resample import resample
from voxsam.volume import Volume

FINE_VOXELS = 56  # of an object's longest side
COARSE_VOXELS = 80  # of a whole scan's sides
STL_VOXELS = 192  # of an object's longest side, at most two per voxel


@dataclass(frozen=True)
class Mesh:
    """Triangles with outward vertex normals, in RAS+ mm."""

    vertices_mm: NDArray[np.float64]  # (n, 3)
    faces: NDArray[np.int64]  # (m, 3)
    normals: NDArray[np.float64]  # (n, 3), of length 1


def object_mesh(mask: Volume, label: int, fine: int = FINE_VOXELS) -> Mesh | None:
    """The surface of one label, on cubes of at least 1/`fine` of its longest side; None if it has no voxels."""
    part = crop_to_objects(mask.with_array(mask.array == label))
    if not part.array.any():
        return None
    longest = float((part.grid.shape * part.grid.spacing_mm).max())
    part = Volume(np.pad(part.array, 2), part.grid.pad((2, 2, 2), (2, 2, 2)))
    step = max(longest / fine, float(mask.grid.spacing_mm.min()) / 2)
    cubes = part.grid.respace([step] * 3)
    values = np.pad(resample(part, cubes, "linear"), 2)
    smooth = ndimage.gaussian_filter(values, 0.5 * mask.grid.spacing_mm.max() / step)
    # Blurring may push a thin object below one half: lower the level with it, so that it is not lost.
    return _mesh(smooth, min(0.5, 0.5 * float(smooth.max())), cubes, offset=-2.0)


def tissue_mesh(scan: Volume, threshold: float, blur: float, largest_only: bool = False) -> Mesh | None:
    """The coarse surface of all that is brighter than `threshold`, closed at the scan's borders; None if nothing is."""
    stride = tuple(max(1, int(np.ceil(n / COARSE_VOXELS))) for n in scan.array.shape)
    coarse = scan.array[tuple(slice(None, None, s) for s in stride)].astype(np.float32)
    inside = ndimage.gaussian_filter(coarse, blur) > threshold
    if largest_only and inside.any():
        parts = np.asarray(ndimage.label(ndimage.binary_opening(inside))[0])  # type: ignore[index]
        inside = parts == 1 + np.argmax(np.bincount(parts.ravel(), minlength=2)[1:])
    if not inside.any():
        return None
    smooth = ndimage.gaussian_filter(np.pad(inside, 2).astype(np.float32), 0.7)
    return _mesh(smooth, min(0.5, 0.5 * float(smooth.max())), scan.grid, offset=-2.0, stride=np.array(stride))


def _mesh(values: NDArray, level: float, grid: Grid, offset: float, stride: NDArray | int = 1) -> Mesh:
    vertices, faces, _, _ = marching_cubes(values, level)
    points = grid.index_to_world((vertices + offset) * stride)
    corners = points[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if np.einsum("ij,ij->", corners[:, 0], across) < 0:  # a signed volume: a mirrored grid turns triangles inside out
        faces, across = faces[:, ::-1], -across
    normals = np.stack(
        [np.bincount(faces.ravel(), weights=np.repeat(across[:, axis], 3), minlength=len(points)) for axis in range(3)],
        axis=-1,
    )
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(points, faces.astype(np.int64), normals / np.maximum(lengths, 1e-12))


def write_stl(objects: Iterable[tuple[str, Region]], grid: Grid, path: str | os.PathLike[str]) -> None:
    """Write the smoothed surfaces of objects, by name, on the scan's `grid`, whole or not at all.

    Raises ImageError if none has voxels, FileError if `path` cannot be written.
    """
    meshes = [(name, object_mesh(region.on(grid), 1, STL_VOXELS)) for name, region in objects]
    if all(mesh is None for _, mesh in meshes):
        raise ImageError("an empty mask", "an object with voxels", "click the tumour first")
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for name, mesh in meshes:
            if mesh is None:
                continue
            title = f"{'_'.join(name.split())} SPACE=LPS"
            file.write(f"solid {title}\n")
            corners = flip_lps(mesh.vertices_mm)[mesh.faces]  # a rotation about z: outward normals stay outward
            across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            normals = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
            for (nx, ny, nz), triangle in zip(normals.tolist(), corners.tolist(), strict=True):
                lines = "".join(f"  vertex {x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in triangle)
                file.write(f" facet normal {nx:.4f} {ny:.4f} {nz:.4f}\n outer loop\n{lines} endloop\n endfacet\n")
            file.write(f"endsolid {title}\n")


ROOM = 0.04  # a fraction of a view that stays free on each side
CHUNK_PIXELS = 4_000_000  # in triangles' bounding boxes that are tested at once; limits the memory
LIGHT = np.array([-0.419, 0.579, 0.699], np.float32)  # from the upper left, towards the viewer
HALFWAY = (LIGHT + np.array([0, 0, 1], np.float32)) / np.sqrt(2 + 2 * LIGHT[2])  # between light and viewer


@dataclass(frozen=True)
class Camera:
    """A parallel view from the patient's front, `turn` degrees to the patient's left, `tilt` degrees from above."""

    turn: float = 28.0
    tilt: float = 18.0

    @property
    def axes(self) -> NDArray[np.floating]:
        """(3, 3) rows: to the right, up, and towards the viewer, as RAS+ directions."""
        turn, tilt = np.deg2rad([self.turn, self.tilt])
        towards = np.array([-np.sin(turn) * np.cos(tilt), np.cos(turn) * np.cos(tilt), np.sin(tilt)])
        right = np.cross([0.0, 0.0, 1.0], towards)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(towards, right), towards])

    def project(self, world_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """(..., 3) RAS+ mm -> (..., 3) mm to the right, up, and towards the viewer."""
        return world_mm @ self.axes.T


@dataclass(frozen=True)
class View:
    """A canvas of (height, width) pixels: pixel = (mm - corner_mm) / mm_per_pixel, rows from the top."""

    camera: Camera
    height: int
    width: int
    corner_mm: tuple[float, float]  # to the right and up, of the top left corner
    mm_per_pixel: float

    @classmethod
    def around(cls, camera: Camera, points_mm: NDArray[np.floating], height: int, width: int) -> View:
        """The view centred on `points_mm` (n, 3) RAS+ in which all of them fit, with ROOM on each side."""
        flat = camera.project(points_mm)[:, :2]
        low, high = flat.min(0), flat.max(0)
        scale = float(((high - low) / (np.array([width, height]) * (1 - 2 * ROOM))).max())
        middle = (low + high) / 2
        return cls(camera, height, width, (middle[0] - scale * width / 2, middle[1] + scale * height / 2), scale)

    def pixels(self, world_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """(..., 3) RAS+ mm -> (..., 3) column, row, and mm towards the viewer."""
        right, up, towards = np.moveaxis(self.camera.project(world_mm), -1, 0)
        column, row = (right - self.corner_mm[0]) / self.mm_per_pixel, (self.corner_mm[1] - up) / self.mm_per_pixel
        return np.stack([column, row, towards], axis=-1)


# What one surface shows on a view: depth (h, w) in mm towards the viewer, -inf where nothing is, and RGBA (h, w, 4).
Layer = tuple[NDArray[np.floating], NDArray[np.floating]]


def solid(mesh: Mesh, view: View, colour: Sequence[float], opacity: float = 1.0) -> Layer:
    """The surface as matt paint with a soft highlight."""
    depth, normals = rasterise(mesh, view)
    lit, shine = np.clip(normals @ LIGHT, 0, 1), np.clip(normals @ HALFWAY, 0, 1) ** 24
    rgb = np.asarray(colour, np.float32) * (0.26 + 0.78 * lit[..., None]) + 0.22 * shine[..., None]
    alpha = np.isfinite(depth) * np.float32(opacity)
    return depth, np.clip(np.concatenate([rgb, alpha[..., None]], axis=-1), 0, 1)


def glass(mesh: Mesh, view: View, colour: Sequence[float], opacity: float) -> Layer:
    """The surface as glass: clear where it faces the viewer, up to `opacity` at its rim."""
    depth, normals = rasterise(mesh, view)
    rim = (1 - np.clip(normals[..., 2], 0, 1)) ** 1.8
    alpha = np.where(np.isfinite(depth), np.float32(opacity) * (0.14 + 0.86 * rim), 0.0)
    lit = 0.65 + 0.35 * np.clip(normals @ LIGHT, 0, 1)
    return depth, np.concatenate([np.asarray(colour, np.float32) * lit[..., None], alpha[..., None]], axis=-1)


def compose(layers: Sequence[Layer], background: Sequence[float]) -> NDArray[np.floating]:
    """(h, w, 3) RGB of all layers over a background colour, blended at each pixel from the farthest to the nearest."""
    depths, colours = (np.stack(part) for part in zip(*layers, strict=True))
    order = np.argsort(depths, axis=0)
    image = np.broadcast_to(np.asarray(background, np.float32), (*depths.shape[1:], 3)).copy()
    for place in order:
        over = np.take_along_axis(colours, place[None, ..., None], axis=0)[0]
        image += over[..., 3:] * (over[..., :3] - image)
    return image


def rasterise(mesh: Mesh, view: View) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Depth (h, w), -inf where nothing is, and the normal (h, w, 3; right, up, towards) of the nearest front face."""
    depth = np.full(view.height * view.width, -np.inf, np.float32)
    normal = np.zeros((view.height * view.width, 3), np.float32)
    points = view.pixels(mesh.vertices_mm).astype(np.float32)
    normals = view.camera.project(mesh.normals).astype(np.float32)
    for faces, pixel, weights in _covered(points, mesh.faces, view):
        towards = np.einsum("nc,nc->n", weights, points[faces, 2])
        order = np.argsort(towards, kind="stable")
        order = order[towards[order] > depth[pixel[order]]]
        # Of several values for one pixel, numpy keeps the last: the nearest.
        depth[pixel[order]] = towards[order]
        normal[pixel[order]] = np.einsum("nc,ncd->nd", weights[order], normals[faces[order]])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return depth.reshape(view.height, view.width), normal.reshape(view.height, view.width, 3)


def _covered(
    points: NDArray, faces: NDArray, view: View
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]]:
    """In chunks: the three corners (n, 3) of a face, a pixel (n,) that it covers, and the corners' weights (n, 3)."""
    corners = points[faces][:, :, :2]
    edge_a, edge_b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = edge_a[:, 0] * edge_b[:, 1] - edge_a[:, 1] * edge_b[:, 0]
    front = area < 0  # rows run down, so outward faces turn the other way
    faces, corners, area = faces[front], corners[front], area[front]
    low = np.ceil(corners.min(1)).astype(int)
    sizes = np.floor(corners.max(1)).astype(int) - low + 1
    classes = np.ceil(np.log2(np.maximum(sizes.max(1), 1))).astype(int)
    for level in np.unique(classes):
        chosen, side = np.flatnonzero((classes == level) & (sizes.min(1) > 0)), 2 ** int(level)
        steps = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
        for part in np.array_split(chosen, max(1, len(chosen) * side * side // CHUNK_PIXELS)):
            at = low[part][:, None] + steps
            a, b, c = (corners[part, n][:, None] - at for n in range(3))
            weights = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], -1) / area[part][:, None, None]
            inside = (weights >= 0).all(-1) & (at >= 0).all(-1) & (at < [view.width, view.height]).all(-1)
            which, step = np.nonzero(inside)
            column, row = at[which, step].T
            yield faces[part][which], row * view.width + column, weights[which, step]


def _cross(a: NDArray, b: NDArray) -> NDArray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


Colour = tuple[float, float, float]
BODY_HU, BONE_HU = -300.0, 230.0
GLASS, BONE, GROUND = (0.50, 0.64, 0.84), (1.0, 0.95, 0.83), "#0e131b"
DIRECTIONS = (("L", (-1, 0, 0), "#ff7b7b"), ("A", (0, 1, 0), "#7ee081"), ("S", (0, 0, 1), "#6fb7ff"))
SUPERSAMPLING = 2


def draw_scene(axes: Axes, scan: Volume, mask: Volume, colours: Sequence[Colour]) -> None:
    """Draw the surfaces of the mask's labels (one colour each) within the scan, to scale, seen from the front.

    The camera is on the side of the patient on which the mask lies, so that little is in front of it.
    """
    width, height = (int(n) for n in axes.get_window_extent().size)
    meshes = [object_mesh(mask, label) for label in labels_of(mask)]
    corners, camera = scan.grid.corners_world_mm(), Camera()
    if centres := [mesh.vertices_mm.mean(0) for mesh in meshes if mesh is not None]:
        is_left = np.mean(centres, axis=0)[0] < corners.mean(0)[0]
        camera = Camera(turn=Camera.turn if is_left else -Camera.turn)
    view = View.around(camera, corners, height * SUPERSAMPLING, width * SUPERSAMPLING)
    layers = [solid(mesh, view, colour) for mesh, colour in zip(meshes, colours, strict=True) if mesh is not None]
    layers += _context(scan, view)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], facecolor=GROUND)
    if layers:
        image = compose(layers, to_rgb(GROUND)).reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3)
        axes.imshow(image.mean(axis=(1, 3)), extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    places = view.pixels(corners)[:, :2] / SUPERSAMPLING
    # Corners are numbered in binary: an edge of the box joins two that differ in one bit.
    edges = [(a, b) for a, b in combinations(range(8), 2) if (a ^ b).bit_count() == 1]
    axes.add_collection(LineCollection([places[list(e)] for e in edges], colors="#8a96a8", linewidths=0.8, alpha=0.45))
    for spine in axes.spines.values():
        spine.set_color("#232b38")
    _draw_directions(axes, camera, width, height)


def _context(scan: Volume, view: View) -> list[Layer]:
    """Body and bones of a CT; of any other image what is brighter than its background."""
    if scan.modality == "CT":
        body, bone = tissue_mesh(scan, BODY_HU, 0.8, largest_only=True), tissue_mesh(scan, BONE_HU, 0.5)
    else:
        sample = scan.array[tuple(slice(None, None, max(1, n // 64)) for n in scan.array.shape)]
        low, high = np.percentile(sample, (5, 95))
        body, bone = tissue_mesh(scan, float(low + 0.15 * (high - low)), 1.5, largest_only=True), None
    found = [glass(body, view, GLASS, 0.5)] if body is not None else []
    return found + ([solid(bone, view, BONE, 0.65)] if bone is not None else [])


def _draw_directions(axes: Axes, camera: Camera, width: int, height: int) -> None:
    """Draw three short lines that point to the patient's Left, Anterior and Superior."""
    origin, length = np.array([50.0, height - 45.0]), 30.0
    for letter, direction, colour in DIRECTIONS:
        right, up, _ = camera.project(np.array(direction, dtype=float))
        step = np.array([right, -up])
        axes.plot(*np.stack([origin, origin + length * step]).T, color=colour, linewidth=2)
        place = origin + length * step + 9 * step / max(float(np.linalg.norm(step)), 0.2)
        axes.text(place[0], place[1], letter, color=colour, fontsize=9, fontweight="bold", ha="center", va="center")

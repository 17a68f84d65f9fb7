"""Surfaces of lesions, bodies and bones (marching cubes), drawn with a z-buffer and per-pixel light.

No OpenGL and no window: the same on every machine. matplotlib's 3D axes sort whole triangles by their middle, and show
the wrong one of two surfaces that cross or nest, as a lesion in a body does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from voxsam.boxes import crop_to_objects
from voxsam.geometry import Grid
from voxsam.resample import resample
from voxsam.volume import Volume

FINE_VOXELS = 56  # of an object's longest side
COARSE_VOXELS = 80  # of a whole scan's sides


@dataclass(frozen=True)
class Mesh:
    """Triangles with outward vertex normals, in RAS+ mm."""

    vertices_mm: NDArray[np.float64]  # (n, 3)
    faces: NDArray[np.int64]  # (m, 3)
    normals: NDArray[np.float64]  # (n, 3), of length 1


def object_mesh(mask: Volume, label: int) -> Mesh | None:
    """The surface of one label, on cubes of 1/FINE_VOXELS of its longest side or more; None if it has no voxels."""
    part = crop_to_objects(mask.with_array(mask.array == label))
    if not part.array.any():
        return None
    longest = float((part.grid.shape * part.grid.spacing_mm).max())
    part = Volume(np.pad(part.array, 2), part.grid.pad((2, 2, 2), (2, 2, 2)))
    step = max(longest / FINE_VOXELS, float(mask.grid.spacing_mm.min()) / 2)
    cubes = part.grid.respace([step] * 3)
    values = np.pad(resample(part, cubes, "linear"), 2)
    smooth = ndimage.gaussian_filter(values, 0.5 * mask.grid.spacing_mm.max() / step)
    # Blurring may sink a thin object below one half: follow it down, so that it is not lost.
    return _mesh(smooth, min(0.5, 0.5 * float(smooth.max())), cubes, offset=-2.0)


def tissue_mesh(scan: Volume, threshold: float, blur: float, largest_only: bool = False) -> Mesh | None:
    """The coarse surface of what is brighter than `threshold`, closed at the scan's borders; None if nothing is."""
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


CHUNK_PIXELS = 4_000_000  # of triangles' boxes that are tested at once; bounds the memory
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
    def around(
        cls, camera: Camera, points_mm: NDArray[np.floating], height: int, width: int, room: float = 0.04
    ) -> View:
        """The view in whose middle all `points_mm` (n, 3) RAS+ fit, with a share of `room` free on each side."""
        flat = camera.project(points_mm)[:, :2]
        low, high = flat.min(0), flat.max(0)
        scale = float(((high - low) / (np.array([width, height]) * (1 - 2 * room))).max())
        middle = (low + high) / 2
        return cls(camera, height, width, (middle[0] - scale * width / 2, middle[1] + scale * height / 2), scale)

    def pixels(self, world_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """(..., 3) RAS+ mm -> (..., 3) column, row, and mm towards the viewer."""
        right, up, towards = np.moveaxis(self.camera.project(world_mm), -1, 0)
        column, row = (right - self.corner_mm[0]) / self.mm_per_pixel, (self.corner_mm[1] - up) / self.mm_per_pixel
        return np.stack([column, row, towards], axis=-1)


@dataclass(frozen=True)
class Layer:
    """What one surface shows on a view: depth (h, w) in mm towards the viewer, -inf where nothing is, and RGBA."""

    depth: NDArray[np.floating]
    rgba: NDArray[np.floating]  # (h, w, 4)


def solid(mesh: Mesh, view: View, colour: Sequence[float], opacity: float = 1.0) -> Layer:
    """The surface in matt paint with a soft highlight."""
    depth, normals = rasterise(mesh, view)
    lit, shine = np.clip(normals @ LIGHT, 0, 1), np.clip(normals @ HALFWAY, 0, 1) ** 24
    rgb = np.asarray(colour, np.float32) * (0.26 + 0.78 * lit[..., None]) + 0.22 * shine[..., None]
    alpha = np.isfinite(depth) * np.float32(opacity)
    return Layer(depth, np.clip(np.concatenate([rgb, alpha[..., None]], axis=-1), 0, 1))


def glass(mesh: Mesh, view: View, colour: Sequence[float], opacity: float) -> Layer:
    """The surface as glass: clear where it faces the viewer, up to `opacity` at its rim."""
    depth, normals = rasterise(mesh, view)
    rim = (1 - np.clip(normals[..., 2], 0, 1)) ** 1.8
    alpha = np.where(np.isfinite(depth), np.float32(opacity) * (0.14 + 0.86 * rim), 0.0)
    lit = 0.65 + 0.35 * np.clip(normals @ LIGHT, 0, 1)
    return Layer(depth, np.concatenate([np.asarray(colour, np.float32) * lit[..., None], alpha[..., None]], axis=-1))


def compose(layers: Sequence[Layer], background: Sequence[float]) -> NDArray[np.floating]:
    """(h, w, 3) RGB of all layers over a colour, at each pixel from the farthest to the nearest."""
    depths, colours = np.stack([layer.depth for layer in layers]), np.stack([layer.rgba for layer in layers])
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
        # Of several values for one pixel numpy keeps the last: the nearest.
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

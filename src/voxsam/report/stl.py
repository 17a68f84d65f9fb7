"""Surfaces of objects as an STL file for viewers and printers: one named solid per object, in patient millimetres.

ASCII, since the binary format has no names and only one solid. Coordinates are LPS+, DICOM's patient system; the name
of each solid says so in the form that 3D Slicer reads (SPACE=LPS).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

from voxsam.atomic import atomic_path
from voxsam.errors import ImageError
from voxsam.geometry import Grid, flip_lps
from voxsam.region import Region
from voxsam.report.view3d import Mesh, object_mesh

SURFACE_VOXELS = 192  # cubes along an object's longest side, at most two per voxel


def write_stl(objects: Iterable[tuple[str, Region]], grid: Grid, path: str | os.PathLike[str]) -> None:
    """Write the smoothed surfaces of objects, by name, on the scan's `grid`, whole or not at all.

    Raises ImageError if none has voxels, FileError if `path` cannot be written.
    """
    meshes = [(name, object_mesh(region.on(grid), 1, SURFACE_VOXELS)) for name, region in objects]
    solids = [(name, mesh) for name, mesh in meshes if mesh is not None]
    if not solids:
        raise ImageError("an empty mask", "an object with voxels", "click the tumour first")
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for name, mesh in solids:
            title = f"{'_'.join(name.split())} SPACE=LPS"
            file.write(f"solid {title}\n")
            file.writelines(_facets(mesh))
            file.write(f"endsolid {title}\n")


def _facets(mesh: Mesh) -> Iterator[str]:
    corners = flip_lps(mesh.vertices_mm)[mesh.faces]  # a rotation about z: outward normals stay outward
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    for normal, triangle in zip(normals.tolist(), corners.tolist(), strict=True):
        lines = "".join(f"  vertex {x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in triangle)
        nx, ny, nz = normal
        yield f" facet normal {nx:.4f} {ny:.4f} {nz:.4f}\n outer loop\n{lines} endloop\n endfacet\n"

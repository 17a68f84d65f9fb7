"""Surfaces as STL: at the object's place in the patient, closed, facing outward, one solid per object."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import ImageError
from voxsam.geometry import Grid
from voxsam.region import EMPTY, Region
from voxsam.report.view3d import write_stl


def triangles_of(solid: str) -> np.ndarray:
    """(n, 3, 3)"""
    lines = [line.split()[1:] for line in solid.splitlines() if line.strip().startswith("vertex")]
    return np.array(lines, float).reshape(-1, 3, 3)


def test_a_ball_is_where_it_is_in_the_patient_and_has_its_volume(tmp_path):
    grid = Grid.from_spacing((40, 34, 30), (1, 1.3, 2), (-30, 50, 200), "PIL").turned(0, 20)
    place = grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    middle = grid.index_to_world(np.array((20, 17, 14)))
    ball = Region.of(np.linalg.norm(place - middle, axis=-1) < 12)
    speck = Region.of(np.linalg.norm(place - middle, axis=-1) < 3)
    write_stl([("a ball", ball), ("nothing", EMPTY), ("speck", speck)], grid, tmp_path / "m.stl")
    text = (tmp_path / "m.stl").read_text()
    first, second = text.split("endsolid a_ball SPACE=LPS\n")
    assert first.startswith("solid a_ball SPACE=LPS\n") and second.startswith("solid speck SPACE=LPS\n")
    corners = triangles_of(first)
    np.testing.assert_allclose(corners.reshape(-1, 3).mean(0), middle * [-1, -1, 1], atol=0.5)
    signed = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert signed == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.05), "closed, and outward"
    with pytest.raises(ImageError, match="an empty mask"):
        write_stl([("nothing", EMPTY)], grid, tmp_path / "e.stl")

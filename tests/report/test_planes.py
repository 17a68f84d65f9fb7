"""Planes for display: the patient's left on the viewer's right, sizes in mm, whatever the array's axis order."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.geometry import Grid
from voxsam.report.panels import Plane, three_planes
from voxsam.volume import Volume

SHAPE, SPACING = (12, 10, 6), (1.5, 2.0, 5.0)  # R, A, S
MARKS = {  # value: index in R, A, S order. From the middle (6, 5, 3) towards one side each.
    1: (11, 5, 3),  # Right
    2: (0, 5, 3),  # Left
    3: (6, 9, 3),  # Anterior
    4: (6, 0, 3),  # Posterior
    5: (6, 5, 5),  # Superior
    6: (6, 5, 0),  # Inferior
}
AXES = ["RAS", "LPS", "SPL", "AIR", "PIR"]


def marked(axes: str) -> Volume:
    array = np.zeros(SHAPE, np.int16)
    for value, index in MARKS.items():
        array[index] = value
    grid = Grid.from_spacing(SHAPE, SPACING, (7, -20, 100))
    return Volume(array, grid).reorient(axes)


def middle_of(volume: Volume) -> np.ndarray:
    return Grid.from_spacing(SHAPE, SPACING, (7, -20, 100)).index_in(volume.grid, (6, 5, 3))


def where(image: np.ndarray, value: int) -> tuple[int, int]:
    rows, columns = np.nonzero(image == value)
    assert len(rows) == 1
    return int(rows[0]), int(columns[0])


@pytest.mark.parametrize("axes", AXES)
def test_axial_plane_is_radiological(axes):
    volume = marked(axes)
    plane = Plane.through("axial", volume.grid, middle_of(volume))
    image = plane.read(volume)
    assert image.shape == (10, 12)
    assert plane.size_mm == pytest.approx((18, 20))
    assert plane.letters == ("R", "L", "A", "P")
    assert where(image, 1) == (4, 0)  # Right at the left edge
    assert where(image, 2) == (4, 11)
    assert where(image, 3) == (0, 5)  # Anterior on top
    assert where(image, 4) == (9, 5)
    assert not np.isin(image, (5, 6)).any()


@pytest.mark.parametrize("axes", AXES)
def test_coronal_plane(axes):
    volume = marked(axes)
    plane = Plane.through("coronal", volume.grid, middle_of(volume))
    image = plane.read(volume)
    assert image.shape == (6, 12)
    assert plane.size_mm == pytest.approx((18, 30))
    assert plane.letters == ("R", "L", "S", "I")
    assert [where(image, mark) for mark in (1, 2, 5, 6)] == [(2, 0), (2, 11), (0, 5), (5, 5)]


@pytest.mark.parametrize("axes", AXES)
def test_sagittal_plane(axes):
    volume = marked(axes)
    plane = Plane.through("sagittal", volume.grid, middle_of(volume))
    image = plane.read(volume)
    assert image.shape == (6, 10)
    assert plane.size_mm == pytest.approx((20, 30))
    assert plane.letters == ("A", "P", "S", "I")
    assert [where(image, mark) for mark in (3, 4, 5, 6)] == [(2, 0), (2, 9), (0, 4), (5, 4)]


@pytest.mark.parametrize("axes", AXES)
def test_places_on_a_plane_are_millimetres_from_the_corner(axes):
    volume = marked(axes)
    plane = Plane.through("axial", volume.grid, middle_of(volume))
    right_mark = Grid.from_spacing(SHAPE, SPACING, (7, -20, 100)).index_in(volume.grid, MARKS[1])
    place, off = plane.place_mm(volume.grid, right_mark)
    np.testing.assert_allclose(place, [0.75, 9.0])  # half a voxel from the left; row 4 of 2 mm
    assert off == pytest.approx(0)
    top_mark = Grid.from_spacing(SHAPE, SPACING, (7, -20, 100)).index_in(volume.grid, MARKS[5])
    assert plane.place_mm(volume.grid, top_mark)[1] == pytest.approx(10)  # two slices of 5 mm


def test_a_plane_can_be_cut_round_a_place():
    volume = marked("RAS")
    plane = Plane.through("axial", volume.grid, (11, 5, 3), side_mm=6)
    assert plane.read(volume).shape == (3, 4)  # 6 mm are 3 rows of 2 mm and 4 columns of 1.5 mm
    assert where(plane.read(volume), 1)[1] == 0  # pushed back into the scan at its right border


def test_three_planes_meet_in_the_index():
    volume = marked("SPL")
    index = middle_of(volume)
    for plane in three_planes(volume.grid, index):
        assert plane.place_mm(volume.grid, index)[1] == pytest.approx(0, abs=1e-6)
    assert [plane.name for plane in three_planes(volume.grid, index)] == ["axial", "coronal", "sagittal"]


def test_an_index_outside_takes_the_nearest_plane():
    volume = marked("RAS")
    plane = Plane.through("axial", volume.grid, (6, 5, 99))
    assert where(plane.read(volume), 5) == (4, 5)

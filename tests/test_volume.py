"""Volume: an array bound to its Grid."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from voxsam.errors import InternalError
from voxsam.geometry import Grid
from voxsam.volume import Volume

GRID = Grid.from_spacing((2, 3, 4), (1, 2, 5))


def test_an_array_must_fit_its_grid():
    with pytest.raises(InternalError, match=r"array of shape \(2, 4, 3\) on a grid of shape \(2, 3, 4\)"):
        Volume(np.zeros((2, 4, 3)), GRID)


def test_volume_in_millilitres_counts_all_labels():
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0, :3] = 1
    array[1, 2, 3] = 2
    assert Volume(array, GRID).volume_ml == pytest.approx(4 * 0.01)  # a voxel has 1 * 2 * 5 mm^3
    assert Volume(np.zeros_like(array), GRID).volume_ml == 0


def test_with_array_keeps_place_header_and_modality():
    scan = Volume(np.ones((2, 3, 4), np.int16), GRID, "CT", {"nifti": "stored"})
    mask = scan.with_array(np.zeros((2, 3, 4), np.uint8))
    assert mask.grid is GRID and mask.header == {"nifti": "stored"} and mask.modality == "CT"
    assert mask.array.dtype == np.uint8 and scan.array.dtype == np.int16
    assert scan.with_array(mask.array, modality="SEG").modality == "SEG"
    assert scan.with_array(mask.array, modality="").modality == ""


def test_with_array_refuses_another_shape():
    with pytest.raises(InternalError, match="on a grid of shape"):
        Volume(np.ones((2, 3, 4)), GRID).with_array(np.ones((3, 2, 4)))


@pytest.mark.parametrize("axes", ["RAS", "SPL", "AIR"])
def test_reorient_keeps_every_voxel_where_it_is(axes: str):
    scan = Volume(np.arange(24).reshape(2, 3, 4), GRID, "CT", {"nifti": "stored"}, ("odd",))
    turned = scan.reorient(axes)
    assert turned.grid.axes == axes and (turned.modality, turned.header, turned.remarks) == (
        "CT",
        scan.header,
        ("odd",),
    )
    for index in np.ndindex(*GRID.shape):
        there = turned.grid.world_to_index(GRID.index_to_world(index)).round().astype(int)
        assert turned.array[tuple(there)] == scan.array[index]
    np.testing.assert_array_equal(turned.reorient(GRID.axes).array, scan.array)


def test_a_volume_cannot_be_rebound():
    volume = Volume(np.ones((2, 3, 4)), GRID)
    with pytest.raises(FrozenInstanceError):
        volume.grid = GRID  # type: ignore[misc]


def test_defaults_are_not_shared():
    first, second = Volume(np.ones((2, 3, 4)), GRID), Volume(np.ones((2, 3, 4)), GRID)
    assert first.modality == "" and first.header == {}
    assert first.header is not second.header

"""Region: a set of voxels behaves like an array of bools, in a fraction of the memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from voxsam.boxes import NOWHERE
from voxsam.geometry import Grid
from voxsam.region import EMPTY, Region, overlapping

SHAPE = (9, 8, 7)
ALL = tuple(slice(0, n) for n in SHAPE)


def drawn(seed: int, share: float = 0.05) -> np.ndarray:
    array = np.random.default_rng(seed).random(SHAPE) < share
    array[:2] = array[:, 6:] = False
    return array


@pytest.mark.parametrize("seed", range(6))
def test_sets_are_those_of_arrays(seed: int) -> None:
    a, b = drawn(seed, 0.3), drawn(seed + 100)
    one, two = Region.of(a), Region.of(b)
    np.testing.assert_array_equal(one.within(ALL), a)
    for made, wanted in ((one | two, a | b), (one - two, a & ~b), (one & two, a & b), (two - one, b & ~a)):
        np.testing.assert_array_equal(made.within(ALL), wanted)
        assert made.voxels == wanted.sum() and made.nbytes <= wanted.size / 8 + 1
        assert made.box == Region.of(wanted).box
    assert one.differs(two) == Region.of(a ^ b).box and one.differs(one) == NOWHERE
    assert overlapping([one, two]) == bool((a & b).any()) and not overlapping([one - two, two])
    np.testing.assert_array_equal(one.within(ALL), a)  # nothing was changed


def test_a_component_is_what_is_joined_through_faces() -> None:
    array = np.zeros(SHAPE, bool)
    array[2:4, 2, 2] = array[4, 3, 2] = array[3, 2, 3] = True  # the second one touches by an edge only
    labels, _ = ndimage.label(array)
    region = Region.of(array)
    np.testing.assert_array_equal(region.component((2, 2, 2)).within(ALL), labels == labels[2, 2, 2])
    assert region.component((2, 2, 2)).voxels == 3 and region.component((4, 3, 2)).voxels == 1
    assert region.component((0, 0, 0)) is EMPTY and not region.holds((4, 2, 2)) and region.holds((3, 2, 3))


def test_it_lies_where_it_lay_on_the_scan() -> None:
    array, grid = drawn(3, 0.3), Grid.from_spacing(SHAPE, (1, 2, 3), (4, 5, 6), "PIR")
    array[:, :2] = False
    part = Region.of(array[1:, 2:], (1, 2, 0)).on(grid)
    np.testing.assert_allclose(
        part.grid.index_to_world(np.argwhere(part.array)), grid.index_to_world(np.argwhere(array))
    )
    assert not EMPTY and not EMPTY.on(grid).array.any() and (EMPTY | Region.of(array)).voxels == array.sum()

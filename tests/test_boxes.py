"""Boxes of voxels: intersections, hulls, and the place of one in another."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.boxes import NOWHERE, hull, intersection, is_empty, within
from voxsam.preprocess import Slices


def box(*ends: tuple[int, int]) -> Slices:
    i, j, k = (slice(*pair) for pair in ends)
    return i, j, k


A = box((0, 4), (2, 9), (5, 6))
B = box((3, 8), (0, 5), (1, 20))


def test_what_two_boxes_share():
    assert intersection(A, B) == intersection(B, A) == box((3, 4), (2, 5), (5, 6))
    assert intersection(A, A) == A


def test_boxes_that_only_touch_share_nothing():
    beside = box((4, 6), (2, 9), (5, 6))
    assert intersection(A, beside) == NOWHERE
    assert is_empty(NOWHERE) and not is_empty(A)


def test_the_hull_holds_all_and_leaves_empty_boxes_out():
    assert hull([A, B]) == box((0, 8), (0, 9), (1, 20))
    assert hull([A, NOWHERE, box((50, 50), (0, 90), (0, 90))]) == A
    assert hull([]) == hull([NOWHERE]) == NOWHERE


@pytest.mark.parametrize("inner", [A, box((1, 2), (3, 4), (5, 6))])
def test_a_box_in_another_is_the_same_voxels(inner: Slices):
    outer = box((0, 5), (1, 10), (4, 8))
    array = np.arange(6 * 11 * 9).reshape(6, 11, 9)
    np.testing.assert_array_equal(array[outer][within(inner, outer)], array[inner])
    assert within(NOWHERE, outer) == NOWHERE

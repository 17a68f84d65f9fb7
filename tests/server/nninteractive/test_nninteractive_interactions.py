"""The protocol's interactions as VoxSAM's prompts: the voxels they mean, on an anisotropic grid of unequal axes."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.prompts import Box, MaskHint, Point, Scribble
from voxsam.protocols.nninteractive.inputs import BoxInteraction, MaskInteraction, PointInteraction
from voxsam.region import EMPTY, Region

GRID = Grid.from_spacing((30, 20, 10), (1.0, 1.5, 4.0), (7, -3, 11)).reorient("LPS")


def clicks(prompts) -> list[tuple[tuple[float, ...], bool]]:
    """The voxels that prompts click."""
    points = [point for prompt in prompts for point in prompt.points(GRID)]
    return [(tuple(GRID.world_to_index(point.world_mm).round(6) + 0.0), point.positive) for point in points]


def box(*ends, positive: bool = True) -> list:
    return BoxInteraction(bbox_coords=ends, include_interaction=positive).prompts(GRID)


def limits(prompt: Box) -> list[list[int]]:
    low, high = prompt.index_range(GRID)
    return [[int(a), int(b) + 1] for a, b in zip(low, high, strict=True)]


def part(*ends, positive: bool = True) -> MaskInteraction:
    return MaskInteraction(interaction_bbox=ends, include_interaction=positive)


@pytest.mark.parametrize("positive", [True, False])
def test_a_point_clicks_its_voxel(positive):
    point = PointInteraction(coordinates=(3, 14, 9), include_interaction=positive)
    assert clicks(point.prompts(GRID)) == [((3, 14, 9), positive)]


def test_a_point_beside_the_image_is_refused():
    with pytest.raises(PromptError, match=r"outside the scan, at voxel \(3, 25, 9\)"):
        PointInteraction(coordinates=(3, 25, 9), include_interaction=True).prompts(GRID)


def test_a_3d_box_limits_the_mask_and_clicks_its_middle():
    found = box((4, 9), (10, 15), (2, 5))
    assert [type(p) for p in found] == [Box] and limits(found[0]) == [[4, 9], [10, 15], [2, 5]]
    assert clicks(found) == [((6, 12, 3), True)]


@pytest.mark.parametrize(
    ("ends", "limited", "clicked"),
    [
        (((4, 9), (10, 15), (8, 9)), [[4, 9], [10, 15], [0, 10]], (6, 12, 8)),
        (((4, 9), (2, 3), (2, 5)), [[4, 9], [0, 20], [2, 5]], (6, 2, 3)),
        (((28, 29), (10, 15), (2, 5)), [[0, 30], [10, 15], [2, 5]], (28, 12, 3)),
    ],
)
def test_a_2d_box_limits_the_mask_within_its_plane_and_clicks_in_its_slice(ends, limited, clicked):
    found = box(*ends)
    assert limits(found[0]) == limited
    assert clicks(found) == [(clicked, True)]


def test_a_box_of_fractions_as_napari_draws_it_is_rounded_and_stays_2d():
    found = box((3.6, 8.7), (9.5, 15.2), (8.5, 9.5))
    assert limits(found[0]) == [[4, 9], [10, 15], [0, 10]]
    assert clicks(found) == [((6, 12, 9), True)]


def test_a_box_is_cut_to_the_image():
    assert limits(box((-5, 9), (10, 99), (2, 5))[0]) == [[0, 9], [10, 20], [2, 5]]


def test_a_negative_box_is_a_negative_click_in_its_middle():
    found = box((4, 9), (10, 15), (8, 9), positive=False)
    assert [type(p) for p in found] == [Point] and clicks(found) == [((6, 12, 8), False)]


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (((4, 4), (1, 2), (1, 2)), "first < last"),
        (((9, 4), (1, 2), (1, 2)), "first < last"),
        (((4, 9), (float("nan"), 2), (1, 2)), "first < last"),
        (((4, 9), (25, 28), (1, 2)), "one on the image"),
        (((-9, -4), (1, 2), (1, 2)), "one on the image"),
    ],
)
def test_boxes_that_are_refused(ends, words):
    with pytest.raises(PromptError, match=words):
        box(*ends)


@pytest.mark.parametrize("positive", [True, False])
def test_a_scribble_clicks_its_own_voxels_where_its_part_lies(positive):
    stroke = np.zeros((6, 8, 1), bool)
    stroke[1, 2, 0] = stroke[4, 7, 0] = True
    found = part((20, 26), (5, 13), (7, 8), positive=positive).scribble(stroke, GRID)
    assert [type(p) for p in found] == [Scribble]
    assert sorted(clicks(found)) == [((21, 7, 7), positive), ((24, 12, 7), positive)]


def test_a_scribble_without_a_part_lies_on_the_whole_image():
    stroke = np.zeros(GRID.shape, bool)
    stroke[21, 7, 7] = True
    found = MaskInteraction(include_interaction=True).scribble(stroke, GRID)
    assert clicks(found) == [((21, 7, 7), True)]
    assert found[0].volume.array.shape == (1, 1, 1)  # what history keeps is the stroke, not an array of the scan's size


def contour(filled: bool) -> np.ndarray:
    """11 x 9 voxels in one slice: a frame one voxel wide, or filled."""
    mask = np.ones((11, 9, 1), bool)
    if not filled:
        mask[1:-1, 1:-1] = False
    return mask


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("filled", [True, False])
def test_a_lasso_clicks_inside_its_contour_the_middle_first(filled, positive):
    found = clicks(part((10, 21), (4, 13), (7, 8), positive=positive).lasso(contour(filled), GRID))
    assert 1 < len(found) <= 10
    depth = {(i, j): min(i - 9, 21 - i, (j - 3) * 1.5, (13 - j) * 1.5) for i in range(10, 21) for j in range(4, 13)}
    assert all(k == 7 and p == positive for (_, _, k), p in found)
    assert depth[found[0][0][:2]] == max(depth.values()) == 6
    assert all(depth[at[:2]] >= 3 for at, _ in found)  # the inner half, though the slice is thin


def test_a_lasso_in_another_plane_is_filled_there():
    mask = contour(filled=False).transpose(2, 0, 1)[:, :, :7]
    mask[:, :, -1] = True
    found = clicks(part((28, 29), (8, 19), (2, 9)).lasso(mask, GRID))
    assert all(i == 28 for (i, _, _), _ in found) and found[0][0][1:] == (13, 4)  # 9 mm deep, the first of them


@pytest.mark.parametrize("kind", ["scribble", "lasso"])
def test_an_empty_mask_is_refused(kind):
    make = getattr(part((0, 3), (0, 3), (0, 1)), kind)
    with pytest.raises(PromptError, match=f"a {kind} without voxels"):
        make(np.zeros((3, 3, 1), bool), GRID)


@pytest.mark.parametrize("ends", [((0, 31), (0, 3), (0, 1)), ((3, 3), (0, 3), (0, 1)), ((-1, 3), (0, 3), (0, 1))])
def test_a_part_that_is_not_on_the_image_is_refused(ends):
    with pytest.raises(PromptError, match=r"a part of the image \(30, 20, 10\)"):
        part(*ends).place(GRID.shape)


def test_an_initial_mask_is_kept_as_its_box():
    mask = np.zeros(GRID.shape, bool)
    mask[12:17, 3:6, 5:8] = True
    seed = Region.of(mask)
    assert seed.box == (slice(12, 17), slice(3, 6), slice(5, 8)) and seed.inside.all()
    hint = MaskHint(seed.on(GRID))
    assert hint.volume.array.shape == (5, 3, 3)
    assert clicks([hint])[0] == ((14, 4, 5), True)  # 3 mm deep, the first of them
    assert Region.of(np.zeros(GRID.shape, bool)) is EMPTY

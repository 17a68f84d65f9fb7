"""Which crops clicks need, where a tumour is followed, and how pieces are blended: by hand on small model grids."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.geometry import Grid
from voxsam.interactive.crops import THRESHOLD, blend, choose_windows, connected, is_new, next_windows, parts_of
from voxsam.preprocess import Window

LATTICE = Grid.from_spacing((100, 120, 140), (1, 1, 1))
SIDE = 16  # so a click is well inside from 2 to 13, and clicks up to 12 apart share a new crop


def at(*points) -> np.ndarray:
    return np.array(points, dtype=float)


def window(*start: int, side: int = SIDE, model_grid: Grid = LATTICE) -> Window:
    return Window(model_grid, start, (side,) * 3)  # type: ignore[arg-type]


# choose_windows


def test_one_click_is_centred_as_released() -> None:
    assert choose_windows(LATTICE, at((50, 60, 70)), SIDE, ()) == [window(42, 52, 62)]


def test_several_clicks_are_centred_on_the_middle_of_their_bounding_box() -> None:
    points = at((50, 60, 70), (52, 60, 80), (51, 66, 71))
    assert choose_windows(LATTICE, points, SIDE, ()) == [window(43, 55, 67)]


@pytest.mark.parametrize(
    ("second", "holds"),
    [
        ((44, 60, 70), True),  # 2 voxels from the first
        ((55, 60, 70), True),  # 13
        ((43, 60, 70), False),
        ((56, 60, 70), False),
        ((50, 54, 75), True),
        ((50, 60, 63), False),
    ],
)
def test_a_window_holds_while_all_clicks_are_well_inside(second, holds: bool) -> None:
    current = [window(42, 52, 62)]
    chosen = choose_windows(LATTICE, at((50, 60, 70), second), SIDE, current)
    assert len(chosen) == 1
    assert (chosen == current) == holds


def test_at_the_border_of_the_scan_a_click_needs_no_room() -> None:
    current = [window(0, 104, -3)]
    assert choose_windows(LATTICE, at((0, 119, 0)), SIDE, current) == current
    assert choose_windows(LATTICE, at((0, 119, 11.5)), SIDE, current) != current


def test_clicks_far_apart_get_a_window_for_each_group() -> None:
    points = at((50, 60, 20), (50, 60, 90), (55, 60, 25), (50, 62, 93))
    assert choose_windows(LATTICE, points, SIDE, ()) == [window(45, 52, 15), window(42, 53, 84)]


def test_a_group_keeps_the_window_that_holds_it() -> None:
    current = [window(44, 54, 14)]
    chosen = choose_windows(LATTICE, at((50, 60, 20), (50, 60, 90)), SIDE, current)
    assert chosen == [current[0], window(42, 52, 82)]
    # Both windows hold now: another click in one of them moves neither.
    assert choose_windows(LATTICE, at((50, 60, 20), (50, 60, 90), (50, 60, 85)), SIDE, chosen) == chosen


def test_a_window_that_no_click_needs_any_more_goes() -> None:
    current = [window(44, 54, 14), window(42, 52, 82)]
    assert choose_windows(LATTICE, at((50, 60, 20)), SIDE, current) == current[:1]


def test_clicks_at_both_ends_of_a_scan_shorter_than_the_crop_share_one_window() -> None:
    """Along an axis where the scan is no longer than a crop, one crop holds all of it and no margin is needed."""
    model_grid = Grid.from_spacing((SIDE, 14, 140), (1, 1, 1))
    (chosen,) = choose_windows(model_grid, at((0, 0, 70), (15, 13, 75)), SIDE, ())
    for point in ((0, 0, 70), (15, 13, 75)):
        assert all(s <= p < s + SIDE for p, s in zip(point, chosen.start, strict=True))


def test_two_groups_in_one_window_give_it_once() -> None:
    model_grid = Grid.from_spacing((18, 40, 140), (1, 1, 1))
    current = [window(0, 12, 62, model_grid=model_grid)]
    points = at((0, 20, 70), (13, 20, 70), (8, 20, 120))
    chosen = choose_windows(model_grid, points, SIDE, current)
    assert chosen == [current[0], window(0, 12, 112, model_grid=model_grid)]


def test_every_click_lies_in_a_chosen_window() -> None:
    rng = np.random.default_rng(0)
    current: list[Window] = []
    for _ in range(200):
        points = rng.uniform(-0.5, np.array(LATTICE.shape) - 0.5, (rng.integers(1, 6), 3))
        points[1:] = (points[0] + rng.uniform(-15, 15, points[1:].shape)).clip(-0.5, np.array(LATTICE.shape) - 0.5)
        current = choose_windows(LATTICE, points, SIDE, current)
        for point in points:
            starts = np.array([w.start for w in current])
            assert ((point >= starts - 0.5) & (point <= starts + SIDE - 0.5)).all(1).any()


# next_windows

FACES = [(axis, at_end) for axis in range(3) for at_end in (False, True)]


@pytest.mark.parametrize(("axis", "at_end"), FACES)
def test_a_mask_that_reaches_a_face_goes_on_there(axis: int, at_end: bool) -> None:
    mask = np.zeros((SIDE,) * 3, bool)
    place = [4, 6, 10]
    place[axis] = SIDE - 2 if at_end else 1  # within two voxels of the face
    mask[tuple(place)] = True
    (found,) = next_windows(window(40, 50, 60), mask)
    centre = np.array([44, 56, 70])
    centre[axis] = [40, 50, 60][axis] + (SIDE - 1 if at_end else 0)
    assert found.start == tuple(centre - SIDE // 2)
    assert found.shape == (SIDE,) * 3


@pytest.mark.parametrize(("axis", "at_end"), FACES)
def test_a_mask_that_stays_away_from_the_faces_does_not_go_on(axis: int, at_end: bool) -> None:
    mask = np.zeros((SIDE,) * 3, bool)
    place = [4, 6, 10]
    place[axis] = SIDE - 3 if at_end else 2
    mask[tuple(place)] = True
    assert next_windows(window(40, 50, 60), mask) == []


@pytest.mark.parametrize(("axis", "at_end"), FACES)
@pytest.mark.parametrize("beyond", [0, 5])
def test_nothing_goes_on_at_the_border_of_the_scan(axis: int, at_end: bool, beyond: int) -> None:
    start = [40, 50, 60]
    start[axis] = LATTICE.shape[axis] - SIDE + beyond if at_end else -beyond
    mask = np.zeros((SIDE,) * 3, bool)
    place = [4, 6, 10]
    place[axis] = SIDE - 1 if at_end else 0
    mask[tuple(place)] = True
    assert next_windows(window(*start), mask) == []


def test_a_full_crop_goes_on_at_all_six_faces() -> None:
    mask = np.ones((SIDE,) * 3, bool)
    found = next_windows(window(40, 50, 60), mask)
    assert sorted(w.start for w in found) == sorted(
        tuple(s + d * (a == axis) for a, s in enumerate((40, 50, 60))) for axis in range(3) for d in (-8, 7)
    )


def test_all_places_on_a_face_lie_in_the_next_window() -> None:
    """A large trunk at one side and a thin branch at the other: the window must hold both."""
    mask = np.zeros((SIDE,) * 3, bool)
    mask[-1, 2:9, 2:9] = True
    mask[-1, 13, 13] = True
    (ahead,) = next_windows(window(40, 50, 60), mask)
    for place in np.argwhere(mask) + [40, 50, 60]:
        assert (place >= ahead.start).all() and (place < np.add(ahead.start, SIDE)).all()


def test_a_window_is_new_from_a_quarter_of_its_side_on() -> None:
    others = [window(40, 50, 60), window(60, 50, 60)]
    assert not is_new(window(43, 47, 63), others)
    assert is_new(window(44, 50, 60), others)
    assert is_new(window(40, 50, 56), others)
    assert not is_new(window(61, 50, 60), others)
    assert is_new(window(0, 0, 0), [])


# connected


def test_connected_drops_what_the_merged_mask_does_not_touch() -> None:
    first = np.zeros((8, 8, 8), np.float32)
    first[4, 4, 2:] = 0.9
    second = np.full((8, 8, 8), 0.25, np.float32)
    second[4, 4, :6] = 0.8  # goes on where the first one ended (its voxels 4..7 are this one's 0..3)
    second[1, 1, 5] = 0.7  # something else
    second[6, 6, 2] = 0.6  # something else, inside the overlap
    here = window(10, 10, 14, side=8)
    got = connected(second, blend([(window(10, 10, 10, side=8), first)], here) > THRESHOLD)
    wanted = second.copy()
    wanted[1, 1, 5] = wanted[6, 6, 2] = 0
    np.testing.assert_array_equal(got, wanted)
    assert second[1, 1, 5] == np.float32(0.7)  # the input is left alone


def test_connected_with_nothing_in_common_keeps_no_mask() -> None:
    probability = np.full((8, 8, 8), 0.9, np.float32)
    probability[:2] = 0.4
    got = connected(probability, np.zeros((8, 8, 8), bool))
    np.testing.assert_array_equal(got[2:], 0)
    np.testing.assert_array_equal(got[:2], np.float32(0.4))


def test_connected_parts_join_through_faces_not_corners() -> None:
    probability = np.zeros((8, 8, 8), np.float32)
    probability[2, 2, 2] = probability[2, 3, 3] = 1
    before = np.zeros((8, 8, 8), np.float32)
    before[2, 2, 2] = 1
    got = connected(probability, before > THRESHOLD)
    assert got[2, 2, 2] == 1
    assert got[2, 3, 3] == 0


# blend, parts_of


def whole(pieces, start=(0, 0, 0), shape=(60, 60, 60)) -> np.ndarray:
    return blend(pieces, Window(LATTICE, start, shape))


@pytest.mark.parametrize("start", [(5, 7, 9), (0, 0, 0), (8, 2, 11), (9, 10, 14), (-3, 4, 20), (30, 0, 0), (5, 7, 17)])
def test_one_piece_in_another_window_is_what_was_painted_on_the_model_grid(start) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((8, 8, 8)).astype(np.float32)
    model_grid = np.zeros((60, 60, 60), np.float32)
    model_grid[15:23, 17:25, 19:27] = values
    wanted = model_grid[tuple(slice(s + 10, s + 22) for s in start)]
    np.testing.assert_array_equal(blend([(window(5, 7, 9, side=8), values)], window(*start, side=12)), wanted)


def test_one_piece_in_its_own_window_is_as_it_is() -> None:
    piece = (window(1, 2, 3), np.random.default_rng(0).random((SIDE,) * 3).astype(np.float32))
    assert blend([piece], piece[0]) is piece[1]


def test_a_blend_of_two_overlapping_pieces_by_hand() -> None:
    """Sides of 4: weights 1/4, 3/4, 3/4, 1/4 on each axis; the other axes' weights are the same in both and cancel."""
    first, second = np.full((4, 4, 4), 0.2, np.float32), np.full((4, 4, 4), 1.0, np.float32)
    pieces = [(window(10, 10, 10, side=4), first), (window(10, 10, 12, side=4), second)]
    got = whole(pieces, (10, 10, 10), (4, 4, 6))
    # Model grid voxels 12 and 13 along the last axis: weights 3/4 against 1/4, then 1/4 against 3/4.
    wanted = [0.2, 0.2, (0.75 * 0.2 + 0.25 * 1) / 1, (0.25 * 0.2 + 0.75 * 1) / 1, 1, 1]
    np.testing.assert_allclose(got, np.broadcast_to(wanted, (4, 4, 6)), rtol=1e-6)
    assert got.dtype == np.float32


def test_a_blend_is_zero_where_no_piece_is_and_reaches_outside_the_scan() -> None:
    one = np.ones((4, 4, 4), np.float32)
    pieces = [(window(*start, side=4), one) for start in ((-2, 0, 0), (4, 6, 0), (-2, 0, 0))]
    got = whole(pieces, (-2, 0, 0), (10, 10, 4))
    assert got.sum() == 2 * 64
    assert not got[4:6].any()
    assert not got[:4, 4:].any()


def random_pieces(seed: int, spread: int) -> list:
    rng = np.random.default_rng(seed)
    starts = [rng.integers(0, spread, 3).tolist() for _ in range(5)]
    return [(window(*start), rng.random((SIDE,) * 3).astype(np.float32)) for start in starts]


def test_blended_probabilities_stay_between_those_blended() -> None:
    pieces = random_pieces(1, 9)
    got, each = whole(pieces), [whole([piece]) for piece in pieces]
    high = np.max(each, axis=0)
    low = np.min([np.where(values > 0, values, 1) for values in each], axis=0)
    assert got.min() >= 0 and got.max() <= 1
    assert (got[high > 0] >= low[high > 0] - 1e-6).all() and (got <= high + 1e-6).all()
    assert THRESHOLD == 0.5


def test_lesions_far_apart_are_parts_apart_and_near_ones_are_one() -> None:
    one = np.ones((8, 8, 8), np.float32)
    far = [(window(*start, side=8), one) for start in ((2, 2, 2), (80, 100, 120))]
    found = parts_of(far, tumour=True)
    assert sorted((part.start, part.shape) for part, _ in found) == [
        ((2, 2, 2), (9, 9, 9)),
        ((79, 99, 119), (9, 9, 9)),
    ]
    near = [(window(*start, side=8), one) for start in ((2, 2, 2), (6, 2, 2))]
    ((part, _),) = parts_of(near, tumour=True)
    assert (part.start, part.shape) == ((2, 2, 2), (12, 8, 8))

"""Prompts become clicks at the right places on oblique, permuted, anisotropic scans, or are refused with a message."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.prompts import MAX_POINTS, Box, MaskHint, Point, Scribble, spread
from voxsam.volume import Volume

NUMBERS = "three numbers i, j, k; give the voxel's index on each axis"
ON_SCAN = "a voxel from (0, 0, 0) to (19, 15, 11); check the order i, j, k of the file's array, or use millimetres"
# A 3-4-5 turn about z of axes that are stored (z, x, y): columns are the steps of i, j, k.
OBLIQUE = np.array([[0, 0.8, -0.9, 10], [0, 0.6, 1.2, -20], [2.5, 0, 0, 30], [0, 0, 0, 1.0]])


def scan() -> Grid:
    return Grid((20, 16, 12), OBLIQUE)


def labels_on(grid: Grid, **boxes: tuple) -> Volume:
    """A label volume; `v1=((i0, i1), (j0, j1), (k0, k1))` fills these voxels with 1, `v2=...` with 2."""
    array = np.zeros(grid.shape, np.uint8)
    for name, box in boxes.items():
        array[tuple(slice(*ends) for ends in box)] = int(name[1:].split("_")[0])
    return Volume(array, grid, "SEG")


def indices(points: list[Point], grid: Grid) -> np.ndarray:
    return grid.world_to_index([p.world_mm for p in points])


# Clicks


def test_a_click_on_an_oblique_permuted_scan_by_hand() -> None:
    point = Point.at_index(scan(), (2, 5, 10))
    assert point.world_mm == pytest.approx((10 + 5 * 0.8 - 9, -20 + 5 * 0.6 + 12, 30 + 2 * 2.5))
    assert point.positive
    assert point.points(scan()) == [point]


def test_a_negative_click_and_a_click_in_millimetres() -> None:
    assert not Point.at_index(scan(), np.array([1, 2, 3]), positive=False).positive
    point = Point((5.0, -5.0, 35.0))
    assert indices(point.points(scan()), scan())[0] == pytest.approx((2, 5, 10))


@pytest.mark.parametrize("index", [(0, 0, 0), (19, 15, 11), (-0.5, 15.5, 11.5), (19.5, -0.5, 0.5), (3.25, 4.5, 5.75)])
def test_clicks_up_to_the_outer_faces_are_accepted(index) -> None:
    point = Point.at_index(scan(), index)
    assert indices(point.points(scan()), scan())[0] == pytest.approx(index)


def test_millimetres_written_with_three_digits_at_the_outer_face_are_accepted() -> None:
    world = np.round(scan().index_to_world((19.5, 15.5, 11.5)), 3)
    assert Point(tuple(world.tolist())).points(scan())


@pytest.mark.parametrize("index", [(-1, 3, 3), (20, 3, 3), (3, 15.51, 3), (3, 3, 12), (11, 3, 15), (1e12, 0, 0)])
def test_a_click_outside_the_scan_is_refused(index) -> None:
    at = ", ".join(f"{v:.4g}" for v in index)
    with pytest.raises(PromptError) as error:
        Point.at_index(scan(), index)
    assert str(error.value).startswith(f"a click outside the scan, at voxel ({at}); expected {ON_SCAN}")
    with pytest.raises(PromptError, match="a click outside the scan"):
        Point(tuple(scan().index_to_world(index).tolist())).points(scan())


@pytest.mark.parametrize(
    ("index", "shown"),
    [
        ((1, 2), r"click \(1, 2\)"),
        ((1, 2, 3, 4), r"click \(1, 2, 3, 4\)"),
        ((1, float("nan"), 3), r"click \(1, nan, 3\)"),
        ((1, float("inf"), 3), r"click \(1, inf, 3\)"),
        (5, "click 5"),
        (None, "click None"),
        ("12", "click 12"),
        (("a", "b", "c"), "click"),
        ([[1, 2, 3]], "click"),
    ],
)
def test_what_is_no_index_is_refused(index, shown: str) -> None:
    with pytest.raises(PromptError, match=shown) as error:
        Point.at_index(scan(), index)
    assert str(error.value).endswith(f"expected {NUMBERS}")


@pytest.mark.parametrize(
    "world", [(1.0, 2.0), (1.0, float("nan"), 3.0), (1.0, 2.0, 3.0, 4.0), (float("inf"), 0.0, 0.0)]
)
def test_what_is_no_place_in_millimetres_is_refused(world) -> None:
    with pytest.raises(PromptError, match="three numbers x, y, z in millimetres"):
        Point(world).points(scan())


# Boxes


@pytest.mark.parametrize("low", [(2, 3, 4), (10, 3, 4), (2, 9, 4), (10, 9, 4), (2, 3, 8), (10, 9, 8)])
def test_a_box_is_the_same_for_any_two_opposite_corners(low) -> None:
    high = tuple({2: 10, 10: 2, 3: 9, 9: 3, 4: 8, 8: 4}[v] for v in low)
    box = Box.at_index(scan(), low, high)
    first, last = box.index_range(scan())
    assert (first.tolist(), last.tolist()) == ([2, 3, 4], [10, 9, 8])
    (middle,) = box.points(scan())
    assert middle.positive
    assert indices([middle], scan())[0] == pytest.approx((6, 6, 6))


def test_a_box_up_to_the_outer_faces_holds_no_voxel_outside() -> None:
    first, last = Box.at_index(scan(), (-0.5, 15.5, -0.5), (19.5, -0.5, 11.5)).index_range(scan())
    assert (first.tolist(), last.tolist()) == ([0, 0, 0], [19, 15, 11])


def test_a_box_may_say_where_in_it_the_tumour_surely_is() -> None:
    box = Box.at_index(scan(), (2, 3, 4), (8, 9, 10))
    elsewhere = Point.at_index(scan(), (7, 4, 10))
    assert Box(box.corner_mm, box.opposite_mm, elsewhere.world_mm).points(scan()) == [elsewhere]
    with pytest.raises(PromptError, match="a click outside the scan"):
        Box(box.corner_mm, box.opposite_mm, (1e4, 0.0, 0.0)).points(scan())


def test_a_box_of_one_voxel() -> None:
    box = Box.at_index(scan(), (4, 5, 6), (4, 5, 6))
    assert [ends.tolist() for ends in box.index_range(scan())] == [[4, 5, 6], [4, 5, 6]]
    assert indices(box.points(scan()), scan())[0] == pytest.approx((4, 5, 6))


def test_a_box_outside_the_scan_is_refused() -> None:
    with pytest.raises(PromptError, match=r"a box corner outside the scan, at voxel \(20, 3, 4\)"):
        Box.at_index(scan(), (2, 3, 4), (20, 3, 4))
    with pytest.raises(PromptError, match=r"box corner \(2, 3\); expected three numbers"):
        Box.at_index(scan(), (2, 3), (4, 3, 4))
    with pytest.raises(PromptError, match="a box corner outside the scan"):
        Box((1e4, 0.0, 0.0), (5.0, -5.0, 35.0)).points(scan())


# Scribbles


def test_a_scribble_gives_clicks_of_both_polarities_on_its_strokes() -> None:
    strokes = labels_on(scan(), v1=((3, 4), (2, 14), (5, 6)), v2=((10, 18), (7, 8), (9, 10)))
    points = Scribble(strokes).points(scan())
    assert [p.positive for p in points] == [True] * MAX_POINTS + [False] * 8
    at = np.rint(indices(points, scan())).astype(int)
    np.testing.assert_allclose(indices(points, scan()), at, atol=1e-9)
    assert (strokes.array[tuple(at.T)] == [1] * 10 + [2] * 8).all()
    ends = {tuple(a) for a in at.tolist()}
    assert {(3, 2, 5), (3, 13, 5), (10, 7, 9), (17, 7, 9)} <= ends


def test_a_thin_stroke_beside_a_thick_one_is_not_forgotten() -> None:
    strokes = labels_on(scan(), v1=((1, 8), (1, 8), (1, 8)), v1_thin=((12, 19), (12, 13), (10, 11)))
    at = np.rint(indices(Scribble(strokes).points(scan()), scan()))
    assert (at[:, 1] == 12).any()
    assert (at[:, 1] < 8).any()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "a scribble without strokes; expected voxels of 1 (tumour) or 2 (not tumour); draw a stroke"),
        (3, "a scribble with values from 3 to 3; expected 0, 1 (tumour) and 2 (not tumour); give the label file, not"),
    ],
)
def test_a_scribble_without_strokes_is_refused(value: int, words: str) -> None:
    with pytest.raises(PromptError) as error:
        Scribble(Volume(np.full(scan().shape, value, np.uint8), scan())).points(scan())
    assert str(error.value).startswith(words)


# Hints


def test_a_hint_gives_clicks_inside_it_the_deepest_first() -> None:
    hint = labels_on(scan(), v1=((4, 11), (2, 9), (3, 10)))
    points = MaskHint(hint).points(scan())
    at = np.rint(indices(points, scan())).astype(int)
    assert len(points) == MAX_POINTS
    assert all(p.positive for p in points)
    # 2.5 mm, 1 mm and 1.5 mm voxels: j = 5 is deepest for all i and k that are as far from the other faces.
    assert at[0, 1] == 5
    assert hint.array[tuple(at.T)].all()


def test_a_hint_with_specks_keeps_to_its_body() -> None:
    hint = labels_on(scan(), v1=((4, 11), (2, 9), (3, 10)), v1_speck=((19, 20), (15, 16), (11, 12)))
    at = np.rint(indices(MaskHint(hint).points(scan()), scan()))
    assert (at[:, 0] < 11).all()


@pytest.mark.parametrize("value", [1, 200, 256, 70_000, -1, 0.25])
def test_any_value_but_zero_is_inside_a_hint(value) -> None:
    for grid in (scan(), scan().reorient("LPI")):
        array = np.zeros(grid.shape, np.float32 if value == 0.25 else np.int32)
        array[2:6, 3:6, 4:6] = value
        assert MaskHint(Volume(array, grid)).points(scan())


def test_an_empty_hint_is_refused() -> None:
    for grid in (scan(), scan().crop((2, 2, 2), (9, 9, 9))):
        with pytest.raises(PromptError) as error:
            MaskHint(labels_on(grid)).points(scan())
        assert str(error.value) == (
            "an empty mask hint; expected a mask with voxels of the tumour in it; leave the hint out"
        )


# Labels on another grid


OTHERS = {
    "turned": scan().reorient("LIP"),
    "finer": scan().respace((0.5, 0.4, 0.7)),
    "coarser": scan().respace((3.0, 2.5, 4.0)),
    "part": scan().crop((5, 2, 1), (12, 12, 9)),
    "larger": scan().pad((5, 6, 7), (8, 9, 10)),
    "straight": Grid.from_spacing((40, 40, 30), (0.9, 0.9, 2.0), (0.0, -25.0, 28.0)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", [Scribble, MaskHint])
def test_labels_on_another_grid_give_clicks_at_the_same_place(name: str, kind) -> None:
    """A ball in millimetres, drawn on any grid, gives clicks in that ball, the first one near its centre."""
    grid = OTHERS[name]
    middle_mm = scan().index_to_world((10, 8, 6))
    distance = np.linalg.norm(grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) - middle_mm, axis=-1)
    points = kind(Volume((distance < 4.5).astype(np.uint8), grid)).points(scan())
    away = np.linalg.norm(np.array([p.world_mm for p in points]) - middle_mm, axis=1)
    assert (away < 4.5).all()
    assert away[0] < 3.0
    assert scan().contains(indices(points, scan())).all()


def test_a_stroke_one_voxel_wide_on_a_finer_grid_is_found() -> None:
    """It is between slices of the scan: reading the labels at the scan's own voxels would miss it."""
    fine = scan().respace((0.5, 0.5, 0.5))
    strokes = labels_on(fine, v1=((22, 23), (3, 10), (7, 8)))
    points = Scribble(strokes).points(scan())
    assert len(points) == 7
    np.testing.assert_allclose(indices(points, fine)[:, [0, 2]], [[22, 7]] * 7, atol=1e-6)


def test_of_labels_on_a_larger_grid_only_those_on_the_scan_count() -> None:
    large = scan().pad((30, 0, 0), (0, 0, 0))
    hint = labels_on(large, v1=((0, 36), (5, 10), (5, 10)))  # 30 of the 36 slices lie before the scan's first
    at = indices(MaskHint(hint).points(scan()), scan())
    assert (at[:, 0] > -0.51).all()
    assert (at[:, 0] < 5.5).all()


def test_the_message_says_in_millimetres_where_labels_and_scan_lie() -> None:
    grid = Grid.from_spacing((10, 10, 10), (1, 2, 3), (0, 0, 0))  # outer faces from -0.5, -1, -1.5 to 9.5, 19, 28.5
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3, 1:3, 1] = 1
    beside = Volume(labels, Grid.from_spacing((4, 4, 4), (1, 2, 3), (100, -50, 7)), "SEG")
    with pytest.raises(PromptError) as error:
        MaskHint(beside).points(grid)
    assert error.value.given == (
        "a mask hint that lies elsewhere: about (102, -47, 10), and the scan from (0, -1, -2) to (10, 19, 28) mm (RAS+)"
    )


def test_a_scan_is_no_mask_hint() -> None:
    noise = np.random.default_rng(0).integers(-100, 200, scan().shape).astype(np.int16)
    with pytest.raises(PromptError) as error:
        MaskHint(Volume(noise, scan(), "SEG")).points(scan())
    count = len(set(noise.ravel().tolist()) - {0})
    assert str(error.value) == (
        f"a mask hint with {count} different values; expected 0 outside the tumour, a label or a few inside; "
        "give the label file, not a scan"
    )


@pytest.mark.parametrize("kind", [(Scribble, "scribble"), (MaskHint, "mask hint")])
def test_labels_elsewhere_are_refused(kind) -> None:
    far = scan().crop((500, 0, 0), (8, 8, 8))
    beside = scan().crop((-8, 0, 0), (9, 8, 8))  # overlaps the scan, but its strokes do not
    for labels in (labels_on(far, v1=((2, 6),) * 3), labels_on(beside, v1=((2, 6),) * 3)):
        with pytest.raises(PromptError) as error:
            kind[0](labels).points(scan())
        assert str(error.value).startswith(f"a {kind[1]} that lies elsewhere: about (")
        assert str(error.value).endswith("check that both show the same patient and study")


# spread


def test_spread_by_hand_on_a_line() -> None:
    """A line of nine voxels: the first of the deepest, then the far end, the near end if that differs, the middle."""
    region = np.zeros((11, 3, 3), bool)
    region[1:10, 1, 1] = True
    got = spread(region, np.array([2.0, 1.0, 1.0]), 4)
    assert [tuple(p) for p in got.tolist()] == [(1, 1, 1), (9, 1, 1), (5, 1, 1), (3, 1, 1)]


def test_spread_measures_in_millimetres() -> None:
    """5 x 5 voxels of 1 x 10 mm: the far points lie along the long axis."""
    region = np.ones((5, 5, 1), bool)
    got = spread(region, np.array([1.0, 10.0, 1.0]), 3)
    assert {p[1] for p in got.tolist()} >= {0, 4}


def test_spread_starts_with_the_deepest_voxel_and_stays_in_the_inner_half() -> None:
    i, j, k = np.indices((41, 41, 21))
    region = ((i - 20) / 15) ** 2 + ((j - 20) / 15) ** 2 + ((k - 10) / 7.5) ** 2 < 1  # a ball at 1 x 1 x 2 mm
    got = spread(region, np.array([1.0, 1.0, 2.0]))
    assert got[0].tolist() == [20, 20, 10]
    radius = np.linalg.norm((got - [20, 20, 10]) * [1, 1, 2], axis=1)
    assert radius.max() <= 9
    assert radius[1:].min() > 5
    np.testing.assert_array_equal(got, spread(region, np.array([1.0, 1.0, 2.0])))
    assert len(np.unique(got, axis=0)) == MAX_POINTS


def test_spread_of_little_gives_little() -> None:
    region = np.zeros((4, 5, 6), bool)
    spacing = np.ones(3)
    assert spread(region, spacing).shape == (0, 3)
    region[3, 4, 5] = True
    assert spread(region, spacing).tolist() == [[3, 4, 5]]


def test_spread_over_a_large_region_is_quick_and_inside() -> None:
    region = np.zeros((160, 160, 80), bool)
    region[3:150, 10:150, 5:75] = True
    got = spread(region, np.array([1.0, 1.0, 2.0]))
    assert region[tuple(got.T)].all()


@pytest.mark.parametrize("index", [(-1, 3, 3), (20.25, 3, 3), (0, 0, 12), (1e12, 0, 0)])
def test_a_click_in_millimetres_is_refused_in_the_voxels_that_a_person_would_write(index) -> None:
    """Without the last bits of a product: 0 is printed as 0, not as -2.7e-15."""
    at = ", ".join(f"{v:.4g}" for v in index)
    tilted = Grid((20, 16, 12), [[0.7, 0.1, 0, -313.7], [-0.1, 0.7, 0, 1000.1], [0, 0, 2.5, -77.3], [0, 0, 0, 1]])
    world = tilted.index_to_world(index) if index[0] < 1e12 else None
    with pytest.raises(PromptError) as error:
        Point.at_index(tilted, index) if world is None else Point(tuple(world.tolist())).points(tilted)
    assert f"at voxel ({at})" in str(error.value)

"""Session: a model whose prediction is known in advance gives exactly that on the scan, click after click."""

from __future__ import annotations

import numpy as np
import pytest
from known_model import ALL_AXES, CROP, FAR, KnownModel, block_scan, oblique, upright, window_box, world_of

from voxsam.errors import PromptError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.prompts import Box, MaskHint, Scribble
from voxsam.volume import Volume

# One click


@pytest.mark.parametrize("axes", ALL_AXES)
@pytest.mark.parametrize("model_axes", ["SAR", "IPL"])
def test_the_mask_is_exact_on_scans_of_every_axis_order(axes: str, model_axes: str) -> None:
    grid = Grid.from_spacing((14, 12, 10), (1, 1, 1), (5, -9, 3)).reorient(axes)
    array = np.random.default_rng(0).choice([-FAR, FAR], grid.shape).astype(np.float32)
    mask = Session(KnownModel(model_axes), Volume(array, grid), keep_clicked=False).click([n // 2 for n in grid.shape])
    np.testing.assert_array_equal(mask.array, array > 0)
    assert mask.array.dtype == np.uint8
    assert mask.grid == grid


def test_the_mask_is_exact_on_an_oblique_permuted_scan_and_keeps_its_header() -> None:
    grid = oblique()
    array = np.random.default_rng(1).choice([-FAR, FAR], grid.shape).astype(np.float32)
    volume = Volume(array, grid, "CT", {"kept": 1})
    before = array.copy()
    mask = Session(KnownModel(), volume, keep_clicked=False).click((7, 6, 5))
    np.testing.assert_array_equal(mask.array, array > 0)
    assert (mask.modality, mask.header) == ("SEG", {"kept": 1})
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("spacing", [(0.4, 0.7, 2.5), (3.0, 0.5, 1.5), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_a_plane_through_an_anisotropic_scan_is_exact(spacing, axes: str) -> None:
    """Intensity is linear in millimetres, and so is the probability: 0.5 is on a plane that no interpolation moves."""
    grid = oblique((13, 12, 11), (1, 1, 1)).respace(spacing).reorient(axes)
    place = world_of(grid)
    height = (place - place.reshape(-1, 3).mean(0)) @ [0.02, -0.025, 0.015]
    session = Session(KnownModel(), Volume(height.astype(np.float32), grid))
    mask = session.click(np.array(grid.shape) // 2)
    # At the scan's outermost voxels the model grid is clamped, which bends the plane.
    inner = tuple(
        slice(*np.ceil([1 / s, n - 1 / s - 1]).astype(int)) for s, n in zip(grid.spacing_mm, grid.shape, strict=True)
    )
    clear = np.abs(height[inner]) > 1e-4
    np.testing.assert_array_equal(mask.array[inner][clear], (height > 0)[inner][clear])
    np.testing.assert_allclose(session.probabilities.array[inner], 0.5 + height[inner], atol=1e-4)


@pytest.mark.parametrize("spacing", [(0.6, 0.9, 2.0), (2.0, 0.5, 0.8)])
def test_a_ball_lies_where_it_lies_in_millimetres(spacing) -> None:
    grid = oblique((28, 28, 28), (1, 1, 1)).respace(spacing)
    middle = grid.index_to_world(np.array(grid.shape) * 0.45)
    depth = 5.5 - np.linalg.norm(world_of(grid) - middle, axis=-1)
    volume = Volume((depth * 0.1).clip(-FAR, FAR).astype(np.float32), grid)
    mask = Session(KnownModel(), volume).click(np.rint(np.array(grid.shape) * 0.45))
    clear = np.abs(depth) > 0.35
    np.testing.assert_array_equal(mask.array[clear], (depth > 0)[clear])


@pytest.mark.parametrize("index", [(0, 0, 0), (39, 35, 29), (-0.5, 35.5, 29.5), (0, 20, 29)])
def test_a_click_at_the_edge_gives_the_part_of_the_crop_that_is_on_the_scan(index) -> None:
    grid = Grid.from_spacing((40, 36, 30), (1, 1, 1)).reorient("LPS")
    session = Session(KnownModel(), Volume(np.full(grid.shape, FAR, np.float32), grid), follow=False)
    mask = session.click(index)
    np.testing.assert_array_equal(mask.array > 0, window_box(session))
    assert mask.array[tuple(np.clip(np.floor(np.array(index) + 0.5).astype(int), 0, np.array(grid.shape) - 1))]


def test_the_mask_is_where_the_probability_is_above_a_half() -> None:
    grid = oblique((14, 12, 10), (1.3, 0.8, 1.1))
    array = np.random.default_rng(2).uniform(-0.45, 0.45, grid.shape).astype(np.float32)
    session = Session(KnownModel(), Volume(array, grid), keep_clicked=False)
    mask = session.click((5, 5, 5))
    probabilities = session.probabilities
    assert probabilities.array.dtype == np.float32
    assert probabilities.grid == grid
    np.testing.assert_array_equal(mask.array > 0, probabilities.array > 0.5)
    assert 0 <= probabilities.array.min() <= probabilities.array.max() <= 1


def test_before_the_first_click_all_is_empty() -> None:
    session = Session(KnownModel(), block_scan(oblique()))
    assert not session.mask.array.any()
    assert not session.probabilities.array.any()
    assert (session.objects, session.current, session.prompts, session.remarks, session.crops) == ((1,), 1, (), (), 0)


# Several clicks


def test_a_second_click_in_the_same_crop_encodes_nothing() -> None:
    model = KnownModel()
    session = Session(model, block_scan(upright(40, 40, 40), ((18, 23),) * 3))
    session.click((20, 20, 20))
    assert (model.encoded, model.decoded) == (1, 1)
    mask = session.click((22, 18, 21))
    assert (model.encoded, model.decoded) == (1, 2)
    assert len(session.prompts) == 2
    assert mask.array.sum() == 125
    assert session.crops == 1
    session.undo()
    session.click((19, 19, 19))
    assert model.encoded == 1


def test_clicks_keep_their_looks_in_order() -> None:
    model = KnownModel()
    volume = block_scan(upright(40, 40, 40), ((18, 20),) * 3, ((22, 24),) * 3, values=(0.3, 0.2))
    session = Session(model, volume)
    session.click((19, 19, 19))
    session.click((23, 23, 23))
    assert model.prompt_features == pytest.approx([0.3, 0.2])
    session.click((21, 21, 21), positive=False)
    assert model.prompt_features == pytest.approx([0.3, 0.2, -FAR])
    assert model.labels == [1, 1, 0]


def test_clicks_far_apart_use_two_crops_and_say_so() -> None:
    model = KnownModel()
    ends = ((18, 23), (18, 23), (8, 13)), ((18, 23), (18, 23), (60, 65))
    session = Session(model, block_scan(upright(40, 40, 80), *ends))
    assert session.click((20, 20, 10)).array.sum() == 125
    mask = session.click((20, 20, 62))
    assert mask.array.sum() == 250
    assert session.crops == 2
    assert model.encoded == 2
    assert session.remarks == ("the clicks lie farther apart than one crop: 2 crops were used",)
    assert model.prompt_features == pytest.approx([FAR, FAR])  # both crops are decoded with both prompt features
    session.click((20, 21, 61))
    assert model.encoded == 2
    session.undo()
    session.undo()
    assert session.remarks == ()


def test_without_following_clicks_far_apart_are_refused_and_nothing_changes() -> None:
    model = KnownModel(spacing=(1, 1, 2))
    grid = Grid.from_spacing((40, 40, 80), (2, 1, 1))
    session = Session(model, block_scan(grid, ((18, 23),) * 3), follow=False)
    before = session.click((20, 20, 10))
    with pytest.raises(PromptError) as error:
        session.click((20, 20, 62))
    assert str(error.value) == (
        "clicks 52 mm apart with one crop of 16 voxels; expected clicks that fit well inside one crop; "
        "leave out --no-follow (follow=False), or segment them one by one"
    )
    assert len(session.prompts) == 1
    np.testing.assert_array_equal(session.mask.array, before.array)


def test_without_following_a_scan_smaller_than_the_crop_takes_clicks_anywhere() -> None:
    session = Session(
        KnownModel(), block_scan(upright(CROP, 12, 10), ((0, 1),) * 3, ((15, 16), (11, 12), (9, 10))), follow=False
    )
    session.click((0, 0, 0))
    mask = session.click((15, 11, 9))
    assert mask.array.sum() == 2
    assert session.crops == 1


def test_a_negative_click_is_passed_with_label_0() -> None:
    model = KnownModel()
    volume = block_scan(upright(40, 40, 40), ((18, 23),) * 3, ((23, 25),) * 3, values=(FAR, 0.3))
    session = Session(model, volume, keep_clicked=False)
    assert session.click((20, 20, 20)).array.sum() == 125 + 8
    assert model.labels == [1]
    mask = session.click((24, 24, 24), positive=False)
    assert model.labels == [1, 0]
    assert mask.array.sum() == 125
    assert mask.array[20, 20, 20]


def test_a_negative_click_is_refused_by_a_model_without_polarity() -> None:
    session = Session(KnownModel(polarity=False), block_scan(upright(40, 40, 40), ((18, 23),) * 3))
    with pytest.raises(PromptError, match="negative clicks only; expected at least one click in the tumour"):
        session.click((24, 24, 24), positive=False)
    session.click((20, 20, 20))
    assert session.model.labels is None
    with pytest.raises(UnsupportedError) as error:
        session.click((24, 24, 24), positive=False)
    assert str(error.value) == (
        "a negative click for the model known; expected positive clicks: this model was trained without polarity; "
        "leave it out, or use a model that lists negative clicks in `voxsam info`"
    )
    assert len(session.prompts) == 1
    assert session.mask.array.sum() == 125


def test_a_model_without_clicks_is_refused() -> None:
    model = KnownModel()
    model.describe(automatic=True)
    with pytest.raises(UnsupportedError, match="a prompt for the model known; expected no prompt.*use --auto"):
        Session(model, block_scan(upright(20, 20, 20))).click((5, 5, 5))


# Boxes, scribbles, hints


def test_a_box_limits_the_mask_until_a_click_outside_lifts_it() -> None:
    volume = block_scan(oblique((30, 30, 30)), ((8, 20), (9, 21), (10, 22)))
    session = Session(KnownModel(crop=32), volume)
    mask = session.prompt(Box.at_index(volume.grid, (16, 12, 11), (10, 17, 30 - 1)))
    wanted = np.zeros(volume.grid.shape, bool)
    wanted[10:17, 12:18, 11:22] = True
    np.testing.assert_array_equal(mask.array > 0, wanted)
    assert session.probabilities.array[9, 15, 15] == 0
    np.testing.assert_array_equal(session.click((11, 13, 12)).array > 0, wanted)
    np.testing.assert_array_equal(session.click((18, 13, 12)).array > 0, volume.array > 0)
    np.testing.assert_array_equal(session.undo().array > 0, wanted)


def test_a_negative_click_outside_a_box_does_not_lift_it() -> None:
    volume = block_scan(upright(30, 30, 30), ((8, 20),) * 3, ((22, 24),) * 3, values=(FAR, 0.3))
    session = Session(KnownModel(crop=32), volume)
    session.prompt(Box.at_index(volume.grid, (10, 10, 10), (14, 14, 14)))
    assert session.click((23, 23, 23), positive=False).array.sum() == 125


def test_two_boxes_hold_their_common_hull() -> None:
    volume = block_scan(upright(30, 30, 30), ((2, 28),) * 3)
    session = Session(KnownModel(crop=32), volume)
    mask = session.prompt(
        Box.at_index(volume.grid, (5, 6, 7), (9, 9, 9)), Box.at_index(volume.grid, (12, 6, 7), (14, 9, 20))
    )
    assert mask.array.sum() == 10 * 4 * 14
    assert mask.array[5, 6, 7] and mask.array[14, 9, 20]


def test_a_box_up_to_the_faces_of_the_scan_limits_nothing() -> None:
    volume = block_scan(upright(14, 12, 10), ((0, 14), (0, 12), (0, 10)))
    mask = Session(KnownModel(), volume).prompt(Box.at_index(volume.grid, (-0.5, -0.5, -0.5), (13.5, 11.5, 9.5)))
    assert mask.array.all()


def test_scribbles_and_hints_become_clicks_with_their_polarity() -> None:
    volume = block_scan(upright(40, 40, 40), ((18, 23),) * 3, ((23, 25),) * 3, values=(FAR, 0.3))
    strokes = np.zeros(volume.grid.shape, np.uint8)
    strokes[19:22, 20, 20] = 1
    strokes[23:25, 24, 24] = 2
    session = Session(KnownModel(), volume)
    assert session.prompt(Scribble(Volume(strokes, volume.grid))).array.sum() == 125
    assert session.model.labels == [1, 1, 1, 0, 0]
    session.reset()
    hint = Volume((strokes == 1).astype(np.uint8), volume.grid).array
    session.prompt(MaskHint(Volume(hint, volume.grid)))
    assert session.model.labels == [1, 1, 1]
    assert session.undo().array.sum() == 0


def test_prompts_are_turned_into_clicks_once() -> None:
    class Counted(Box):
        calls = 0

        def points(self, scan):
            Counted.calls += 1
            return super().points(scan)

    volume = block_scan(upright(40, 40, 40), ((18, 23),) * 3)
    session = Session(KnownModel(), volume)
    box = Box.at_index(volume.grid, (15, 15, 15), (25, 25, 25))
    session.prompt(Counted(box.corner_mm, box.opposite_mm))
    session.click((20, 20, 20))
    session.click((21, 20, 20))
    assert Counted.calls == 1


def test_a_click_outside_the_box_lifts_its_limit_and_says_so() -> None:
    grid = upright(20, 20, 20)
    session = Session(KnownModel(), block_scan(grid, ((2, 18),) * 3))
    mask = session.prompt(Box.at_index(grid, (6, 6, 6), (11, 11, 11)))
    assert np.count_nonzero(mask.array) == 6**3
    assert not any("box" in message for message in session.remarks)
    mask = session.click((14, 14, 14))
    assert np.count_nonzero(mask.array) > 6**3
    assert session.remarks[-1] == "a click in the tumour lies outside the box: the box does not limit the mask"


def test_a_scan_of_another_modality_is_remarked_on() -> None:
    scan = block_scan(upright(20, 20, 20), ((2, 18),) * 3)
    session = Session(KnownModel(), Volume(scan.array, scan.grid, "MR"))
    session.click((10, 10, 10))
    assert session.remarks[0] == "the scan is MR, the model was trained on CT; look at the mask with care"

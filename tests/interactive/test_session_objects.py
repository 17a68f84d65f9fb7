"""Session: objects keep their voxels, edits by hand override the network, and every such step can be undone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from known_model import FAR, KnownModel, block_scan, both_clicked, two_blocks, upright

from voxsam.errors import ImageError, PromptError
from voxsam.geometry import Grid
from voxsam.interactive.editing import brush, fill_holes, keep_component, lasso, remove_component, smooth
from voxsam.interactive.session import Session
from voxsam.io.segments import SegmentInfo
from voxsam.prompts import MaskHint
from voxsam.volume import Volume

GRID = Grid.from_spacing((40, 36, 30), (1, 1.5, 2), (-3, 8, 20), "LPS")


def beside() -> Session:
    """Two blocks that touch: wherever it is clicked, the network finds both, a little differently."""
    return Session(
        KnownModel(spacing=(2, 1.5, 1)),
        block_scan(GRID, ((10, 16), (10, 16), (10, 16)), ((16, 20), (10, 16), (10, 16))),
    )


def voxels(session: Session, number: int) -> np.ndarray:
    return session.mask_of(number).array > 0


# Objects keep their own


def test_an_object_is_voxel_by_voxel_the_same_before_and_after_one_beside_it_is_clicked() -> None:
    session = beside()
    session.edit(partial(brush, stroke=[(12, 12, 12)], radius_mm=4))  # object 1: a ball in the block
    first = voxels(session, 1)
    session.new_object()
    mask = session.click((18, 12, 12)).array
    np.testing.assert_array_equal(mask == 1, first)
    np.testing.assert_array_equal(voxels(session, 1), first)
    both = session.volume.array > 0
    np.testing.assert_array_equal(mask == 2, both & ~first)
    kept = (
        f"{(both & first).sum() * 0.003:.2f} mL belong to other objects, which keep them; unlock them, or allow overlap"
    )
    assert kept in session.remarks
    session.edit(partial(brush, stroke=[(12, 12, 12)], radius_mm=9))  # painting takes none of it either
    np.testing.assert_array_equal(session.mask.array == 1, first)


def test_an_unlocked_object_gives_its_voxels_and_undo_gives_them_back() -> None:
    session = beside()
    session.click((12, 12, 12))
    first = voxels(session, 1)
    session.lock(1, False)
    session.new_object()
    session.click((18, 12, 12))
    assert not voxels(session, 1).any() and (voxels(session, 2) == first).all()
    session.undo()
    np.testing.assert_array_equal(voxels(session, 1), first)
    session.undo()
    session.undo()
    assert session.segmented[1].locked
    session.lock(1, True)
    assert session.can_redo, "what is so already is no step"


def test_objects_share_voxels_where_overlap_is_allowed() -> None:
    session = beside()
    session.click((12, 12, 12))
    session.allow_overlap(True)
    session.new_object()
    session.click((18, 12, 12))
    np.testing.assert_array_equal(voxels(session, 1), voxels(session, 2))
    assert session.has_overlaps and session.mask.array.max() == 2
    session.allow_overlap(False)
    assert session.has_overlaps, "what is shared stays"
    session.click((17, 12, 12))
    assert not session.has_overlaps and voxels(session, 1).any() and not voxels(session, 2).any()


def test_a_deleted_object_comes_back_and_the_last_one_leaves_an_empty_one() -> None:
    session = both_clicked()
    mask = session.mask.array
    session.delete(2)
    assert (session.objects, session.current, session.mask.array.max()) == ((1,), 1, 1)
    session.delete(1)
    assert (session.objects, session.current, session.mask.array.max()) == ((1,), 1, 0)
    session.undo()
    np.testing.assert_array_equal(session.undo().array, mask)
    assert (session.objects, session.current) == ((1, 2), 2)
    with pytest.raises(PromptError, match="object 3; expected one of"):
        session.delete(3)


# What was clicked


def test_of_what_the_network_finds_the_clicked_components_are_kept_until_that_is_switched_off() -> None:
    volume = block_scan(upright(40, 40, 40), ((18, 21),) * 3, ((23, 26), (18, 20), (18, 20)))
    session = Session(KnownModel(), volume)
    assert session.keep_clicked and session.click((19, 19, 19)).array.sum() == 27
    assert session.set_keep_clicked(False).array.sum() == 27 + 12
    assert session.undo().array.sum() == 27
    assert session.click((24, 19, 19)).array.sum() == 27 + 12
    assert not Session(KnownModel(polarity=False), volume).keep_clicked


def test_a_prompt_that_is_removed_was_never_there() -> None:
    volume = block_scan(upright(40, 40, 40), ((18, 23),) * 3, ((23, 25),) * 3, values=(FAR, 0.3))
    session = Session(KnownModel(), volume, keep_clicked=False)
    without = session.click((20, 20, 20)).array
    session.click((24, 24, 24), positive=False)
    session.click((21, 20, 20))
    assert session.remove_prompt(1, 1).array.sum() == without.sum() and len(session.prompts) == 2
    session.undo()
    assert len(session.prompts) == 3 and session.mask.array.sum() == 125
    session.remove_prompt(1, 2)
    with pytest.raises(PromptError, match="negative clicks only"):
        session.remove_prompt(1, 0)
    with pytest.raises(PromptError, match="prompt 2 of object 1; expected one of its 2, from 0 on"):
        session.remove_prompt(1, 2)
    session.remove_prompt(1, 1)
    assert not session.remove_prompt(1, 0).array.any() and session.prompts == ()


# By hand


def test_what_was_painted_and_erased_stays_through_later_clicks() -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.edit(
        partial(brush, stroke=[(16, 11, 11)], radius_mm=1.5),
        partial(brush, stroke=[(10, 10, 10)], radius_mm=0.9, add=False),
    )
    edited = session.mask.array
    assert edited[16, 11, 11] and not edited[10, 10, 10]
    assert len(session._history._past) == 2, "all strokes of a call are one step"
    np.testing.assert_array_equal(session.click((12, 12, 12)).array, edited)
    assert session.click((16, 11, 11), positive=False).array.sum() == 26, "a negative click gives the painted ball back"
    assert session.click((10, 10, 10)).array.sum() == 27, "a positive one the erased voxel"
    for wanted in (26, edited.sum(), edited.sum(), 27, 0):
        assert session.undo().array.sum() == wanted


def test_the_network_is_given_what_was_painted_before_the_first_click() -> None:
    model, session = two_blocks()
    session.edit(partial(brush, stroke=[(11, 11, 11)], radius_mm=1.1))
    painted = voxels(session, 1)
    session.click((12, 12, 12))
    hint = session.prompts[0]
    assert isinstance(hint, MaskHint) and hint.volume.array.sum() == painted.sum() == 7
    assert model.labels == [1] * 8
    np.testing.assert_array_equal(session.undo().array > 0, painted)


@pytest.mark.parametrize("seed", range(3))
def test_after_any_edits_the_mask_is_what_they_made_of_it_and_undo_makes_it_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    session = beside()
    session.click((12, 12, 12))
    masks, wanted = [session.mask.array], voxels(session, 1)
    for _ in range(12):
        at = rng.integers((8, 8, 8), (22, 18, 18))
        some = [
            partial(
                brush, stroke=[at, at + rng.integers(-3, 4, 3)], radius_mm=rng.uniform(1, 5), add=bool(rng.integers(2))
            ),
            partial(
                lasso, polygon=[(9, 9, at[2]), (at[0], 17, at[2]), (20, 9, at[2])], axis=2, add=bool(rng.integers(2))
            ),
            partial(smooth, sigma_mm=1.5),
            fill_holes,
        ][int(rng.integers(4))]
        session.edit(some)
        wanted = some(wanted, GRID).apply(wanted)
        np.testing.assert_array_equal(voxels(session, 1), wanted)
        if not np.array_equal(masks[-1] > 0, wanted):
            masks.append(session.mask.array)
        if wanted[13, 12, 12] and rng.random() < 0.3:
            session.click((13, 12, 12))
            np.testing.assert_array_equal(voxels(session, 1), wanted)
            masks.append(session.mask.array)
    for mask in reversed(masks[:-1]):
        np.testing.assert_array_equal(session.undo().array, mask)


def test_components_are_kept_and_removed_and_what_changes_nothing_is_no_step() -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.click((25, 25, 25))
    session.edit(partial(remove_component, index=(11, 11, 11)))
    assert session.mask.array.sum() == 64
    session.undo()
    session.edit(partial(keep_component, index=(11, 11, 11)))
    assert session.mask.array.sum() == 27
    before = session._history.seen
    session.edit(fill_holes)
    assert session._history.seen is before
    with pytest.raises(PromptError, match="which is not in the mask"):
        session.edit(partial(keep_component, index=(25, 25, 25)))


# Masks from elsewhere


def test_a_mask_is_loaded_as_one_object_for_each_label_and_refined() -> None:
    session = beside()
    labels = np.zeros(GRID.shape, np.uint8)
    labels[10:16, 10:16, 10:14] = 3
    labels[30:33, 20:25, 3:6] = 7
    turned = GRID.reorient("SAR")  # the same voxels in another order of axes
    order, flips = GRID.permutation_to("SAR")
    array = labels.transpose(order)[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    mask = session.load_mask(Volume(array, turned, "SEG"), ["liver", "node"])
    np.testing.assert_array_equal(mask.array, (labels == 3) + 2 * (labels == 7))
    assert session.objects == (1, 2) and session.current == 1
    assert [session.info(n).name for n in session.objects] == ["liver", "node"]
    assert session.segmented[1].edited and session.prompts == ()
    assert session.click((12, 12, 15)).array[12, 12, 15] == 1
    session.undo()
    assert not session.undo().array.any() and session.objects == (1,)
    with pytest.raises(ImageError, match="a mask without voxels on the scan"):
        session.load_mask(Volume(np.zeros(GRID.shape, np.uint8), GRID))


def test_names_and_colours_are_no_steps() -> None:
    _, session = two_blocks()
    assert session.info(1) == SegmentInfo("Tumour 1", (255, 90, 95))
    session.describe(1, SegmentInfo("node", (1, 2, 3)))
    assert not session.can_undo and session.info(1).name == "node"
    with pytest.raises(PromptError, match="object 2"):
        session.describe(2, SegmentInfo("x", (0, 0, 0)))


# Clicks that mean nothing


def test_a_click_in_air_or_in_the_empty_margin_of_an_mr_scan_is_remarked() -> None:
    array = np.full((20, 20, 20), -1000, np.int16)
    array[5:15, 5:15, 5:15] = 0
    air = Session(KnownModel(), Volume(array, upright(20, 20, 20), "CT"))
    air.click((10, 10, 10))
    assert not any("air" in remark for remark in air.remarks)
    air.click((2, 2, 2))
    assert "the click at 2,2,2 lies in air (-1000 HU): is it in the tumour?" in air.remarks
    margin = Session(KnownModel(), Volume(np.maximum(array + 1000, 0), upright(20, 20, 20), "MR"))
    margin.click((2, 2, 2))
    assert "the click at 2,2,2 lies outside the patient: all is 0 there; is it in the tumour?" in margin.remarks

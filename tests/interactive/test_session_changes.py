"""Session: the box that a step changed, and a mask that is redrawn only in that box."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from known_model import CROP, FAR, KnownModel, block_scan, two_blocks, upright

from voxsam.boxes import NOWHERE, is_empty
from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive.crops import blend
from voxsam.interactive.history import LabelMap
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.interactive.session import Session
from voxsam.preprocess import Window, paste
from voxsam.prompts import Box, Point
from voxsam.region import Region
from voxsam.volume import Volume

FIRST_BLOCK = (slice(10, 13), slice(10, 13), slice(10, 13))


def all_steps(session: Session) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Take every kind of step and check that the mask does not change outside `changed`."""
    steps = {
        "click": lambda: session.click((11, 11, 11)),
        "negative": lambda: session.click((9, 9, 9), positive=False),
        "undo": session.undo,
        "redo": session.redo,
        "new": session.new_object,
        "second": lambda: session.click((25, 25, 25)),
        "box": lambda: session.prompt(Box.at_index(session.volume.grid, (24, 24, 24), (25, 26, 27))),
        "undo second": session.undo,
        "reset": session.reset,
        "undo reset": session.undo,
        "undo past reset": session.undo,
    }
    seen = []
    for name, step in steps.items():
        before = session.mask.array
        step()
        after = session.mask.array
        seen.append((name, before, after))
        outside = np.ones(before.shape, bool)
        outside[session.changed] = False
        np.testing.assert_array_equal(before[outside], after[outside], err_msg=name)
    return seen


def drawn_anew(session: Session) -> np.ndarray:
    return LabelMap(session.volume.grid).draw({n: found.region for n, found in session.segmented.items()})


def test_nothing_changes_outside_the_changed_box_and_every_mask_is_as_drawn_from_scratch() -> None:
    _, session = two_blocks()
    seen = all_steps(session)
    assert [name for name, before, after in seen if (before != after).any()] == [
        "click", "second", "box", "undo second", "reset", "undo reset", "undo past reset",
    ]  # fmt: skip
    fresh = drawn_anew(session)
    np.testing.assert_array_equal(session.mask.array, fresh)


def test_the_labels_of_a_box_are_those_of_the_mask_and_no_view_of_it() -> None:
    _, session = two_blocks()
    all_steps(session)
    whole = session.mask.array
    for box in (FIRST_BLOCK, NOWHERE, (slice(0, 3), slice(5, 40), slice(2, 30)), session.extent):
        labels = session.labels_in(box)
        np.testing.assert_array_equal(labels, whole[box])
        assert labels.base is None


def test_the_changed_box_of_a_click_is_that_of_its_tumour() -> None:
    _, session = two_blocks()
    assert session.changed == NOWHERE
    session.click((11, 11, 11))
    assert session.changed == FIRST_BLOCK
    session.undo()
    assert session.changed == FIRST_BLOCK  # the box of the answer that went
    session.undo()
    assert is_empty(session.changed)  # there was nothing to undo
    session.redo()
    assert session.changed == FIRST_BLOCK


def test_the_changed_box_holds_the_answer_before_and_after() -> None:
    """The second click moves the crop of 16 voxels by 4, out of one speck and into another; L and P run backwards."""
    grid = Grid.from_spacing((60, 40, 30), (1, 1, 1)).reorient("LPS")
    specks = [((i, i + 1), (20, 21), (10, 11)) for i in (23, 29, 39)]
    session = Session(KnownModel(), block_scan(grid, *specks), follow=False, keep_clicked=False)
    session.click((29, 20, 10))
    assert session.changed == (slice(23, 30), slice(20, 21), slice(10, 11))
    session.click((37, 20, 10))
    assert session.prediction.reach == ((slice(27, 42), slice(18, 23), slice(8, 13)),)
    assert session.changed == (slice(23, 40), slice(20, 21), slice(10, 11))


def test_probabilities_go_on_beyond_the_mask() -> None:
    """Below 0.5 nothing is in the mask, but there is a probability: 0.1 in all of the crop outside the block."""
    _, session = two_blocks()
    session.click((11, 11, 11))
    soft = session.probabilities.array
    assert soft[11, 11, 11] == pytest.approx(0.9, abs=1e-3) and soft[5, 5, 5] == pytest.approx(0.1, abs=1e-3)
    assert soft[30, 30, 30] == 0
    assert session.extent == session.changed == FIRST_BLOCK


def test_a_box_prompt_keeps_the_change_inside_it() -> None:
    volume = block_scan(upright(40, 40, 40), ((8, 16),) * 3)
    session = Session(KnownModel(), volume)
    mask = session.prompt(Box.at_index(volume.grid, (9, 10, 11), (12, 14, 13)))
    assert session.changed == (slice(9, 13), slice(10, 15), slice(11, 14))
    assert mask.array.sum() == 4 * 5 * 3


def test_other_objects_and_refusals_change_nothing() -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.new_object()
    assert is_empty(session.changed)
    session.click((25, 25, 25))
    assert session.changed == tuple(slice(24, 28) for _ in range(3))  # not the first object's
    before = session.changed
    with pytest.raises(PromptError):
        session.click((99, 0, 0))
    assert session.changed == before
    session.reset()
    assert session.changed == tuple(slice(10, 28) for _ in range(3))  # both objects went


def test_a_mask_that_was_handed_out_stays_as_it_was_and_is_the_callers_own() -> None:
    _, session = two_blocks()
    first = session.click((11, 11, 11))
    kept = first.array.copy()
    session.new_object()
    second = session.click((25, 25, 25))
    np.testing.assert_array_equal(first.array, kept)
    wanted = second.array.copy()
    second.array[...] = 7
    np.testing.assert_array_equal(session.mask.array, wanted)


def test_only_the_objects_that_changed_and_those_under_them_are_drawn(monkeypatch) -> None:
    """Object 1 is away from object 2: clicks on object 2 do not compute its voxels again."""
    volume = block_scan(upright(60, 40, 40), ((8, 12),) * 3, ((44, 48), (8, 12), (8, 12)))
    session = Session(KnownModel(), volume)
    session.click((10, 10, 10))
    far = session.segmented[1].region
    session.new_object()
    asked: list[Region] = []
    draw = Region.within
    monkeypatch.setattr(Region, "within", lambda self, box: (asked.append(self), draw(self, box))[1])
    mask = session.click((46, 10, 10))
    assert far not in asked and session.segmented[2].region in asked
    assert ((mask.array == 1).sum(), (mask.array == 2).sum()) == (64, 64)


def test_overlapping_objects_are_drawn_as_from_scratch_after_each_of_many_steps() -> None:
    rng = np.random.default_rng(5)
    grid = Grid.from_spacing((30, 26, 22), (1, 1.3, 0.8)).reorient("PIR")
    values = rng.choice([-FAR, 0.1, 0.2, 0.3], grid.shape).astype(np.float32)
    session = Session(KnownModel(), Volume(values, grid))
    for _ in range(40):
        step = rng.integers(6)
        if step == 0 and len(session.objects) < 4:
            session.new_object()
        elif step == 1:
            session.undo()
        elif step == 2:
            session.redo()
        elif step == 3:
            session.select(int(rng.choice(session.objects)))
        else:
            session.click(rng.integers(0, grid.shape), positive=bool(step == 4 or not session.prompts))
        fresh = drawn_anew(session)
        np.testing.assert_array_equal(session.mask.array, fresh)
    assert session.mask.array.max() > 1


@pytest.mark.parametrize("turn", [0.0, 20.0], ids=["parallel", "oblique"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_drawn_of_the_core_is_what_the_whole_answer_gives(seed: int, turn: float) -> None:
    """Blobs in the crop, at its faces and at the scan's border; some crops extend beyond the scan, some are empty."""
    rng = np.random.default_rng(seed)
    scan = Grid.from_spacing((31, 27, 23), (1.0, 1.3, 0.8)).reorient("PIR")
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    scan = Grid(scan.shape, np.array([[c, -s, 0, 5], [s, c, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1]]) @ scan.affine)
    model_grid = scan.reorient("SAR").respace((1.7, 1.1, 2.3))
    window = Window(model_grid, tuple(rng.integers(-4, 6, 3).tolist()), (9, 12, 8))
    probability = rng.choice(np.float32([0, 0.2, 0.45]), window.shape)
    if seed:
        low = rng.integers(0, np.array(window.shape) - 2)
        probability[tuple(slice(a, a + 3) for a in low)] = rng.uniform(0.4, 1, (3, 3, 3))[
            tuple(slice(0, n - a) for a, n in zip(low, window.shape, strict=True))
        ]
    found = Prediction(scan, pieces=((window, probability),))
    whole = found.probabilities.array
    drawn = np.zeros(scan.shape, np.float32)
    for box, values in found.on_scan():
        drawn[box] = values
    np.testing.assert_array_equal(drawn > 0.5, whole > 0.5)
    np.testing.assert_allclose(drawn[drawn > 0.5], whole[whole > 0.5], atol=1e-5)
    assert (whole > 0.5).any() == (seed not in (0, 3))  # of seed 3 the blob lies outside the scan
    assert sum(values.size for _, values in found.on_scan()) < 0.6 * (whole > 0).sum()
    np.testing.assert_array_equal(found.mask.array, whole > 0.5)


def test_a_tumour_that_the_network_sees_in_the_padding_alone_is_no_mask() -> None:
    scan = Grid.from_spacing((20, 20, 20), (1, 1, 1)).reorient("SAR")
    window = Window(scan, (-6, 2, 2), (12, 12, 12))
    probability = np.full(window.shape, 0.1, dtype=np.float32)
    probability[:4] = 0.9  # model grid voxels -6 .. -3
    found = Prediction(scan, pieces=((window, probability),))
    assert found.reach == found.on_scan() == ()
    assert 0 < found.probabilities.array.max() < 0.5
    probability[6] = 0.8  # model grid voxel 0: at the scan's border
    (((d, h, w), values),) = Prediction(scan, pieces=((window, probability),)).on_scan()
    assert (d.start, h.start, w.start) == (0, 1, 1)
    assert (values[0, 1:-1, 1:-1] > 0.5).all()


@pytest.mark.parametrize("spread", [4, 12, 40])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_give_the_mask_and_the_probabilities_of_their_blend_painted_as_one(seed: int, spread: int) -> None:
    """Crops that overlap, touch, or lie apart, in the scan and beyond it; the scan is oblique to them."""
    rng = np.random.default_rng(seed)
    turn = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1]])
    scan = Grid.from_spacing((51, 37, 33), (1.0, 1.3, 0.8)).reorient("PIR")
    scan = Grid(scan.shape, turn @ scan.affine)
    model_grid = scan.reorient("SAR").respace((1.7, 1.1, 2.3))
    last = np.minimum(spread, np.array(model_grid.shape) - 3)
    windows = [Window(model_grid, tuple(rng.integers(-4, last).tolist()), (9, 12, 8)) for _ in range(5)]
    pieces = tuple((window, rng.uniform(0, 0.9, window.shape).astype(np.float32)) for window in windows)
    all_of_it = Window(model_grid, (-10, -10, -10), (80, 80, 80))
    box, values = paste(blend(pieces, all_of_it), all_of_it, scan)
    wanted = np.zeros(scan.shape, np.float32)
    wanted[box] = values
    found = Prediction(scan, pieces=pieces)
    np.testing.assert_allclose(found.probabilities.array, wanted, atol=1e-6)
    clear = np.abs(wanted - 0.5) > 1e-6
    np.testing.assert_array_equal(found.mask.array[clear] > 0, wanted[clear] > 0.5)


def test_two_clicks_at_the_ends_of_a_huge_scan_take_the_memory_of_two_crops() -> None:
    array = np.broadcast_to(np.float32(-FAR), (1000, 900, 800))
    volume = Volume(array, Grid.from_spacing(array.shape, (1, 1, 1)))
    predictor = Predictor(KnownModel()).set_image(volume)
    tracemalloc.start()
    clicks = [Point.at_index(volume.grid, index) for index in ((9, 9, 9), (990, 890, 790))]
    found = predictor.predict(clicks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.nbytes == 2 * 4 * CROP**3 and found.crops == 2
    assert peak < 4 << 20  # one box around both would take 2.8 GB

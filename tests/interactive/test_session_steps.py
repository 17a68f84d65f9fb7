"""Session: undo, redo and reset, several objects, and what is kept in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from known_model import CROP, FAR, KnownModel, block_scan, both_clicked, two_blocks, upright

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive import crops as crops_module
from voxsam.interactive import history as history_module
from voxsam.interactive.session import Session
from voxsam.prompts import Point, Scribble
from voxsam.testing import stub_network, stub_scan
from voxsam.volume import Volume

# Undo, redo, reset


def test_undo_and_redo_walk_the_steps() -> None:
    model, session = two_blocks()
    empty = session.mask.array
    one = session.click((11, 11, 11)).array
    two = session.click((25, 25, 25)).array
    assert (one.sum(), two.sum()) == (27, 27 + 64)
    np.testing.assert_array_equal(session.undo().array, one)
    assert len(session.prompts) == 1
    np.testing.assert_array_equal(session.undo().array, empty)
    np.testing.assert_array_equal(session.undo().array, empty)  # nothing more to undo
    np.testing.assert_array_equal(session.redo().array, one)
    np.testing.assert_array_equal(session.redo().array, two)
    np.testing.assert_array_equal(session.redo().array, two)
    assert model.decoded == 3  # undo and redo compute nothing


def test_a_new_click_ends_redo() -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.undo()
    session.click((25, 25, 25))
    assert session.redo().array.sum() == 64
    assert len(session.prompts) == 1


def test_reset_empties_and_can_be_undone_and_keeps_the_crops() -> None:
    model, session = two_blocks()
    session.click((11, 11, 11))
    session.new_object()
    assert not session.reset().array.any()
    assert (session.objects, session.current, session.prompts) == ((1,), 1, ())
    encoded = model.encoded
    assert session.click((11, 11, 11)).array.sum() == 27
    assert model.encoded == encoded
    session.undo()
    session.undo()
    assert session.objects == (1, 2)
    assert session.mask.array.sum() == 27


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s.click((40, 0, 0)),
        lambda s: s.click((1, float("nan"), 2)),
        lambda s: s.click((1, 2)),
        lambda s: s.prompt(),
        lambda s: s.prompt("10,10,10"),
        lambda s: s.prompt(Point.at_index(s.volume.grid, (25, 25, 25)), Point((1e3, 0.0, 0.0))),
        lambda s: s.prompt(Scribble(Volume(np.zeros(s.volume.grid.shape, np.uint8), s.volume.grid))),
        lambda s: s.select(7),
    ],
)
def test_after_a_refused_prompt_the_session_is_as_before(wrong) -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.click((25, 25, 25))
    session.undo()
    before, state = session.mask.array, session._history.seen
    with pytest.raises(PromptError):
        wrong(session)
    assert session._history.seen is state
    np.testing.assert_array_equal(session.mask.array, before)
    assert session.redo().array.sum() == 27 + 64  # what was undone can still be done again


def test_after_a_failure_of_the_model_the_session_is_as_before() -> None:
    model, session = two_blocks()
    session.click((11, 11, 11))
    state = session._history.seen

    def fail(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    model.encode = fail
    with pytest.raises(torch.OutOfMemoryError):
        session.click((30, 30, 30))
    assert session._history.seen is state
    del model.encode
    assert session.click((25, 25, 25)).array.sum() == 27 + 64


def test_no_prompt_is_refused_in_words() -> None:
    _, session = two_blocks()
    with pytest.raises(PromptError, match="no prompt; expected a click, box, scribble or mask hint"):
        session.prompt()


def test_the_steps_of_undo_are_bounded() -> None:
    _, session = two_blocks()
    for _ in range(history_module.UNDO_STEPS + 20):
        session.new_object()
        session.reset()
    assert len(session._history._past) == history_module.UNDO_STEPS


BLOCK_BYTES = 4  # a mask of 3 x 3 x 3 voxels, a bit for each


def test_past_steps_are_bounded_in_bytes_and_the_oldest_go_first(monkeypatch) -> None:
    one_crop = 4 * CROP**3 + BLOCK_BYTES  # float32 probabilities of one answer, and its mask
    monkeypatch.setattr(history_module, "UNDO_BYTES", 3 * one_crop)
    _, session = two_blocks()
    masks = [session.click((11, 11, k)).array for k in (10, 11, 12, 11, 10, 12)]
    prompts = []
    for _ in range(6):
        session.undo()
        prompts.append(len(session.prompts))
    assert prompts == [5, 4, 3, 3, 3, 3]  # three answers beside the one that was seen
    for mask in masks[3:]:
        np.testing.assert_array_equal(session.redo().array, mask)
    assert len(session.prompts) == 6


def test_each_session_may_have_its_own_bound() -> None:
    volume = block_scan(upright(40, 40, 40), ((10, 13),) * 3)
    tight, loose = Session(KnownModel(), volume, undo_bytes=4 * CROP**3 + BLOCK_BYTES), Session(KnownModel(), volume)
    for session in (tight, loose):
        for k in (10, 11, 12, 11):
            session.click((11, 11, k))
    one = 4 * CROP**3 + BLOCK_BYTES
    assert loose.predictions_bytes == 4 * one and tight.predictions_bytes == 2 * one


def test_the_last_step_can_be_undone_however_large_it_is(monkeypatch) -> None:
    monkeypatch.setattr(history_module, "UNDO_BYTES", 1)
    _, session = two_blocks()
    for k in (10, 11, 12):
        session.click((11, 11, k))
    session.undo()
    session.undo()
    assert len(session.prompts) == 2


def test_the_way_back_to_the_empty_state_costs_nothing(monkeypatch) -> None:
    """Evaluation relies on it: it undoes two clicks after each trial."""
    monkeypatch.setattr(history_module, "UNDO_BYTES", 1)
    _, session = two_blocks()
    for _ in range(3):
        session.click((11, 11, 11))
        session.click((11, 11, 12))
        session.undo()
        session.undo()
        assert session.prompts == ()


def test_what_steps_share_is_counted_once(monkeypatch) -> None:
    monkeypatch.setattr(history_module, "UNDO_BYTES", 2 * 4 * CROP**3)
    _, session = two_blocks()
    session.click((11, 11, 11))
    for _ in range(5):
        session.new_object()  # the answer of object 1 is in every state
    for _ in range(5):
        session.undo()
    assert (session.objects, len(session.prompts)) == ((1,), 1)
    assert not session.undo().array.any()


def test_undo_takes_back_the_last_step_of_any_object() -> None:
    session = both_clicked()
    session.select(1)
    assert set(np.unique(session.undo().array)) == {0, 1}
    assert session.current == 2  # as it was at that step


# Several objects


def test_objects_have_their_numbers_as_labels() -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    assert session.new_object() == 2
    assert (session.current, session.objects, session.prompts) == (2, (1, 2), ())
    mask = session.click((25, 25, 25))
    assert (mask.array == 1).sum() == 27
    assert (mask.array == 2).sum() == 64
    assert session.probabilities.array[11, 11, 11] == 0
    session.select(1)
    assert session.current == 1
    assert session.probabilities.array[11, 11, 11] == pytest.approx(0.9)
    assert session.probabilities.array[25, 25, 25] == 0
    session.click((10, 10, 10))
    assert len(session.prompts) == 2
    np.testing.assert_array_equal(session.mask.array, mask.array)
    with pytest.raises(PromptError) as error:
        session.select(3)
    assert str(error.value) == "object 3; expected one of [1, 2]; begin it with new_object()"


def test_a_new_object_can_be_undone() -> None:
    session = both_clicked()
    assert session.undo().array.max() == 1
    assert session.objects == (1, 2)
    session.undo()
    assert (session.objects, session.current) == ((1,), 1)
    session.redo()
    assert session.redo().array.max() == 2


def test_no_more_objects_than_labels() -> None:
    _, session = two_blocks()
    for number in range(2, 256):
        assert session.new_object() == number
    with pytest.raises(PromptError, match="object 256; expected at most 255 objects"):
        session.new_object()
    assert session.current == 255


# Resources


def test_encoded_crops_are_bounded(monkeypatch) -> None:
    model = KnownModel()
    session = Session(model, block_scan(upright(200, 40, 40), ((0, 200), (19, 21), (19, 21))), follow=False)
    one_crop = 3 * 4 * CROP**3  # features, static and crop of the model above
    monkeypatch.setattr(crops_module, "KEPT_BYTES", 5 * one_crop)
    for i in range(8, 200, 16):
        session.reset()
        session.click((i, 20, 20))
    assert len(session.predictor.encoded.kept) == 5
    encoded = model.encoded
    session.reset()
    session.click((i, 20, 20))  # the latest is kept
    assert model.encoded == encoded
    session.reset()
    session.click((8, 20, 20))  # the first is not
    assert model.encoded == encoded + 1
    monkeypatch.setattr(crops_module, "KEPT_BYTES", 1)
    session.reset()
    session.click((100, 20, 20))
    assert len(session.predictor.encoded.kept) == 1


def test_what_undo_keeps_holds_no_pasted_scans() -> None:
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.click((25, 25, 25))
    session.click((25, 25, 24))
    kept = [a for state in session._history._past for a in state.objects.values() if "pasted" in a.prediction.__dict__]
    assert kept == []
    assert session.undo().array.sum() == 27 + 64
    assert session.undo().array.sum() == 27
    kept = [
        a for state in session._history._future for a in state.objects.values() if "pasted" in a.prediction.__dict__
    ]
    assert kept == []


def test_progress_goes_from_0_to_1_for_each_encoded_crop() -> None:
    fractions: list[tuple[str, float]] = []
    volume = block_scan(upright(40, 40, 40), ((18, 23),) * 3)
    model = KnownModel()
    session = Session(model, volume, progress=lambda stage, fraction: fractions.append((stage, fraction)))
    session.click((20, 20, 20))
    assert fractions == [("encoding", 0.0), ("encoding", 0.25), ("encoding", 0.5), ("encoding", 1.0)]
    session.click((21, 20, 20))
    assert len(fractions) == 4


def test_two_sessions_that_share_a_model_hear_of_their_own_crops_only() -> None:
    """Two threads take turns at every report: with hooks on the model, each would hear of the other's blocks."""
    network, given = stub_network(), stub_scan()
    turn = threading.Barrier(2, timeout=30)
    heard: dict[str, list[float]] = {"one": [], "two": []}

    def work(name: str) -> None:
        def hear(stage: str, fraction: float) -> None:
            heard[name].append(fraction)
            turn.wait()

        Session(network, given.scan, follow=False, progress=hear).click(given.click)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, name) for name in heard]:
            future.result()
    blocks = network.config.depth
    wanted = [0.0, *(done / (blocks + 2) for done in range(1, blocks + 1)), 1.0]
    assert heard == {"one": pytest.approx(wanted), "two": pytest.approx(wanted)}


def test_an_impossibly_large_scan_is_read_only_under_its_crop() -> None:
    array = np.broadcast_to(np.float32(-FAR), (30_000, 30_000, 30_000))
    volume = Volume(array, Grid.from_spacing(array.shape, (0.5, 0.5, 0.7)).reorient("LPS"))
    session = Session(KnownModel(), volume)
    found = session.predictor.predict([Point.at_index(volume.grid, (15_000, 200, 29_000))])
    assert found.on_scan() == ()
    ((window, probability),) = found.pieces
    assert window.shape == (CROP,) * 3 and not (probability > 0.5).any()

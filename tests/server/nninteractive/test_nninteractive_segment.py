"""The object that a client works on: pending interactions, initial masks, undo; against a session's own masks."""

from __future__ import annotations

import numpy as np
import pytest
from known_model import FAR, KnownModel, block_scan, upright

from voxsam.boxes import is_empty
from voxsam.errors import PromptError
from voxsam.interactive.predictor import Predictor
from voxsam.interactive.session import Session
from voxsam.prompts import Box, MaskHint, Point
from voxsam.protocols.segment import Segment
from voxsam.region import Region

FIRST, SECOND = ((10, 13), (11, 15), (12, 14)), ((24, 28), (25, 27), (23, 29))  # blocks too far apart for one crop


class Buffer:
    """A client's buffer: every change is written into it, and nothing outside the changed box may differ."""

    def __init__(self) -> None:
        self.scan = block_scan(upright(40, 41, 42), FIRST, SECOND)
        self.segment = Segment(Predictor(KnownModel()).set_image(self.scan))
        self.array = np.zeros(self.scan.grid.shape, np.uint8)

    def take(self, change) -> bool:
        assert change.mask.shape == tuple(part.stop - part.start for part in change.box)
        self.array[change.box] = change.mask
        return change.ran

    def click(self, index, positive: bool = True, predict: bool = True) -> bool:
        return self.take(self.segment.add([Point.at_index(self.scan.grid, index, positive)], predict))

    def seed(self, mask: np.ndarray, predict: bool = False) -> bool:
        self.array[:] = mask  # the client does so itself
        return self.take(self.segment.seed(Region.of(mask), predict))

    def undo(self) -> bool:
        return self.take(self.segment.undo())

    def shows(self, *blocks) -> bool:
        return np.array_equal(self.array, block(*blocks))


def block(*blocks) -> np.ndarray:
    mask = np.zeros((40, 41, 42), np.uint8)
    for ends in blocks:
        mask[tuple(slice(*pair) for pair in ends)] = 1
    return mask


@pytest.fixture
def buffer() -> Buffer:
    return Buffer()


def test_a_click_shows_its_block_and_only_its_box_is_sent(buffer):
    change = buffer.segment.add([Point.at_index(buffer.scan.grid, (11, 12, 13))], True)
    assert buffer.take(change) and buffer.shows(FIRST)
    assert change.mask.size < 500


def test_interactions_wait_until_a_prediction_takes_them_all(buffer):
    assert not buffer.click((11, 12, 13), predict=False)
    assert not buffer.click((25, 26, 24), predict=False)
    assert buffer.shows()
    assert buffer.take(buffer.segment.predict()) and buffer.shows(FIRST, SECOND)
    assert not buffer.take(buffer.segment.predict())


def test_the_next_interaction_takes_along_what_waits(buffer):
    buffer.click((11, 12, 13), predict=False)
    assert buffer.click((25, 26, 24)) and buffer.shows(FIRST, SECOND)
    assert buffer.undo() and buffer.shows()
    assert buffer.take(buffer.segment.predict()) and buffer.shows(FIRST)  # the first one waits again


def test_undo_goes_back_interaction_by_interaction_and_then_says_that_there_is_none(buffer):
    buffer.click((11, 12, 13))
    buffer.click((25, 26, 24))
    assert buffer.undo() and buffer.shows(FIRST)
    assert buffer.undo() and buffer.shows()
    assert not buffer.undo()
    assert buffer.click((25, 26, 24)) and buffer.shows(SECOND)


def test_undo_of_an_interaction_that_waits_only_forgets_it(buffer):
    buffer.click((11, 12, 13))
    buffer.click((25, 26, 24), predict=False)
    assert buffer.undo() and buffer.shows(FIRST)
    assert not buffer.take(buffer.segment.predict())
    assert buffer.undo() and buffer.shows()


def test_a_negative_click_waits_for_a_positive_one(buffer):
    buffer.scan.array[11, 12, 12] = FAR / 2
    assert buffer.click((11, 12, 12), positive=False) and buffer.shows()
    assert buffer.click((10, 12, 13))
    expected = block(FIRST)
    expected[11, 12, 12] = 0
    np.testing.assert_array_equal(buffer.array, expected)
    assert buffer.undo() and buffer.shows()


def test_reset_begins_another_object_with_no_way_back(buffer):
    buffer.click((11, 12, 13))
    buffer.segment.reset()
    buffer.array[:] = 0
    assert not buffer.undo() and buffer.shows()
    assert buffer.click((25, 26, 24)) and buffer.shows(SECOND)
    assert buffer.undo() and not buffer.undo() and buffer.shows()


def test_crops_stay_encoded_over_a_reset(buffer):
    buffer.click((11, 12, 13))
    buffer.segment.reset()
    buffer.click((11, 12, 13))
    assert buffer.segment.predictor.model.encoded == 1


def test_what_cannot_be_used_changes_nothing(buffer):
    buffer.click((11, 12, 13), predict=False)
    wrong = Box(buffer.scan.grid.index_to_world((1, 1, 1)).tolist(), (999.0, 0.0, 0.0))
    with pytest.raises(PromptError, match="outside the scan"):
        buffer.segment.add([wrong], False)
    assert buffer.take(buffer.segment.predict()) and buffer.shows(FIRST)
    assert buffer.undo() and not buffer.undo()


def test_a_prediction_that_fails_forgets_its_interaction_and_keeps_what_waited(buffer):
    predictor = buffer.segment.predictor
    predictor.follow = False
    buffer.click((11, 12, 13), predict=False)
    with pytest.raises(PromptError, match="with one crop"):
        buffer.click((25, 26, 24))
    assert buffer.take(buffer.segment.predict()) and buffer.shows(FIRST)


def test_an_initial_mask_is_shown_until_a_prediction_replaces_all_of_it(buffer):
    rough = block(((11, 13), (11, 14), (12, 14)), ((2, 4), (30, 33), (35, 40)))  # some of it far from any block
    buffer.click((25, 26, 24))
    assert not buffer.seed(rough)
    np.testing.assert_array_equal(buffer.array, rough)
    assert buffer.click((11, 12, 13))
    hinted = Session(KnownModel(), buffer.scan)
    hint, click = MaskHint(Region.of(rough).on(buffer.scan.grid)), Point.at_index(buffer.scan.grid, (11, 12, 13))
    np.testing.assert_array_equal(buffer.array, hinted.prompt(hint, click).array)
    assert buffer.undo()
    np.testing.assert_array_equal(buffer.array, rough)
    assert buffer.undo() and buffer.shows(SECOND)
    assert buffer.undo() and buffer.shows() and not buffer.undo()


def test_an_initial_mask_with_a_prediction_is_one_interaction(buffer):
    buffer.click((25, 26, 24))
    assert buffer.seed(block(((11, 13), (12, 14), (12, 14))), predict=True) and buffer.shows(FIRST)
    assert buffer.undo() and buffer.shows(SECOND)


def test_an_empty_initial_mask_empties_the_object(buffer):
    buffer.click((25, 26, 24))
    assert not buffer.seed(block()) and buffer.shows()
    assert buffer.click((11, 12, 13)) and buffer.shows(FIRST)


def test_a_buffer_that_was_emptied_is_filled_by_the_next_prediction(buffer):
    buffer.click((11, 12, 13))
    buffer.array[:] = 0  # a client that sets another buffer
    buffer.click((11, 12, 13))
    assert buffer.shows(FIRST)


def test_undo_goes_so_far_back_and_no_further(buffer, monkeypatch):
    monkeypatch.setattr("voxsam.protocols.segment.UNDO_STEPS", 2)
    for _ in range(4):
        buffer.click((11, 12, 13))
    assert [buffer.undo() for _ in range(4)] == [True, True, False, False]
    assert buffer.shows(FIRST)


def test_a_change_without_voxels_has_an_empty_box(buffer):
    assert is_empty(buffer.segment.undo().box)


def test_undo_keeps_to_its_memory_but_one_step_always(buffer):
    buffer.segment.undo_bytes = 0
    for _ in range(3):
        buffer.click((11, 12, 13))
    assert [buffer.undo() for _ in range(2)] == [True, False]
    assert buffer.segment.predictions_bytes == buffer.segment._seen.nbytes > 0

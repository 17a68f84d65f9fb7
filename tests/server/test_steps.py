"""Scripts: played again they bring a session back, with its undo and redo; prompts as JSON mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from voxsam.boxes import is_empty
from voxsam.errors import PromptError
from voxsam.interactive.session import Session
from voxsam.prompts import Box, Scribble
from voxsam.server.steps import AnyPrompt, Prompts, Script
from voxsam.volume import Volume


def prompt(**fields):
    return TypeAdapter(AnyPrompt).validate_python(fields)


def point(index, positive=True):
    return prompt(kind="point", index=tuple(map(float, index)), positive=positive)


def random_steps(script: Script, session: Session, rng: np.random.Generator, count: int) -> None:
    for _ in range(count):
        step = rng.integers(8)
        if step == 0 and len(session.objects) < 3:
            script.take(session, "new_object")
        elif step in (1, 2):
            script.undo(session)
        elif step == 3:
            script.redo(session)
        elif step == 4:
            script.select(session, int(rng.choice(session.objects)))
        elif step == 5 and rng.random() < 0.3:
            script.take(session, "reset")
        else:
            index = rng.integers(0, session.volume.grid.shape)
            script.take(session, "prompt", [point(index, positive=bool(not session.prompts or rng.random() < 0.7))])


def same(a: Session, b: Session) -> None:
    assert (a.objects, a.current, a.can_undo, a.can_redo) == (b.objects, b.current, b.can_undo, b.can_redo)
    np.testing.assert_array_equal(a.mask.array, b.mask.array)
    np.testing.assert_array_equal(a.probabilities.array, b.probabilities.array)


@pytest.mark.parametrize("seed", range(4))
def test_a_script_brings_back_the_session_and_every_step_of_undo_and_redo(network, phantom, seed):
    script, session = Script(), Session(network, phantom.scan)
    random_steps(script, session, np.random.default_rng(seed), 14)
    kept = Script.model_validate_json(script.model_dump_json())
    again = Session(network, phantom.scan)
    for piece in kept.replay():
        piece(again)
    same(session, again)
    assert kept == script
    for move in ("undo", "undo", "undo", "redo", "redo", "undo", "redo"):
        getattr(script, move)(session)
        getattr(kept, move)(again)
        same(session, again)


def test_a_refused_step_leaves_script_and_session_as_they_were(network, phantom):
    script, session = Script(), Session(network, phantom.scan)
    script.take(session, "prompt", [point(phantom.click)])
    before, kept = session.mask.array, script.model_copy(deep=True)
    with pytest.raises(PromptError, match="outside the scan"):
        script.take(session, "prompt", [point((5000, 0, 0))])
    with pytest.raises(PromptError, match="object 9; expected one of"):
        script.select(session, 9)
    assert script == kept
    np.testing.assert_array_equal(session.mask.array, before)


def test_undo_of_nothing_is_no_step(network, phantom):
    script, session = Script(), Session(network, phantom.scan)
    script.undo(session)
    script.redo(session)
    assert script == Script() and is_empty(session.changed)


def test_a_scribble_is_the_same_as_one_drawn_on_the_whole_scan(network, phantom):
    grid, rng = phantom.scan.grid, np.random.default_rng(3)
    voxels = np.unique(np.add(phantom.click, rng.integers(-3, 4, (40, 3))).clip(0, np.array(grid.shape) - 1), axis=0)
    labels = np.zeros(grid.shape, np.uint8)
    labels[tuple(voxels.T)] = 2
    drawn = Scribble(Volume(labels, grid, "SEG")).points(grid)
    sent = prompt(kind="scribble", voxels=voxels.tolist(), positive=False).on(grid).points(grid)
    assert len(sent) == 10 and {p.positive for p in sent} == {False}
    np.testing.assert_allclose([p.world_mm for p in sent], [p.world_mm for p in drawn], atol=1e-9)


def test_both_corners_belong_to_a_box(phantom):
    grid = phantom.scan.grid
    box = prompt(kind="box", low=(3, 9, 5), high=(12, 4, 6)).on(grid)
    assert isinstance(box, Box)
    assert [ends.tolist() for ends in box.index_range(grid)] == [[3, 4, 5], [12, 9, 6]]


@pytest.mark.parametrize("voxel", [(-1, 0, 0), (0, 36, 0), (0, 0, 10**30)])
def test_a_scribble_outside_the_scan_is_refused_in_words(phantom, voxel):
    with pytest.raises(PromptError, match=r"expected voxels from \(0, 0, 0\) to \(43, 35, 21\)"):
        prompt(kind="scribble", voxels=[(0, 0, 0), voxel]).on(phantom.scan.grid)


@pytest.mark.parametrize(
    "body",
    [
        '{"prompts": []}',
        '{"prompts": [{"kind": "lasso"}]}',
        '{"prompts": [{"kind": "point", "index": [1, 2]}]}',
        '{"prompts": [{"kind": "point", "index": [1, 2, NaN]}]}',
        '{"prompts": [{"kind": "point", "index": [1, 2, 1e999]}]}',
        '{"prompts": [{"kind": "point", "index": [1, 2, 3], "more": 1}]}',
        '{"prompts": [{"kind": "scribble", "voxels": []}]}',
        '{"prompts": [{"kind": "scribble", "voxels": [[1, 2, 3.5]]}]}',
    ],
)
def test_malformed_prompts_are_refused(body):
    with pytest.raises(ValidationError):
        Prompts.model_validate_json(body)

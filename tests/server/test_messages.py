"""Messages: prompts as JSON have the right meaning and take little memory."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.prompts import Box, Scribble
from voxsam.server.messages import MAX_STROKE_BOX, AnyPrompt, Prompts, work_bytes
from voxsam.volume import Volume


def prompt(**fields):
    return TypeAdapter(AnyPrompt).validate_python(fields)


def test_a_scribble_is_the_same_as_one_drawn_on_the_whole_scan(network, phantom):
    grid, rng = phantom.scan.grid, np.random.default_rng(3)
    voxels = np.unique(np.add(phantom.click, rng.integers(-3, 4, (40, 3))).clip(0, np.array(grid.shape) - 1), axis=0)
    labels = np.zeros(grid.shape, np.uint8)
    labels[tuple(voxels.T)] = 2
    drawn = Scribble(Volume(labels, grid, "SEG")).points(grid)
    sent = prompt(kind="scribble", voxels=voxels.tolist(), positive=False).on(grid).points(grid)
    assert len(sent) == 10 and {p.positive for p in sent} == {False}
    np.testing.assert_allclose([p.world_mm for p in sent], [p.world_mm for p in drawn], atol=1e-9)


def test_a_scribble_goes_through_json_and_takes_twelve_bytes_a_voxel():
    voxels = [[3, 1, 4], [1, 5, 9]]
    sent = prompt(kind="scribble", voxels=voxels)
    assert sent.voxels.itemsize * len(sent.voxels) == 24
    again = Prompts.model_validate_json(Prompts(prompts=[sent]).model_dump_json()).prompts[0]
    assert again == sent and again.model_dump()["voxels"] == voxels
    assert again != prompt(kind="scribble", voxels=voxels[::-1])


def test_a_scribble_all_over_a_large_scan_is_refused_before_its_box_is_made():
    grid = Grid.from_spacing((512, 512, 512), (1, 1, 1))
    sent = prompt(kind="scribble", voxels=[(0, 0, 0), (511, 511, 511)])
    assert sent.box_voxels == 2**27 > MAX_STROKE_BOX
    with pytest.raises(PromptError, match="a scribble all over the scan; expected a box of 8,388,608 voxels"):
        sent.on(grid)
    assert work_bytes([sent, prompt(kind="point", index=(1, 2, 3))]) == 25 * 2**27
    assert prompt(kind="scribble", voxels=[(-(2**31), 0, 0), (2**31 - 1, 0, 0)]).box_voxels == 2**32


def test_both_corners_belong_to_a_box(phantom):
    grid = phantom.scan.grid
    box = prompt(kind="box", low=(3, 9, 5), high=(12, 4, 6)).on(grid)
    assert isinstance(box, Box)
    assert [ends.tolist() for ends in box.index_range(grid)] == [[3, 4, 5], [12, 9, 6]]


@pytest.mark.parametrize("voxel", [(-1, 0, 0), (0, 36, 0), (0, 0, 2**31 - 1)])
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
        '{"prompts": [{"kind": "scribble", "voxels": [[1, 2]]}]}',
        '{"prompts": [{"kind": "scribble", "voxels": "abc"}]}',
        '{"prompts": [{"kind": "scribble", "voxels": [[1, 2, 1000000000000000000000]]}]}',
    ],
)
def test_malformed_prompts_are_refused(body):
    with pytest.raises(ValidationError):
        Prompts.model_validate_json(body)

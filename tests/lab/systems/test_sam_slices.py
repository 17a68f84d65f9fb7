"""SAM slice by slice: a stand-in with known masks, the real one with random weights, refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from tests.lab.systems.sam_layout import sam_tensors
from tests.lab.systems.small_set import small_set
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.lab.data.cases import Case
from voxsam.lab.evaluation.protocol import PER_SLICE, EvaluationSettings, evaluate
from voxsam.lab.evaluation.systems import OpenedPerSlice
from voxsam.lab.systems.common_loop import compared_system
from voxsam.lab.systems.compared import Job
from voxsam.lab.systems.sam_slices import SliceSystem, random_sam
from voxsam.prompts import Point
from voxsam.volume import Volume

SIDE = 144  # of the stand-in's pictures
# Three axial planes of LPS voxels (x, y); in each a block, elsewhere on each axis.
SHAPE, BLOCKS = (36, 24, 3), {0: (slice(4, 16), slice(2, 8)), 2: (slice(20, 32), slice(12, 20))}


class KnownSam:
    """The second of its three masks is what is as bright as the first click; the other two are wrong.

    Its "embedding" is the picture itself, so that a click with its axes swapped finds something else.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=SIDE))

    def __init__(self, best: int = 1) -> None:
        self.best, self.encoded, self.asked = best, 0, []

    def parameters(self):
        return [torch.zeros(7)]

    def get_image_embeddings(self, pixels):
        self.encoded += 1
        assert pixels.shape == (1, 3, SIDE, SIDE)
        return pixels[:, :1]

    def __call__(self, image_embeddings, input_points, input_labels, multimask_output):
        self.asked.append((input_points[0, 0].tolist(), input_labels[0, 0].tolist(), multimask_output))
        x, y = input_points[0, 0, 0].round().long().tolist()
        picture = image_embeddings[0, 0]
        logits = 0.2 - (picture - picture[y, x]).abs()
        masks = (
            torch.stack([-torch.ones_like(logits), logits, torch.ones_like(logits)])
            if multimask_output
            else logits[None]
        )
        guesses = torch.full((len(masks),), 0.1)
        guesses[self.best if multimask_output else 0] = 0.9
        return SimpleNamespace(pred_masks=masks[None, None], iou_scores=guesses[None, None])


def known_scan(axes: str) -> tuple[Volume, Volume]:
    """The blocks on air, and where they are, on a grid of `axes`."""
    grid = Grid.from_spacing(SHAPE, (2.0, 2.5, 6.0)).reorient("RAS")
    upright = Grid(SHAPE, np.diag([-2.0, -2.5, 6.0, 1.0]))  # LPS
    assert upright.axes == "LPS" and grid.axes == "RAS"
    array = np.full(SHAPE, -500, np.int16)
    for number, (x, y) in BLOCKS.items():
        array[x, y, number] = 100
    volumes = Volume(array, upright, "CT"), Volume((array > 0).astype(np.uint8), upright)
    return tuple(volume.reorient(axes) for volume in volumes)


def middle(truth: Volume, number: int) -> Point:
    """A click in the block of an axial plane."""
    inside = np.argwhere(truth.array)
    x, y = ((part.start + part.stop) // 2 for part in BLOCKS[number])
    world = np.array([-2.0 * x, -2.5 * y, 6.0 * number])
    at = np.rint(truth.grid.world_to_index(world)).astype(int)
    assert (inside == at).all(1).any()
    return Point.at_index(truth.grid, at)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR", "PIL"])
def test_a_click_in_each_slice_finds_its_block_whatever_the_files_axes(axes: str):
    scan, truth = known_scan(axes)
    model = KnownSam()
    opened = SliceSystem(model, (-1000, 1000)).open(scan)
    assert isinstance(opened, OpenedPerSlice)
    mask = opened.segment([middle(truth, 0), middle(truth, 2)])
    assert mask.grid.close_to(scan.grid) and mask.array.dtype == np.uint8
    assert np.count_nonzero(mask.array != truth.array) <= 0.05 * np.count_nonzero(truth.array)  # edges are interpolated
    assert model.encoded == 2
    (points, labels, several), _ = model.asked
    assert points == [[pytest.approx(10 * SIDE / 36), pytest.approx(5 * SIDE / 36)]]  # column, row
    assert labels == [1] and several


def test_slices_without_clicks_stay_empty_and_are_not_encoded():
    scan, truth = known_scan("LPS")
    model = KnownSam()
    mask = SliceSystem(model, (-1000, 1000)).open(scan).segment([middle(truth, 2)])
    assert mask.array[:, :, 2].any() and not mask.array[:, :, :2].any() and model.encoded == 1


def test_a_slice_is_encoded_once_and_several_clicks_give_one_mask():
    scan, truth = known_scan("LPS")
    model = KnownSam(best=2)
    opened = SliceSystem(model, (-1000, 1000)).open(scan)
    one = opened.segment([middle(truth, 0)])
    three = opened.segment([middle(truth, 0)] * 3)
    assert model.encoded == 1 and [several for _, _, several in model.asked] == [True, False]
    assert one.array[:, :, 0].all()  # SAM's guess was the mask of everything
    assert np.count_nonzero(three.array != truth.array * (np.arange(3) == 0)) <= 4


def test_which_of_three_masks_is_taken():
    scan, truth = known_scan("LPS")
    sums = {}
    for selection in ("pred_iou", "first", "oracle"):
        opened = SliceSystem(KnownSam(best=2), (-1000, 1000), selection).open(scan)
        opened.show_truth(truth)
        sums[selection] = int(opened.segment([middle(truth, 0)]).array[:, :, 0].sum())
    assert sums == {"pred_iou": 36 * 24, "first": 0, "oracle": pytest.approx(12 * 6, abs=4)}


def test_the_window_is_what_becomes_black_and_white():
    scan, _ = known_scan("LPS")
    system = SliceSystem(KnownSam(), (-500.0, 100.0))
    seen = system.embed(scan.array[:, :, 0].T).embedding[0, 0]
    means, sds = (0.485, 0.229)
    assert seen.min() == pytest.approx(-means / sds, abs=1e-3)
    assert seen.max() == pytest.approx((1 - means) / sds, abs=1e-3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, list[Case]]:
    return small_set(tmp_path_factory.mktemp("sam"), range(3))


def test_the_real_sam_in_the_protocol(prepared):
    """Random weights: the masks mean nothing, but depend on the clicks and are reproducible."""
    folder, cases = prepared
    job = Job(folder, folder, options={"random": {"seed": 3, "image": 64}}, device="cpu")
    compared = compared_system("sam-slices")
    compared.check(job)
    compared.train(job, lambda line: None)
    system = compared.load(job)
    assert system.name == "SAM per slice, random weights" and compared.tuned_parameters(job) == 0
    assert system.parameters == sum(p.numel() for p in random_sam(seed=3, image=64).parameters())
    settings = EvaluationSettings(clicks=(1, 3), trials=2)
    rows = evaluate(system, cases[:1], settings, "set").rows
    assert {row.kind for row in rows} == {PER_SLICE} and rows == evaluate(system, cases[:1], settings, "set").rows
    assert len({row.scores.dice for row in rows}) > 1


def test_a_checkpoint_by_its_path(prepared, tmp_path: Path):
    torch.save(sam_tensors(), tmp_path / "sam.pth")
    job = Job(prepared[0], tmp_path, options={"weights": str(tmp_path / "sam.pth"), "window": [-100, 300]})
    compared_system("sam-slices").check(job)
    system = compared_system("sam-slices").load(job)
    assert system.name == "SAM per slice" and system.window == (-100, 300)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "both or neither of weights and random"),
        ({"random": {}, "weights": "x"}, "both or neither of weights and random"),
        ({"weights": "/nowhere/sam.pth"}, "the weights /nowhere/sam.pth"),
        ({"random": {}, "selection": "best"}, "selection 'best'; expected one of pred_iou, first, oracle"),
        ({"random": {}, "window": [3, 3]}, r"window \[3, 3\]"),
        ({"random": {"breadth": 3}}, "the size breadth of a random SAM"),
        ({"random": {}, "points": 3}, "the option points of sam-slices"),
    ],
)
def test_options_that_make_no_sense(prepared, options: dict, words: str):
    with pytest.raises(InputError, match=words):
        compared_system("sam-slices").check(Job(prepared[0], prepared[0], options=options))

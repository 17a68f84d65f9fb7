"""PRISM's row, with a stand-in for the authors' code: a network of the same interface with known masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from voxsam.cli import main
from voxsam.errors import CheckpointError, InputError
from voxsam.geometry import Grid
from voxsam.lab.evaluation.systems import Opened
from voxsam.lab.systems.compared import Job
from voxsam.lab.systems.prism import Prism
from voxsam.prompts import Point
from voxsam.volume import Volume

# Masks: where the image is above its mean and within 9 voxels of the newest click, plus the whole last mask; a negative
# click removes its surroundings. The second of three masks is rated the best; the first is empty.
STAND_IN = """
import torch
from torch import nn

class Prompts(nn.Module):
    def forward(self, points, boxes, masks, image_embeddings):
        assert boxes is None and masks.shape == (1, 1, 32, 32, 32) and points[0].dtype == torch.float32
        return points, (image_embeddings, nn.functional.interpolate(masks, scale_factor=4.0))

class Decoder(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.sign = nn.Parameter(torch.zeros(1))
    def forward(self, prompt_embeddings, image_embeddings, feature_list):
        (place, label), (image, before) = prompt_embeddings, image_embeddings
        axes = torch.meshgrid(*[torch.arange(128.0)] * 3, indexing="ij")
        near = sum((axis - at) ** 2 for axis, at in zip(axes, place[0, 0])) <= 81
        mask = torch.where(near, (image[0, 0] > 0).float() if label.item() else 0.0, (before[0, 0] > 0).float())
        logits = (self.sign * (2 * mask - 1))[None]
        masks = torch.stack([-torch.ones_like(logits), logits, -logits], 1)
        return masks, torch.tensor([[0.1, 0.9, 0.3]])
    def refine(self, image, best, points, mask):
        assert len(points[0]) == len(points[1]) and points[0][-1].dtype == torch.long
        self.shown = len(points[0])
        return best, best

class Network(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.prompt_encoder, self.mask_decoder = Prompts(), Decoder(args)
    def image_encoder(self, image):
        return image, [image]

def build_sam3D_vit_b_ori(args, checkpoint):
    return Network(args)
"""
GRID = Grid.from_spacing((60, 50, 30), (1.0, 1.5, 2.0)).reorient("LPS")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    code = tmp_path / "PRISM" / "src" / "models"
    code.mkdir(parents=True)
    (code / "build_sam3D.py").write_text(STAND_IN)
    torch.save({"model_state_dict": {"mask_decoder.sign": torch.ones(1)}}, tmp_path / "best.pth")
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        monkeypatch.delitem(sys.modules, name)
    yield {"checkout": str(tmp_path / "PRISM"), "checkpoint": str(tmp_path / "best.pth"), "statistics": "kits"}
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]


def opened(options: dict[str, Any], tmp_path: Path) -> Opened:
    job = Job(tmp_path, tmp_path, options=options, device="cpu")
    Prism().check(job)
    array = np.full(GRID.shape, -200, np.int16)
    array[10:30, 10:30, 5:20] = 150
    return Prism().load(job).open(Volume(array, GRID, "CT"))


def test_a_click_a_step_each_beginning_with_the_last_mask(options: dict[str, Any], tmp_path: Path) -> None:
    scan = opened(options, tmp_path)
    first, second = Point.at_index(GRID, (20, 20, 12), True), Point.at_index(GRID, (28, 20, 12), True)
    one, two = scan.segment([first]), scan.segment([first, second])
    assert one.grid.close_to(GRID) and one.array[20, 20, 12] and not one.array[35, 20, 12]
    assert not one.array[29, 20, 18] and two.array.sum() > one.array.sum() and two.array[29, 20, 12]
    assert not two.array[5, 20, 12]  # near enough to no click, and dark
    less = scan.segment([first, Point.at_index(GRID, (20, 20, 12), False)])
    assert not less.array[20, 20, 12]
    assert (scan.segment([first]).array == one.array).all()


def test_a_click_beyond_the_crop_does_not_count(options: dict[str, Any], tmp_path: Path) -> None:
    scan = opened(options, tmp_path)
    first = Point.at_index(GRID, (20, 20, 12), True)
    far = Point((first.world_mm[0] + 500, first.world_mm[1], first.world_mm[2]), True)
    assert (scan.segment([first, far]).array == scan.segment([first]).array).all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"checkout": "/nowhere"}, InputError, "the option checkout of prism: /nowhere"),
        ({"checkpoint": "/nowhere.pth"}, InputError, "the option checkpoint of prism"),
        ({"statistics": "liver"}, InputError, "one of colon, pancreas, lits, kits"),
        ({"width": 3}, InputError, "the option width of prism"),
    ],
)
def test_wrong_options(
    options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        opened({**options, **changes}, tmp_path)


def test_a_file_that_does_not_fit(options: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"other": torch.ones(1)}}, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        opened(options, tmp_path)


def test_a_plan_with_a_checkout_is_refused_until_it_is_trusted(
    options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = {
        "title": "t",
        "reference": "prism",
        "data": [{"name": "d", "phantoms": {}}],
        "systems": [{"system": "prism", "options": options}],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["compare", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "out")]) == 2
    assert f"runs Python of its own: {options['checkout']}" in capfd.readouterr().err

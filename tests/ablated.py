"""Very small VoxSAM networks with one part of the design changed, and one crop of a phantom to train them on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor

from voxsam.kernels import install
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import ModelConfig
from voxsam.preprocess import Window, read_crop
from voxsam.resample import resample
from voxsam.testing import StubScan, stub_network, stub_scan

ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "positional": {"prompt_kind": "positional"},
    "levels 1 and 4": {"prompt_levels": (1, 4)},
    "all levels": {"prompt_levels": (1, 2, 3, 4)},
    "marks at levels 2 and 4": {"prompt_levels": (2, 4), "marks": True},
    "positional at levels 3 and 4": {"prompt_kind": "positional", "prompt_levels": (3, 4)},
    "no aggregation": {"multi_layer": False},
    "positional, no aggregation": {"prompt_kind": "positional", "multi_layer": False},
}


def ablated(name: str = "full", **more: Any) -> VoxSAMNetwork:
    """The stub network with the fields of an ablation, freshly initialised (not random in every tensor)."""
    card: Card = stub_network().card
    config = ModelConfig.model_validate({**card.config.model_dump(), **ABLATIONS[name], **more})
    torch.manual_seed(0)
    network = VoxSAMNetwork(card.model_copy(update={"config": config, "name": name})).eval()
    install(network)
    return network


@dataclass(frozen=True)
class Lesson:
    """A phantom, the crop that a session takes around its click, and in it the truth (1, 1, D, H, W) and the click."""

    stub: StubScan
    crop: Tensor
    truth: Tensor
    points: Tensor


@cache
def lesson() -> Lesson:
    """The lesson of the stub scan, as a session of the stub network sees it."""
    network, stub = stub_network(), stub_scan(0)
    grid, preprocessing = stub.scan.grid, network.card.preprocessing
    model_grid = preprocessing.model_grid(grid)
    at = model_grid.world_to_index(grid.index_to_world([stub.click]))
    window = Window.around(model_grid, at[0], (network.config.crop,) * 3)
    crop = torch.from_numpy(read_crop(stub.scan, window, preprocessing))[None, None]
    truth = torch.from_numpy(resample(stub.truth, window.grid) > 0.5).float()[None, None]
    return Lesson(stub, crop, truth, torch.tensor(at - window.start, dtype=torch.float32)[None])


def learn(network: VoxSAMNetwork, steps: int) -> list[float]:
    """Train on the lesson alone, with the steps of voxsam.lab.training.task; returns the losses."""
    one, loss = lesson(), DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    labels, losses = torch.ones(1, 1, dtype=torch.long), []
    for _ in range(steps):
        features = network.encode(one.crop)
        static, prompt_features = network.static(features, one.crop), network.sample(features, one.points)
        logits = network.decode(
            features, one.crop, one.points, prompt_features=prompt_features, labels=labels, static=static
        )
        value = loss(logits, one.truth)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return losses

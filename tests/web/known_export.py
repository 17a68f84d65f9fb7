"""A network whose prediction is known, as ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.known_model import CROP, STRIDE, LikeClicks, known_card
from voxsam.network.card import Card
from voxsam.network.conditioning import Conditioning
from voxsam.weights.export import write_graph


def web_card(**preprocessing: object) -> Card:
    fields = {"spacing_mm": (3.0, 3.0, 3.0), "interpolation": "area", "clip": (-200.0, 300.0), "mean": 40.0, "sd": 60.0}
    card = known_card(**{**fields, **preprocessing})
    return card.model_copy(update={"conditioning": Conditioning(reach=3.0, likeness=0.7, margin=2.0)})


class _Encoder(torch.nn.Module):
    def __init__(self, network: LikeClicks) -> None:
        super().__init__()
        self.network = network

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        features = self.network.encode(crop)
        return features[0], self.network.static(features, crop)


class _Decoder(_Encoder):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        level_4, static, _, prompt_features, labels, previous = inputs
        fused, tumour = self.network.answer((level_4,), static, prompt_features, labels, previous)
        return torch.cat([tumour * 0, tumour], 1), fused * 1


def export_known(network: LikeClicks, folder: Path) -> None:
    """Write what `voxsam weights export` would, if it were a VoxSAM network."""
    folder.mkdir()
    crop, grid = torch.randn(1, 1, CROP, CROP, CROP), (1, 1, *(CROP // STRIDE,) * 3)
    prompts = {
        "points": torch.rand(1, 3, 3),
        "prompt_features": torch.randn(1, 3, 1),
        "labels": torch.tensor([[1, 0, 1]]),
    }
    inputs = {"level_4": torch.randn(grid), "static": crop, **prompts, "previous": torch.randn_like(crop)}
    with torch.no_grad():
        write_graph(folder / "encoder.onnx", _Encoder(network), {"crop": crop}, ["level_4", "static"])
        write_graph(folder / "decoder.onnx", _Decoder(network), inputs, ["logits", "fused"])
    write_card(network.card, folder)


def write_card(card: Card, folder: Path) -> None:
    """Write its card; click maps say that it takes a previous mask."""
    config = card.config.model_copy(update={"click_maps": (1.0,)})
    (folder / "card.json").write_text(card.model_copy(update={"config": config}).model_dump_json())

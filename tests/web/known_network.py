"""A network of one line, as torch and as ONNX: a voxel is tumour if it looks like what was clicked, and is near it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.network.card import Card
from voxsam.network.conditioning import Conditioning, condition
from voxsam.network.prompt_encoder import sample_features
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import TINY
from voxsam.preprocess import Preprocessing
from voxsam.weights.export import write_graph

CROP, STRIDE = 16, 4


def known_card(**preprocessing: object) -> Card:
    config = TINY.model_copy(update={"crop": CROP, "stride": STRIDE, "feature_width": 8, "prompt_heads": 4})
    fields = {"spacing_mm": (3.0, 3.0, 3.0), "interpolation": "area", "clip": (-200.0, 300.0), "mean": 40.0, "sd": 60.0}
    return Card(
        name="known",
        config=config,
        preprocessing=Preprocessing.model_validate({**fields, **preprocessing}),
        conditioning=Conditioning(reach=3.0, likeness=0.7, margin=2.0),
    )


class KnownNetwork(Promptable):
    """Its one feature is the mean of 4 x 4 x 4 voxels; a logit is high where a voxel is like the clicks' features."""

    goes_on = True

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.one = torch.nn.Parameter(torch.ones(1))

    def encode(self, crops_B1DHW, progress=None):
        return (F.avg_pool3d(crops_B1DHW, STRIDE) * self.one,)

    def sample(self, features, points_BN3):
        return sample_features(features[-1], points_BN3, (CROP, CROP, CROP))

    def static(self, features, crops_B1DHW):
        return crops_B1DHW * self.one

    def decode_stages(self, features, static, prompt_features, labels, previous):
        positive = labels[..., None].float()
        clicked = (prompt_features * positive).sum(1) / positive.sum(1)
        tumour = 3 - 5 * (static - clicked[:, :, None, None, None]).abs() + 0.25 * previous.clamp(-2, 2)
        return features[-1], torch.cat([tumour * 0, tumour], 1)

    def decode(
        self,
        features,
        crops_B1DHW,
        points=None,
        *,
        prompt_features=None,
        labels=None,
        static=None,
        conditioning=None,
        previous=None,
    ):
        previous = torch.zeros_like(crops_B1DHW) if previous is None else previous
        fused, logits = self.decode_stages(features, static, prompt_features, labels, previous)
        return condition(logits, fused, points, labels, conditioning)


class _Encoder(torch.nn.Module):
    def __init__(self, network: KnownNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        features = self.network.encode(crop)
        return features[0], self.network.static(features, crop)


class _Decoder(_Encoder):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        level_4, static, _, prompt_features, labels, previous = inputs
        fused, logits = self.network.decode_stages((level_4,), static, prompt_features, labels, previous)
        return logits, fused * 1


def export_known(network: KnownNetwork, folder: Path) -> None:
    """What `voxsam weights export` would write of it, if it were VoxSAM's own."""
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
    """Its card; click maps say that it goes on from a mask."""
    config = card.config.model_copy(update={"click_maps": (1.0,)})
    (folder / "card.json").write_text(card.model_copy(update={"config": config}).model_dump_json())

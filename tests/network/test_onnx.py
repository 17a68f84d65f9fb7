"""The bare network is a graph that other programs run: encoder and decoder, exported to ONNX, predict the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from voxsam.network.network import VoxSAMNetwork
from voxsam.testing import stub_network

pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnx, onnxscript and onnxruntime")

OPSET = 20  # the first with samples of a volume (GridSample)
TOLERANCE = 1e-4  # values of about 1; sums in another order


class Encode(nn.Module):
    """Crop -> what a click needs: the prompted level, and the static part."""

    def __init__(self, network: VoxSAMNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        features = self.network.encode(crop)
        static = self.network.static(features, crop)
        return (*self.network.prompted(features), *((static,) if isinstance(static, Tensor) else static))


class Click(nn.Module):
    """What `Encode` gave, the crop and clicks -> logits."""

    def __init__(self, network: VoxSAMNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, level: Tensor, static: Tensor, crop: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        return self.network.decode((level,), crop, points, labels=labels, static=static)


def bare_network(**changes: object) -> VoxSAMNetwork:
    card = stub_network().card
    torch.manual_seed(0)
    network = VoxSAMNetwork(card.model_copy(update={"config": card.config.model_copy(update=changes)}))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def exported(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> list[np.ndarray]:
    """What onnxruntime makes of the module's graph."""
    with torch.no_grad():
        torch.onnx.export(module, inputs, dynamo=True, opset_version=OPSET).save(path)  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = zip(session.get_inputs(), inputs, strict=True)
    return session.run(None, {value.name: tensor.numpy() for value, tensor in named})


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"marks": True}, {"window": 3, "fusion": "crop"}], ids=["marks", "padding"])
def test_encoder_and_decoder_predict_the_same_in_onnxruntime(changes: dict[str, object], tmp_path: Path) -> None:
    network = bare_network(**changes)
    crop = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    points, labels = torch.tensor([[[3.0, 4, 5], [9, 2, 11], [8, 8, 8]]]), torch.tensor([[1, 0, -1]])
    with torch.no_grad():
        level, static = Encode(network)(crop)
        logits = Click(network)(level, static, crop, points, labels)
    found = exported(Encode(network).eval(), (crop,), tmp_path / "encode.onnx")
    found += exported(Click(network).eval(), (level, static, crop, points, labels), tmp_path / "click.onnx")
    for ours, theirs in zip((level, static, logits), found, strict=True):
        assert np.abs(ours.numpy() - theirs).max() < TOLERANCE
    with torch.no_grad():  # an export leaves nothing behind in the tables that are kept
        assert torch.equal(Click(network)(*Encode(network)(crop), crop, points, labels), logits)

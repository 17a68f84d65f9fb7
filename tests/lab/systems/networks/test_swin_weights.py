"""Swin-UNETR's self-supervised weights: a file in the layout of MONAI's model_swinvit.pt, and others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lab.systems.networks.tiny import network
from voxsam.errors import CheckpointError, FileError
from voxsam.weights.checkpoint import load_model, save_model


def write_weights(path: Path, **changes: object) -> Path:
    """Write a file like MONAI's for the small network: random tensors of its transformer, and those of the tasks."""
    torch.manual_seed(5)
    names = dict(network("swin-unetr").network.swinViT.named_parameters())
    state = {
        "module." + name.replace("mlp.linear", "mlp.fc"): torch.randn(tensor.shape) for name, tensor in names.items()
    }
    state["module.layers1.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64, dtype=torch.long)
    state["module.rotation_head.weight"] = torch.randn(4, 192)
    torch.save({"state_dict": {**state, **changes}, "epoch": 3}, path)
    return path


def test_training_begins_with_them_and_its_model_file_does_not_ask_for_them_again(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "model_swinvit.pt")
    state = torch.load(weights, weights_only=True)["state_dict"]
    plain = network("swin-unetr", weights=str(weights))
    swin = plain.network.swinViT
    torch.testing.assert_close(swin.patch_embed.proj.weight.data, state["module.patch_embed.proj.weight"])
    block = swin.layers4[0].blocks[0]
    torch.testing.assert_close(block.mlp.linear1.weight.data, state["module.layers4.0.blocks.0.mlp.fc1.weight"])
    other = network("swin-unetr")
    assert not torch.equal(other.network.swinViT.patch_embed.proj.weight, swin.patch_embed.proj.weight)

    save_model(plain, tmp_path / "m.safetensors")
    weights.unlink()
    loaded = load_model(tmp_path / "m.safetensors", "cpu")
    assert "weights" not in loaded.card.options
    crop = torch.randn(1, 1, 64, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(crop), plain.eval()(crop))


def test_other_files_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(FileError):
        network("swin-unetr", weights=str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"is not a PyTorch file; expected MONAI's model_swinvit\.pt"):
        network("swin-unetr", weights=str(path))
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="has no state_dict"):
        network("swin-unetr", weights=str(path))
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match=r"lacks the tensor module\.patch_embed\.proj\.weight"):
        network("swin-unetr", weights=str(path))
    write_weights(path)
    with pytest.raises(
        CheckpointError, match="module.patch_embed.proj.weight has shape 12 x 1 x 2 x 2 x 2; expected 24"
    ):
        network("swin-unetr", width=24, weights=str(path))


def test_a_file_with_anything_but_tensors_runs_nothing(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.pt", extra=Path("a"))
    with pytest.raises(CheckpointError, match="nothing of it was executed"):
        network("swin-unetr", weights=str(path))

"""SAM files: both layouts give the same network, sizes come from shapes, the new part is fresh and reported as such."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from checkpoint_cases import (
    PREPROCESSING,
    SMALL,
    Trap,
    hugging_face_name,
    released_contents,
    sam_contents,
    small_network,
)
from safetensors.torch import save_file
from torch import Tensor

from voxsam.errors import CheckpointError, FileError, InputError
from voxsam.network.sizes import VIT_B, VIT_H, VIT_L, ModelConfig
from voxsam.network.tuning import frozen_sha256, is_tuned
from voxsam.preprocess import PAPER, RELEASED
from voxsam.weights import import_checkpoints as module
from voxsam.weights.checkpoint import save_model
from voxsam.weights.import_checkpoints import encoder_tensors, import_sam, size_of

SIZES = {"vit_b": (768, 12), "vit_l": (1024, 24), "vit_h": (1280, 32)}  # SAM's own: width, blocks


@pytest.fixture
def small(monkeypatch):
    """Let the importer take the small configuration for ViT-B's."""
    monkeypatch.setattr(module, "VIT_B", SMALL)


def meta_file(folder: Path, contents: dict[str, Tensor] | None = None) -> Path:
    torch.save(contents or sam_contents(), folder / "sam_vit_b_01ec64.pth")
    return folder / "sam_vit_b_01ec64.pth"


def hugging_face(contents: dict[str, Tensor]) -> dict[str, Tensor]:
    return {hugging_face_name(name): tensor for name, tensor in contents.items()}


def refusal(path: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        import_sam(path, "kits")
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What comes out


def test_the_frozen_part_is_sams(tmp_path, small):
    sam = sam_contents()
    state = import_sam(meta_file(tmp_path), "kits").state_dict()
    assert torch.equal(state["image_encoder.plane_positions"], sam["image_encoder.pos_embed"][0])
    assert torch.equal(
        state["image_encoder.patch_embedding.patch_weight"], sam["image_encoder.patch_embed.proj.weight"]
    )
    for theirs, ours in (
        ("norm2.bias", "norm2.bias"),
        ("attn.qkv.weight", "attention.qkv.weight"),
        ("attn.rel_pos_h", "attention.rel_pos_h"),
        ("attn.rel_pos_w", "attention.rel_pos_w"),
        ("mlp.lin1.weight", "mlp.0.weight"),
        ("mlp.lin2.bias", "mlp.2.bias"),
    ):
        assert torch.equal(state[f"image_encoder.blocks.1.{ours}"], sam[f"image_encoder.blocks.1.{theirs}"])


def test_relative_positions_along_depth_start_as_the_mean_of_the_other_two(tmp_path, small):
    sam = sam_contents()
    state = import_sam(meta_file(tmp_path), "kits").state_dict()
    for block, rows in ((0, 27), (1, 11)):  # block 1 is one of SAM's global ones: 2 * 6 - 1 rows
        h, w = (sam[f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"] for axis in "hw")
        found = state[f"image_encoder.blocks.{block}.attention.rel_pos_d"]
        assert found.shape == (rows, 8)
        assert torch.equal(found, (h + w) / 2)


def test_the_new_part_is_fresh_and_follows_the_seed(tmp_path, small):
    path = meta_file(tmp_path)
    torch.manual_seed(5)
    one, again = import_sam(path, "kits").state_dict(), import_sam(path, "kits").state_dict()
    assert torch.initial_seed() == 5
    other = import_sam(path, "kits", seed=1).state_dict()
    assert same(one, again)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert {"image_encoder.necks.0.conv.weight", "mask_decoder.fuse.weight"} <= differ
    assert all(is_tuned(name) for name in differ)
    assert frozen_sha256(one) == frozen_sha256(other)
    assert (one["image_encoder.depth_positions"] == 1).all()


def test_the_card_says_that_the_model_is_not_trained(tmp_path, small):
    card = import_sam(meta_file(tmp_path), "colon", "paper").card
    assert card.description["training"] == "not trained: fine-tune before use"
    assert "sam_vit_b_01ec64.pth" in card.description["source"]
    assert (card.name, card.config.profile, card.preprocessing) == ("sam_vit_b", "paper", PAPER["colon"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_faces_file_gives_the_same_network(tmp_path, small, name):
    contents = hugging_face(sam_contents())
    assert not any(key.startswith("image_encoder.") for key in contents)
    if name.endswith("bin"):
        torch.save(contents, tmp_path / name)
    else:
        save_file(contents, tmp_path / name, {"format": "pt"})
    one, other = import_sam(meta_file(tmp_path), "lits"), import_sam(tmp_path / name, "lits")
    assert same(one.state_dict(), other.state_dict())
    assert one.card.preprocessing == other.card.preprocessing == RELEASED["lits"]


def test_the_generators_sam_file_in_both_layouts(tmp_path, shared_reference):
    spec = importlib.util.spec_from_file_location("sam_generator", shared_reference / "make_released_checkpoint.py")
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    sam = generator.sam_2d(0)
    network = import_sam(meta_file(tmp_path, sam), "kits")
    assert network.config == VIT_B
    save_file(hugging_face(sam), tmp_path / "model.safetensors")
    assert same(network.state_dict(), import_sam(tmp_path / "model.safetensors", "kits").state_dict())


# Sizes


def shapes_of(width: int, depth: int) -> dict[str, Tensor]:
    encoder = {"pos_embed": torch.empty(1, 64, 64, width, device="meta")}
    return encoder | {f"blocks.{i}.attn.qkv.bias": torch.empty(3 * width, device="meta") for i in range(depth)}


@pytest.mark.parametrize("config", [VIT_B, VIT_L, VIT_H], ids=lambda config: config.size)
def test_the_size_is_told_by_the_shapes(config: ModelConfig):
    assert size_of(shapes_of(*SIZES[config.size]), "x") is config


@pytest.mark.parametrize(("width", "depth"), [(768, 24), (384, 12)])
def test_another_size_is_refused(width, depth):
    with pytest.raises(CheckpointError, match=f"x is an encoder of width {width} with {depth} blocks; expected a SAM"):
        size_of(shapes_of(width, depth), "x")


def test_hugging_faces_names_of_a_large_model_are_translated():
    contents = {hugging_face_name(f"image_encoder.{name}"): tensor for name, tensor in shapes_of(1280, 32).items()}
    assert "vision_encoder.layers.31.attn.qkv.bias" in contents
    assert size_of(encoder_tensors(contents, "x"), "x") is VIT_H


# Refusals


def test_an_unknown_profile(tmp_path):
    with pytest.raises(InputError, match="profile 'brain'; expected one of kits, lits, pancreas, colon"):
        import_sam(tmp_path / "none", "brain")


def test_a_missing_file(tmp_path):
    assert "no such file; expected a SAM checkpoint" in refusal(tmp_path / "sam.pth", FileError)


def test_a_released_checkpoint_given_as_sam(tmp_path):
    torch.save(released_contents(), tmp_path / "last.pth.tar")
    message = refusal(tmp_path / "last.pth.tar")
    assert "last.pth.tar is a 3DSAM-adapter checkpoint; expected a SAM checkpoint" in message
    assert message.endswith("import it with --kind released")


def test_a_voxsam_model_given_as_sam(tmp_path):
    network = small_network(preprocessing=PREPROCESSING)
    save_model(network, tmp_path / "model.safetensors")
    assert "is a VoxSAM model already; expected a SAM checkpoint" in refusal(tmp_path / "model.safetensors")


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save({"layer1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    assert "resnet.pth has no tensors of image_encoder or vision_encoder;" in refusal(tmp_path / "resnet.pth")


def test_a_variant_of_sam_without_position_table(tmp_path):
    torch.save({"image_encoder.layers.0.weight": torch.ones(2)}, tmp_path / "mobile_sam.pth")
    message = refusal(tmp_path / "mobile_sam.pth")
    assert "mobile_sam.pth lacks image_encoder.pos_embed;" in message
    assert message.endswith("variants of SAM do not fit")


def test_an_unknown_tensor_is_named(tmp_path, small):
    contents = sam_contents() | {"image_encoder.blocks.0.prompt": torch.ones(2)}
    assert "has a tensor that SAM's encoder does not have, blocks.0.prompt" in refusal(meta_file(tmp_path, contents))


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("image_encoder.blocks.2.mlp.lin1.bias", "image_encoder.blocks.2.mlp.0.bias"),
        ("image_encoder.blocks.2.norm1.bias", "image_encoder.blocks.2.norm1.bias"),
        ("image_encoder.blocks.2.attn.rel_pos_w", "image_encoder.blocks.2.attention.rel_pos_d and 1 more"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path, small, gone, named):
    contents = sam_contents()
    del contents[gone]
    assert f"lacks the tensor {named}; expected" in refusal(meta_file(tmp_path, contents))


def test_a_tensor_of_another_shape_is_named(tmp_path, small):
    contents = sam_contents() | {"image_encoder.pos_embed": torch.ones(1, 5, 6, 24)}
    message = refusal(meta_file(tmp_path, contents))
    assert "image_encoder.plane_positions has shape 5 x 6 x 24; expected 6 x 6 x 24" in message


def test_a_truncated_file(tmp_path):
    path = meta_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    assert "is truncated or damaged (" in refusal(path)
    save_file(hugging_face(sam_contents()), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-5])
    assert "is truncated or damaged (" in refusal(tmp_path / "model.safetensors")


def test_a_trap_in_a_sam_file_is_not_sprung(tmp_path):
    path = meta_file(tmp_path, sam_contents() | {"image_encoder.pos_embed": Trap(tmp_path / "sprung")})
    assert "holds more than tensors and numbers" in refusal(path)
    assert not (tmp_path / "sprung").exists()

"""What fine-tuning changes: the names of tuned tensors, the paper's counts, and the hash of the frozen rest."""

from __future__ import annotations

import hashlib

import pytest
import torch
from checkpoint_cases import small_network, tuned_names

from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import TINY, VIT_B, ModelConfig
from voxsam.network.tuning import counts, freeze, frozen_sha256, is_tuned, paper_accounting
from voxsam.preprocess import RELEASED


def shapes_only(config: ModelConfig) -> VoxSAMNetwork:
    with torch.device("meta"):
        return VoxSAMNetwork(Card(name="x", config=config, preprocessing=RELEASED["kits"]))


def test_vit_b_has_the_papers_counts():
    network = shapes_only(VIT_B)
    found = counts(network)
    assert found.encoder_total == 104_056_588  # counted by hand from docs/released.md, "Image encoder"
    assert found.encoder_tuned == 15_209_984
    assert found.tuned == 25_198_976
    assert found.total - found.encoder_total == 3_164_160 - 263_424 + 7_088_256
    assert paper_accounting(network) == 25_462_400


def test_the_papers_accounting_follows_the_configuration():
    network = shapes_only(TINY)  # width 48, inner 24: 3 (48 * 24 + 24) + 24 * 48 + 48 = 4,728 in each of two layers
    assert paper_accounting(network) - counts(network).tuned == 2 * 4_728


def test_the_tuned_names_of_a_block_and_around_it():
    names = tuned_names(small_network())
    assert [n for n in names if n.startswith("image_encoder.blocks.2.")] == [
        f"image_encoder.blocks.2.{n}"
        for n in (
            *(f"adapter.{part}.{kind}" for part in ("down", "conv", "up") for kind in ("weight", "bias")),
            *("norm1.weight", "norm1.bias", "attention.rel_pos_d", "norm2.weight", "norm2.bias"),
        )
    ]
    rest = [n for n in names if ".blocks." not in n and n.startswith("image_encoder.") and ".necks." not in n]
    assert rest == [
        "image_encoder.depth_positions",
        "image_encoder.patch_embedding.slice_weight",
        "image_encoder.patch_embedding.slice_bias",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.plane_positions",
        "image_encoder.patch_embedding.patch_weight",
        "image_encoder.blocks.11.attention.qkv.weight",
        "image_encoder.blocks.11.attention.rel_pos_h",
        "image_encoder.blocks.11.attention.rel_pos_gain",
        "image_encoder.blocks.11.mlp.0.weight",
    ],
)
def test_sams_own_tensors_are_frozen(name):
    assert not is_tuned(name)


def test_freeze_leaves_gradients_to_the_tuned_tensors_only():
    network = freeze(small_network())
    network(torch.ones(1, 1, 20, 20, 20).cumsum(2), torch.tensor([[[4.0, 9.0, 15.0]]])).sum().backward()
    with_gradient = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert with_gradient == tuned_names(network)


def test_the_hash_is_the_documented_one():
    tensors = {
        "image_encoder.plane_positions": torch.tensor([[1.0, 2.0]]),
        "image_encoder.blocks.0.attention.rel_pos_gain": torch.tensor(3.0),
        "mask_decoder.fuse.weight": torch.tensor([9.0]),
    }
    text = b"image_encoder.blocks.0.attention.rel_pos_gain float32 []\n" + bytes.fromhex("00004040")
    text += b"image_encoder.plane_positions float32 [1, 2]\n" + bytes.fromhex("0000803f00000040")
    assert frozen_sha256(tensors) == hashlib.sha256(text).hexdigest()


def test_the_hash_sees_a_frozen_value_and_no_tuned_one():
    network = small_network()
    before = frozen_sha256(network.state_dict())
    with torch.no_grad():
        network.mask_decoder.fuse.weight += 1
        network.image_encoder.depth_positions += 1
    assert frozen_sha256(network.state_dict()) == before
    with torch.no_grad():
        network.image_encoder.blocks[3].mlp[0].weight[5, 7] += 1
    assert frozen_sha256(network.state_dict()) != before


def test_the_hash_does_not_depend_on_order_or_storage():
    state = small_network().state_dict()
    before = frozen_sha256(state)
    backwards = {
        name: state[name].t().contiguous().t() if state[name].ndim == 2 else state[name] for name in reversed(state)
    }
    assert frozen_sha256(backwards) == before

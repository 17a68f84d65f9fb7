"""Tokens of slices come from SAM's own encoder, slice by slice: as from transformers' SamModel with equal weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import ModelConfig
from voxsam.preprocess import RELEASED
from voxsam.weights.import_checkpoints import encoder_tensors, start_from_sam

TOLERANCE = 1e-4  # float32 sums of a few hundred terms in another order
SIDE = 18  # tokens: two windows of 14, padded to 28
SLICES = 3
CONFIG = ModelConfig(
    size="small",
    width=32,
    depth=4,
    heads=2,
    adapter="none",
    adapter_width=8,
    tokens="slices",
    crop=SIDE * 16,
    stride=16,
    patch=16,
    position_grid=SIDE,
    global_blocks=(1, 3),
    feature_width=16,
    head_width=6,
    queries=3,
    prompt_heads=4,
    prompt_mlp=20,
)


@pytest.fixture(scope="module")
def sam() -> Any:
    """transformers' vision encoder of the same sizes, with noise in every tensor."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    config = transformers.SamVisionConfig(
        hidden_size=CONFIG.width,
        output_channels=CONFIG.feature_width,
        num_hidden_layers=CONFIG.depth,
        num_attention_heads=CONFIG.heads,
        image_size=SIDE * CONFIG.patch,
        global_attn_indexes=list(CONFIG.global_blocks),
        mlp_dim=CONFIG.mlp_ratio * CONFIG.width,
    )
    encoder = SamVisionEncoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan = parameter[0].numel() if parameter.ndim > 1 and "pos" not in name else 4
            parameter.copy_(noise / fan**0.5 + (1 if "norm" in name and name.endswith("weight") else 0))
    return encoder


def imported(sam: Any, **changes: object) -> VoxSAMNetwork:
    card = Card(name="sam", config=CONFIG.model_copy(update=changes), preprocessing=RELEASED["kits"])
    state = {f"vision_encoder.{name}": tensor for name, tensor in sam.state_dict().items()}
    return start_from_sam(card, encoder_tensors(state, "sam"), 0, "sam")


def slices_and_crop(stride: int) -> tuple[Tensor, Tensor]:
    """(S, 1, H, W) slices, and the (1, 1, S * stride, H, W) crop whose means over `stride` slices they are."""
    generator = torch.Generator().manual_seed(1)
    side = SIDE * stride
    slices = torch.randn(SLICES, 1, side, side, generator=generator).cumsum(3) / 4
    spread = torch.randn(SLICES, stride, side, side, generator=generator)
    crop = slices + spread - spread.mean(1, keepdim=True)
    return slices, crop.flatten(0, 1)[None, None]


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("gradients", [True, False])
def test_each_slice_is_encoded_as_sam_does(sam: Any, stride: int, gradients: bool) -> None:
    network = imported(sam, stride=stride)
    slices, crop = slices_and_crop(stride)
    images = F.interpolate(slices, scale_factor=16 / stride, mode="bilinear").repeat(1, 3, 1, 1)
    with torch.no_grad():
        expected = sam(images).last_hidden_state
    with torch.set_grad_enabled(gradients):
        levels = network.encode(crop)
    assert [tuple(level.shape) for level in levels] == [(1, 16, SLICES, SIDE, SIDE)] * 4
    found = levels[-1].detach()[0].transpose(0, 1)
    assert float((found - expected).abs().max()) < TOLERANCE
    assert float(expected.std()) > 0.5


def test_the_earlier_levels_go_through_the_same_neck(sam: Any) -> None:
    """SAM cut off after its first block, by its own layers."""
    network = imported(sam)
    slices, crop = slices_and_crop(16)
    with torch.no_grad():
        x = sam.patch_embed(slices.repeat(1, 3, 1, 1)) + sam.pos_embed
        expected = sam.neck(sam.layers[0](x))
        found = network.encode(crop)[0][0].transpose(0, 1)
    assert float((found - expected).abs().max()) < TOLERANCE


def test_slices_do_not_see_one_another(sam: Any) -> None:
    network = imported(sam)
    _, crop = slices_and_crop(16)
    other = crop.clone()
    other[:, :, 20] += 1  # in the second slice
    with torch.inference_mode():
        changed = (network.encode(crop)[-1] - network.encode(other)[-1]).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False, True, False]


def test_another_grid_pools_the_positions_and_stretches_the_global_tables(sam: Any) -> None:
    """Half the side: 9 tokens. SAM's own code for it is to resize its tables, which transformers leaves to the user."""
    network = imported(sam)
    _, crop = slices_and_crop(16)
    with torch.inference_mode():
        half = network.encode(crop[..., :144, :144])[-1]
    assert half.shape == (1, 16, SLICES, 9, 9)
    positions = network.image_encoder.positions((1, 9, 9))[0]
    assert torch.allclose(positions[2, 5], sam.pos_embed[0, 4:6, 10:12].mean((0, 1)), atol=1e-6)


def test_the_tensors_are_sams_and_no_others(sam: Any) -> None:
    network = imported(sam)
    own = sum(parameter.numel() for parameter in network.image_encoder.parameters())
    assert own == sum(parameter.numel() for parameter in sam.parameters())


def test_tokens_of_slices_are_made_of_one_channel() -> None:
    with pytest.raises(ValueError, match="tokens of slices are made of one channel"):
        ModelConfig.model_validate({**CONFIG.model_dump(), "channels": 2})

"""The adapters of Table 2: initial behaviour, receptive fields, learning, and loading of files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import voxsam.lab.systems  # noqa: F401
from voxsam.kernels import install
from voxsam.kernels.linear import precisions
from voxsam.lab.systems.peft import MASAM
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import ModelConfig
from voxsam.network.tuning import freeze, is_tuned
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import load_model, save_model

TOLERANCE = 1e-4  # float32 sums in another order, through four blocks
STUB = stub_network()
DESIGNS: dict[str, dict[str, object]] = {
    "none": {"adapter": "none"},
    "spatial": {"adapter": "spatial"},
    "houlsby": {"adapter": "houlsby"},
    "houlsby twice": {"adapter": "houlsby", "adapter_twice": True},
    "protuning": {"adapter": "protuning"},
    "st": {"adapter": "st"},
    "st twice": {"adapter": "st", "adapter_twice": True},
    "med": {"adapter": "med"},
    "lora": {"adapter": "lora"},
    "samed": {"adapter": "samed", "adapter_rank": 3},
    "masam": {"adapter": "masam", "adapter_rank": 5},
}
SILENT = ("houlsby", "houlsby twice", "protuning", "st", "st twice", "lora", "samed")  # change nothing at first
ALONG_DEPTH = ("st", "st twice", "masam", "med")
TOKENS = ("volume", "slices")


def network(design: str, tokens: str, fill: bool = False) -> VoxSAMNetwork:
    """A very small one; SAM's part has the same values in all of one `tokens`, `fill` gives the rest some, too."""
    change = {**DESIGNS[design], "tokens": tokens, "global_blocks": (1,)}
    config = ModelConfig.model_validate({**STUB.config.model_dump(), **change})
    card = Card(name="x", config=config, preprocessing=STUB.card.preprocessing, automatic=True)
    torch.manual_seed(1)
    made = VoxSAMNetwork(card)
    install(made)
    for number, (name, parameter) in enumerate(made.named_parameters()):
        if ".adapter." in name or "shared_adapter" in name:
            if fill:
                nn.init.normal_(parameter, std=0.3)
        else:
            generator = torch.Generator().manual_seed(len(name) * 1000 + parameter.numel())
            nn.init.normal_(parameter, std=0.2, generator=generator)
        assert number < 1000
    return made.eval()


def crop(seed: int = 0, batch: int = 1) -> Tensor:
    """A crop of 5 x 3 x 4 tokens, not a multiple of any window."""
    return torch.randn(batch, 1, 20, 12, 16, generator=torch.Generator().manual_seed(seed))


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("design", SILENT)
def test_at_first_the_answer_is_that_without_the_adapter(design: str, tokens: str) -> None:
    with torch.inference_mode():
        assert apart(network(design, tokens).encode(crop())[-1], network("none", tokens).encode(crop())[-1]) < TOLERANCE
        filled = network(design, tokens, fill=True).encode(crop())[-1]
        assert apart(filled, network("none", tokens).encode(crop())[-1]) > 0.01


def test_ma_sams_factors_change_nothing_at_first_while_its_convolutions_do() -> None:
    made, plain = network("masam", "slices"), network("none", "slices")
    with torch.inference_mode():
        assert apart(made.encode(crop())[-1], plain.encode(crop())[-1]) > 0.01
        for block in made.image_encoder.blocks:
            assert isinstance(block.adapter, MASAM)
            for part in (block.adapter.attention, block.adapter.mlp):
                nn.init.zeros_(part.up.weight)
        assert apart(made.encode(crop())[-1], plain.encode(crop())[-1]) < TOLERANCE


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("design", DESIGNS)
def test_with_and_without_gradients_and_computed_again_the_answer_is_the_same(design: str, tokens: str) -> None:
    made = network(design, tokens, fill=True)
    x = crop(batch=2)
    with torch.inference_mode():
        expected = made.encode(x)
    gradients = []
    for again in (False, True):
        made.image_encoder.recompute = again
        made.zero_grad()
        levels = made.encode(x)
        for level, wanted in zip(levels, expected, strict=True):
            assert apart(level, wanted) < TOLERANCE
        sum((level.square().mean() for level in levels), torch.zeros(())).backward()
        gradients.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("design", [d for d in DESIGNS if d not in ("spatial",)])
def test_slices_hear_of_one_another_along_depth_alone_and_only_by_adapters_made_for_it(design: str) -> None:
    made = network(design, "slices", fill=True)
    x, other = crop(), crop()
    other[:, :, 17] += 5.0  # in the last of five slices
    with torch.inference_mode():
        first, last = (made.encode(x)[level] - made.encode(other)[level] for level in (0, -1))
    changed = [bool(part.abs().max() > 1e-6) for part in first[0].unbind(1)]
    if design not in ALONG_DEPTH:
        assert changed == [False, False, False, False, True]
    elif design == "st":  # one block: one slice further
        assert changed == [False, False, False, True, True]
    assert bool(last[0, :, 0].abs().max() > 1e-6) is (design in ALONG_DEPTH)  # four blocks: four slices


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("design", DESIGNS)
def test_gradients_reach_every_tuned_tensor_and_no_frozen_one(design: str, tokens: str) -> None:
    made = freeze(network(design, tokens, fill=True))
    made(crop())[:, 1].square().mean().backward()
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            silent = "blocks.0.adapter.earlier.weight" in name  # nothing was handed on to the first stage
            assert bool(parameter.grad.abs().max() > 0) is not silent, name
        else:
            assert parameter.grad is None, name
    tuned = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    norms = {name for name in tuned if ".norm1." in name and ".adapter." not in name and ".blocks." in name}
    assert bool(norms) is (DESIGNS[design]["adapter"] not in ("lora", "samed", "masam"))
    assert all(is_tuned(name) for name in tuned)
    assert not any("qkv" in name or ".mlp.0" in name or "rel_pos_h" in name for name in tuned if "adapter" not in name)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("design", DESIGNS)
def test_its_file_and_its_delta_load(design: str, tokens: str, tmp_path: Path) -> None:
    made, base = network(design, tokens, fill=True), network("none", tokens)
    save_model(base, tmp_path / "base.safetensors")
    save_model(made, tmp_path / "whole.safetensors")
    save_model(made, tmp_path / "delta.safetensors", delta_base=tmp_path / "base.safetensors")
    with torch.inference_mode():
        expected = made(crop())
        for name in ("whole", "delta"):
            assert torch.equal(load_model(tmp_path / f"{name}.safetensors", "cpu")(crop()), expected)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("design", ["houlsby", "med", "samed", "masam"])
def test_lower_precision_is_near(design: str, precision: str) -> None:
    if precision not in precisions(torch.device("cpu")):
        pytest.skip(f"no instructions for {precision}")
    made = network(design, "slices", fill=True)
    with torch.inference_mode():
        expected = made.encode(crop())[-1]
        install(made, precision)  # type: ignore[arg-type]
        found = made.encode(crop())[-1]
    assert 0 < float((found - expected).square().mean().sqrt() / expected.std()) < 0.15
    assert found.dtype == torch.float32


def test_mixed_precision_trains_the_filter_of_frequencies() -> None:
    made = network("med", "slices", fill=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        made.encode(crop())[-1].square().mean().backward()
    gradient = made.image_encoder.blocks[1].adapter.frequency_weight.grad
    assert gradient is not None and bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0


def test_the_filter_of_frequencies_by_hand() -> None:
    """Weights of 1 and no bias: the absolute values themselves. A bias of b adds b in the first voxel alone."""
    adapter = network("med", "slices").image_encoder.blocks[0].adapter
    x = crop()[:, :, :4, :3, :5] - 3
    with torch.no_grad():
        adapter.frequency_weight.fill_(1)
        adapter.frequency_bias.fill_(0)
        assert torch.allclose(adapter._filtered(x), x.abs(), atol=1e-5)
        adapter.frequency_bias.fill_(2)
        expected = x.clone()
        expected[..., 0, 0, 0] += 2
        assert torch.allclose(adapter._filtered(x), expected.abs(), atol=1e-5)
        adapter.frequency_weight[0] = 3  # of the slowest frequency along depth: the mean over depth, three times
        adapter.frequency_bias.fill_(0)
        assert torch.allclose(adapter._filtered(x), (x + 2 * x.mean(2, keepdim=True)).abs(), atol=1e-5)

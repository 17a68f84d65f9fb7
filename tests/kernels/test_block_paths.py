"""All paths through a block, chosen by device or by the caller's settings, give the same result."""

from __future__ import annotations

import pytest
import torch

from voxsam.kernels import block as module
from voxsam.kernels import install
from voxsam.kernels.block import OPEN_TOKENS, FastBlock
from voxsam.network.network import VoxSAMNetwork
from voxsam.testing import stub_network

CONFIG = stub_network().config
WIDE = CONFIG.model_copy(update={"window": 8})
ROUNDING = 1e-5
BF16 = 0.05  # of the largest value: 8 bits of mantissa


def network_of(**changes: object) -> VoxSAMNetwork:
    card = stub_network().card
    torch.manual_seed(0)
    network = VoxSAMNetwork(card.model_copy(update={"config": CONFIG.model_copy(update=changes)})).eval()
    install(network)
    return network


def made(config=CONFIG, number: int = 0) -> FastBlock:
    block = network_of(window=config.window).image_encoder.blocks[number]
    assert isinstance(block, FastBlock)
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block.eval()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("grid", [(8, 8, 8), (9, 8, 5)])
def test_autocast_on_a_cpu_without_gradients(number: int, grid: tuple[int, int, int]) -> None:
    """As in a validation of `precision: bf16-mixed`: windows of 8^3, which otherwise go through plain products."""
    assert WIDE.window**3 >= OPEN_TOKENS
    block, x = made(WIDE, number), torch.randn(1, *grid, WIDE.width)
    with torch.no_grad():
        expected = block(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = block(x)[0]
    assert found.shape == expected.shape
    assert 0 < float((found.float() - expected).abs().max()) < BF16 * float(expected.abs().max())


@pytest.mark.parametrize("window", [2, 8])
def test_a_whole_network_under_autocast_on_a_cpu(window: int) -> None:
    network = network_of(window=window, crop=32)
    crop, points = torch.randn(1, 1, 32, 32, 32), torch.tensor([[[3.0, 14, 25]]])
    with torch.no_grad():
        expected = network(crop, points)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(crop, points)
    assert float((found.float() - expected).abs().mean()) < BF16 * float(expected.abs().max())


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("few", "calls"), [(10_000, 1), (64, 4), (32, 8)])
def test_on_a_gpu_the_windows_go_through_together(
    number: int, few: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two grids of 4 x 4 x 8 tokens at once, or as many windows of 8 as make up `few` tokens; on a CPU as before."""
    block, x, counted = made(number=number), torch.randn(2, 4, 4, 8, CONFIG.width), []
    block.attention.register_forward_hook(lambda *_: counted.append(1))
    monkeypatch.setattr(module, "CHUNK_TOKENS", 24)
    with torch.no_grad():
        expected = block(x)[0]
        assert len(counted) == 12  # 16 windows of each grid, 3 at a time
        counted.clear()
        monkeypatch.setattr(module, "on_gpu", lambda device: True)
        monkeypatch.setattr(module, "GPU_CHUNK_TOKENS", few)
        found = block(x)[0]
    assert len(counted) == calls
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)


def test_which_devices_are_gpus() -> None:
    kinds = {kind: module.on_gpu(torch.device(kind)) for kind in ("cpu", "cuda", "mps", "meta")}
    assert kinds == {"cpu": False, "cuda": True, "mps": True, "meta": False}
    assert module.GPU_CHUNK_TOKENS >= 32**3  # a crop of 128^3 with a stride of 4


def test_the_tables_of_positions_are_made_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    block, made_tables = made(), []
    monkeypatch.setattr(module, "CHUNK_TOKENS", 24)
    original = block.attention._relative_table
    monkeypatch.setattr(block.attention, "_relative_table", lambda *a: made_tables.append(1) or original(*a))
    with torch.no_grad():
        block(torch.randn(1, 4, 4, 8, CONFIG.width))
    assert len(made_tables) == 3  # d, h, w

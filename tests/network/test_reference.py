"""VoxSAM's network equals the reference implementation, with and without its kernels: values, and every gradient.

The configurations are chosen to break a fold: grids that are no multiple of the window, crops with three different
sides, one window or less per axis, patches finer and coarser than the stride, long tables of relative positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.reference import ReferenceNetwork
from voxsam.kernels import block as kernels
from voxsam.kernels import install
from voxsam.network.attention import windows
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import PADDING
from voxsam.network.sizes import TINY, ModelConfig
from voxsam.preprocess import RELEASED

VALUE_TOLERANCE = 1e-4  # float32 sums of a few thousand terms in another order
DOUBLE_TOLERANCE = 1e-11
GRADIENT_TOLERANCE = 1e-3  # relative; points are sampled in float32 whatever the network's precision
GRADIENT_FLOOR = 1e-6
VISIBLE = 1e-2
SMALL = ModelConfig(
    size="small",
    width=24,
    depth=4,
    heads=3,
    adapter_width=10,
    crop=32,
    stride=4,
    patch=16,
    window=4,
    position_grid=16,
    global_blocks=(1, 2),
    feature_width=16,
    head_width=6,
    queries=3,
    prompt_heads=4,
    prompt_mlp=20,
)

FORM = {"kernels": False}

# What is changed in SMALL, and the crop (D, H, W). The token grid is the crop / stride.
CASES: dict[str, tuple[dict[str, object], tuple[int, int, int]]] = {
    "as released, whole windows": ({}, (32, 32, 32)),
    "three different sides": ({}, (32, 24, 16)),
    "padding on every axis, and one window on an axis": ({}, (20, 12, 28)),
    "a grid smaller than the window": ({"window": 8}, (20, 36, 12)),
    "a single token on one axis, and an odd window": ({"window": 3}, (4, 28, 16)),
    "upsampling by two": ({"patch": 8}, (24, 16, 40)),
    "no upsampling": ({"patch": 4}, (16, 20, 24)),
    "a patch coarser than the stride": ({"patch": 2}, (16, 24, 20)),
    "upsampling that is no whole number": ({"patch": 8, "stride": 3, "crop": 30}, (15, 18, 24)),
    "every block with long tables": ({"global_blocks": (0, 1, 2, 3)}, (32, 16, 16)),
    "tables shorter than they must be": ({"position_grid": 3, "window": 6}, (16, 28, 12)),
    "heads of 16 channels, as kernels like them": ({"heads": 2, "width": 32}, (16, 32, 28)),
    "polarity": ({"polarity": True}, (16, 32, 28)),
}
# The paper's profile changes the adapter and the fusion grid, neither of which knows of windows: a few cases show it.
RUNS = [(case, "released") for case in CASES]
RUNS += [(case, "paper") for case in ("three different sides", "padding on every axis, and one window on an axis")]
RUNS += [("upsampling that is no whole number", "paper")]


def random_(network: VoxSAMNetwork, seed: int) -> VoxSAMNetwork:
    """Values of about their usual size in every parameter: none is left at 0 or 1, where a fold could hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("norm1.weight", "norm2.weight", "norm3.weight", "norm4.weight", "gain")):
                parameter.copy_(1 + 0.3 * noise)
            elif "rel_pos" in name or parameter.ndim < 2 or "position" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
    return network.eval()


def pair(config: ModelConfig, seed: int = 0) -> tuple[VoxSAMNetwork, ReferenceNetwork]:
    card = Card(name="small", config=config, preprocessing=RELEASED["colon"])
    network, oracle = random_(VoxSAMNetwork(card), seed), ReferenceNetwork(card).eval()
    oracle.load_state_dict(network.state_dict())
    if FORM["kernels"]:
        install(network)
    return network, oracle


def crops_and_points(shape: tuple[int, int, int], batch: int = 2) -> tuple[Tensor, Tensor]:
    """Noise with a step in it, and clicks inside, on the faces, between voxels, partly and wholly outside."""
    generator = torch.Generator().manual_seed(1)
    crops = torch.randn(batch, 1, *shape, generator=generator)
    crops[..., shape[2] // 2 :] += 2
    size = torch.tensor(shape, dtype=torch.float32)
    fractions = torch.tensor(
        [[0.5, 0.5, 0.5], [0.1, 0.9, 0.3], [0, 0, 0], [0.99, 0.2, 0.01], [-0.05, 0.5, 0.4], [3, 3, 3]]
    )
    points = torch.stack([fractions * size + number * 0.37 for number in range(batch)])
    points[:, 3, 1] = -0.5
    return crops, points


def agree(found: Tensor, expected: Tensor, tolerance: float = VALUE_TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    assert float((found - expected).abs().max()) < tolerance * max(1.0, float(expected.abs().max()))


@pytest.fixture(autouse=True, params=[False, True], ids=["bare", "kernels"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on the network as it is, and with its kernels, in chunks of which the last is not full."""
    monkeypatch.setitem(FORM, "kernels", request.param)
    monkeypatch.setattr(kernels, "CHUNK_TOKENS", 3 * SMALL.window**3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    windows.cache_clear()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "profile"), RUNS)
def test_features_prompted_features_and_logits_agree(case, profile, monkeypatch):
    change, shape = CASES[case]
    network, oracle = pair(SMALL.model_copy(update=change).in_profile(profile))
    crops, points = crops_and_points(shape)
    monkeypatch.setattr(kernels, "CHUNK_TOKENS", 3 * network.config.window**3)
    with torch.inference_mode():
        features, expected = network.encode(crops), oracle.encode(crops)
        for level, expected_level in zip(features, expected, strict=True):
            agree(level, expected_level)
        prompt_features = network.sample(features, points)
        agree(prompt_features, oracle.sample(expected, points))
        assert not prompt_features[:, -1].any()
        prompted = network.prompt_encoder(features[-1], prompt_features)
        agree(prompted, reference.prompt(oracle.prompt_encoder, expected[-1], prompt_features, None))
        agree(network(crops, points), oracle(crops, points))
        agree(network(crops), oracle(crops))  # automatic mode: no prompt encoder


@pytest.mark.parametrize(("case", "profile"), RUNS)
def test_features_agree_in_double_precision_to_its_rounding(case, profile):
    change, shape = CASES[case]
    network, oracle = (n.double() for n in pair(SMALL.model_copy(update=change).in_profile(profile)))
    crops, _ = crops_and_points(shape, batch=1)
    with torch.no_grad():
        for level, expected in zip(network.encode(crops.double()), oracle.encode(crops.double()), strict=True):
            agree(level, expected, DOUBLE_TOLERANCE)


@pytest.mark.parametrize(("case", "profile"), RUNS)
def test_gradients_of_every_parameter_agree(case, profile):
    """In double precision: gradients that are 0 (of key biases, say) would be float32 rounding only."""
    change, shape = CASES[case]
    network, oracle = (n.double() for n in pair(SMALL.model_copy(update=change).in_profile(profile)))
    expected = gradients(oracle, shape)
    found = gradients(network, shape)
    assert found.keys() == expected.keys() == dict(network.named_parameters()).keys()
    for name, gradient in found.items():
        allowed = GRADIENT_FLOOR + GRADIENT_TOLERANCE * expected[name].abs()
        assert bool(((gradient - expected[name]).abs() <= allowed).all()), name


def test_gradients_agree_in_single_precision():
    network, oracle = pair(SMALL)
    expected, found = gradients(oracle, (20, 32, 28)), gradients(network, (20, 32, 28))
    for name, gradient in found.items():
        norm = float(expected[name].norm())
        assert float((gradient - expected[name]).norm()) < GRADIENT_TOLERANCE * max(norm, 1.0), name


def gradients(network: VoxSAMNetwork, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """The gradient of every parameter that a loss on the logits reaches; the loss weights every voxel differently."""
    crops, points = crops_and_points(shape)
    weights = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(2))
    dtype = next(network.parameters()).dtype
    (network(crops.to(dtype), points).softmax(1) * weights).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_tiny_agrees():
    network, oracle = pair(TINY)
    crops, points = crops_and_points((32, 40, 24), batch=1)
    with torch.inference_mode():
        agree(network(crops, points), oracle(crops, points))


def test_each_polarity_agrees_and_padding_points_change_nothing():
    network, oracle = pair(TINY.model_copy(update={"depth": 4}))
    crops, points = crops_and_points((32, 24, 16))
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])
    padding = torch.full((2, 2), PADDING)
    with torch.inference_mode():
        expected = oracle(crops, points[:, :4], labels)
        agree(network(crops, points[:, :4], labels), expected)
        agree(network(crops, points, torch.cat([labels, padding], 1)), expected)
        assert float((oracle(crops, points[:, :4], 1 - labels) - expected).abs().max()) > VISIBLE


def test_a_second_click_with_the_static_part_agrees():
    network, oracle = pair(SMALL)
    crops, points = crops_and_points((20, 32, 28))
    with torch.inference_mode():
        features = network.encode(crops)
        static = network.static(features, crops)
        for clicks in (points[:, :1], points[:, 1:3]):
            agree(network.decode(features, crops, clicks, static=static), oracle(crops, clicks))


def test_a_grid_first_used_in_inference_mode_can_be_trained_on():
    network, _ = pair(SMALL)
    crops, points = crops_and_points((16, 16, 16), batch=1)
    with torch.inference_mode():
        network(crops, points)
    network(crops, points).sum().backward()


# The reference implementation itself, against results known in advance


def test_the_mask_of_one_axis_by_hand():
    """A row of 8 tokens, windows of 4, shift 2: the second window holds tokens 6 7 | 0 1."""
    mask = reference.wrap_mask((4, 4, 8), 4, 2).view(2, 4, 4, 4, 4, 4, 4)
    along_width = mask[:, 0, 0, :, 0, 0, :]
    assert not along_width[0].any()
    apart = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]) * -100.0
    assert torch.equal(along_width[1], apart)


def test_the_bias_takes_the_row_of_query_minus_key():
    network, _ = pair(SMALL)
    attention = network.image_encoder.blocks[0].attention
    with torch.no_grad():
        for name, table in zip("dhw", (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w), strict=True):
            # Linear in the row, so that interpolating 27 rows to 7 keeps it linear: the middle row is offset 0.
            table.copy_({"d": 100.0, "h": 10.0, "w": 1.0}[name] * torch.linspace(-13, 13, 27)[:, None].expand(-1, 8))
        attention.rel_pos_gain.fill_(2.0)
        query = torch.zeros(1, 64, 8)
        query[..., 0] = 1
        bias = reference.relative_bias(attention, query).view(4, 4, 4, 4, 4, 4)
    step = 27 / 7  # rows of the table per token
    assert float(bias[3, 1, 2, 1, 2, 0]) == pytest.approx(2 * step * (100 * 2 + 10 * -1 + 1 * 2), rel=1e-4)


def test_sampling_at_a_token_and_half_way():
    features = torch.arange(24.0).view(1, 1, 2, 3, 4)  # 12 d + 4 h + w
    at = torch.tensor([[[1.5, 5.5, 9.5], [3.5, 5.5, 9.5], [1.5, 5.5, -0.5], [1.5, 5.5, 99]]])
    assert reference.sample(features, at, 4)[0, :, 0].tolist() == [6, 12, 2, 0]

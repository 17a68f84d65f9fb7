"""Products of linear layers: packed ones equal torch's, lower precisions are as accurate as their bits allow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxsam.errors import UnsupportedError
from voxsam.kernels import linear
from voxsam.kernels.convolution import convolve
from voxsam.kernels.linear import (
    Int8Product,
    PackedProduct,
    PlainProduct,
    packs,
    precisions,
    product,
    require_precision,
)

CPU = torch.device("cpu")
ROUNDING = 1e-5  # float32 sums of 40 terms in another order
ERROR = {"float32": ROUNDING, "bf16": 1e-2, "int8": 3e-2}  # relative to the spread: 8 bits of mantissa; 8 bits in all
needs = {name: pytest.mark.skipif(name not in precisions(CPU), reason=f"no {name} instructions") for name in ERROR}
LOWER = [pytest.param(name, marks=needs[name]) for name in ("bf16", "int8")]


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(40, 24)
    with torch.no_grad():
        made.weight[3] *= 100  # int8 scales each row by itself
        made.weight[5] = 0
    return made


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 50, 40, generator=torch.Generator().manual_seed(1)) + 0.5


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest of the channels' root mean square errors, relative to the channel's spread (at least 0.3)."""
    apart = (found.float() - expected).flatten(0, -2).square().mean(0).sqrt()
    return float((apart / expected.flatten(0, -2).std(0).clamp(min=0.3)).max())


@pytest.mark.parametrize("precision", ["float32", *LOWER])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_product_is_the_layer_and_its_activation(precision, activation, layer, x):
    with torch.inference_mode():
        expected = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation](layer(x))
        found = product(layer, 150, x, precision)(x, activation)
    assert found.shape == expected.shape
    assert relative(found, expected) < ERROR[precision]


@pytest.mark.parametrize("precision", ["float32", *LOWER])
def test_plus_adds_the_residual_in_its_own_precision_and_leaves_it_as_it_was(precision, layer, x):
    residual = torch.randn(3, 50, 24, generator=torch.Generator().manual_seed(2))
    kept = residual.clone()
    with torch.inference_mode():
        found = product(layer, 150, x, precision).plus(x, residual)
        assert found.dtype == torch.float32
        assert relative(found, residual + layer(x)) < ERROR[precision]
    assert torch.equal(residual, kept)


@pytest.mark.skipif(not packs(CPU), reason="no oneDNN")
def test_which_product_is_taken(layer, x):
    with torch.inference_mode():
        assert isinstance(product(layer, 8, x), PackedProduct)
        assert isinstance(product(layer, 8, x.double(), "bf16"), PlainProduct)
        assert isinstance(product(layer, 8, x.to("meta"), "bf16"), PlainProduct)
        if "int8" in precisions(CPU):
            assert isinstance(product(layer, 8, x, "int8"), Int8Product)
    assert isinstance(product(layer, 8, x, "int8"), PlainProduct)  # gradients are kept
    product(layer, 8, x)(x).sum().backward()
    assert layer.weight.grad is not None


@needs["int8"]
@pytest.mark.parametrize("x", [torch.zeros(4, 40), torch.full((4, 40), 3.0), -torch.rand(4, 40)])
def test_int8_activations_of_one_sign_or_of_one_value(x, layer):
    with torch.inference_mode():
        found, expected = Int8Product(layer, 4)(x), layer(x)
    assert torch.isfinite(found).all()
    assert float((found.float() - expected).abs().max()) < 0.02 * float(expected.abs().max())


@needs["int8"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_activations_are_rounded_to_the_nearest_byte(dtype):
    """There is no bias on average; a single intermediate product in bf16 would shift it by half a step."""
    identity = nn.Linear(40, 40, bias=False)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(40))
    x = (torch.randn(2000, 40, generator=torch.Generator().manual_seed(3)) + 0.5).to(dtype)
    with torch.inference_mode():
        found = Int8Product(identity, 2000)(x)
    step = float(x.float().max() - x.float().min()) / 255
    assert abs(float((found.float() - x.float()).mean())) < 0.05 * step


def test_what_the_machine_lacks_is_refused_and_said(monkeypatch):
    monkeypatch.setattr(linear, "packs", lambda device: False)
    assert precisions(CPU) == ("float32",)
    with pytest.raises(
        UnsupportedError, match="precision bf16 on this CPU, which has no instructions for it; expected"
    ):
        require_precision("bf16", CPU)
    with pytest.raises(UnsupportedError, match="precision int8 on this CUDA"):
        require_precision("int8", torch.device("cuda"))
    with pytest.raises(UnsupportedError, match="precision 'half'; expected float32, bf16, int8"):
        require_precision("half", CPU)
    require_precision("float32", CPU)


@pytest.mark.skipif(not packs(CPU), reason="no oneDNN")
def test_what_the_processor_has_and_onednn_may_not_use_is_not_promised() -> None:
    """The processor has every instruction, but oneDNN is limited to AVX2: bf16 would fail, int8 be slow or saturate."""
    script = "import torch; from voxsam.kernels.linear import precisions; print(precisions(torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('float32',)"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("groups", [1, 6])
def test_convolve_is_conv3d_whatever_the_size(layout, groups):
    torch.manual_seed(0)
    x = torch.randn(1, 6, 7, 5, 9).contiguous(memory_format=layout)
    weight, bias = torch.randn(12, 6 // groups, 3, 3, 3), torch.randn(12)
    expected = F.conv3d(x.double(), weight.double(), bias.double(), padding=1, groups=groups)
    with torch.inference_mode():
        assert float((convolve(x, weight, bias, groups) - expected).abs().max()) < 1e-4
    weight.requires_grad_()
    convolve(x, weight, None, groups).sum().backward()
    assert weight.grad is not None

"""InstanceNorm that keeps channels last equals torch's: values, gradients, layout; elsewhere torch's own is used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from voxsam.kernels.convolution import FastInstanceNorm, _InstanceNorm

LAST = torch.channels_last_3d


def pair(channels: int) -> tuple[nn.InstanceNorm3d, nn.InstanceNorm3d]:
    generator = torch.Generator().manual_seed(channels)
    plain, fast = (nn.InstanceNorm3d(channels, affine=True) for _ in range(2))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = FastInstanceNorm
    return plain, fast


@pytest.mark.parametrize(("channels", "shape"), [(8, (6, 7, 5)), (3, (2, 1, 4)), (32, (4, 4, 4))])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["last", "first"])
def test_values_and_gradients_are_torchs(channels: int, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    plain, fast = pair(channels)
    generator = torch.Generator().manual_seed(1)
    image = (40 + 3 * torch.randn(2, channels, *shape, generator=generator)).contiguous(memory_format=layout)
    upstream = torch.randn(image.shape, generator=generator)
    found = []
    for norm in (plain, fast):
        x = image.detach().requires_grad_()
        y = norm(x)
        y.backward(upstream)
        found.append((y.detach(), x.grad, norm.weight.grad, norm.bias.grad))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert found[1][0].is_contiguous(memory_format=layout)


def test_gradients_are_those_of_the_function() -> None:
    generator = torch.Generator().manual_seed(2)
    rows, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 9, 3), (3,), (3,))
    )
    assert torch.autograd.gradcheck(lambda *given: _InstanceNorm.apply(*given, 1e-5), (rows, weight, bias))

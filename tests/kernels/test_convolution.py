"""Whichever kernel is used, the convolution gives torch's result."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from voxsam.kernels.convolution import SmallMapsInFloat32, convolve

ROUNDING = 5e-6  # of the largest value: float32 sums of up to 70 x 27 terms in another order; bf16 errs 100 times more
BF16_ROUNDING = 0.02  # of the largest value: 8 bits of mantissa, in the input, the result and its gradient


@pytest.mark.parametrize(
    ("channels", "out", "groups", "biased"),
    [(64, 2, 1, False), (70, 1, 1, False), (64, 3, 1, False), (64, 2, 1, True), (8, 8, 8, True), (5, 2, 1, False)],
    ids=["two out", "one out", "three out", "with bias", "depth-wise", "few in"],
)
@pytest.mark.parametrize("grid", [(4, 5, 6), (1, 3, 2)])
def test_equals_torch(channels: int, out: int, groups: int, biased: bool, grid: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *grid, generator=generator)
    weight = torch.randn(out, channels // groups, 3, 3, 3, generator=generator)
    bias = torch.randn(out, generator=generator) if biased else None
    expected = F.conv3d(x, weight, bias, padding=1, groups=groups)
    tolerance = ROUNDING * float(expected.abs().max())
    with torch.inference_mode():
        assert (convolve(x, weight, bias, groups) - expected).abs().max() < tolerance
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = convolve(x, weight, bias, groups)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < tolerance
    assert torch.equal(convolve(x, weight, bias, groups), expected)


def leave_nan_in_freed_memory() -> None:
    """Fill memory with NaN and free it, for allocations that are then read without having been written."""
    [torch.full((1 << n,), torch.nan) for n in range(10, 22)]


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 convolutions of oneDNN's")
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["bf16", "autocast"])
@pytest.mark.parametrize("convolution", [F.conv3d, F.conv_transpose3d])
def test_gradients_of_bf16_are_numbers_on_maps_smaller_than_the_kernel(convolution, kind: str, size: int) -> None:
    """As close to float32 as 8 bits of mantissa allow; without the mode, those at a depth of two are NaN or 1e30."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(2, 32, size, 4, 2, generator=generator).bfloat16()
    weight = (torch.randn(32, 32, 3, 3, 3, generator=generator) / 30).bfloat16()
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    found = []
    for low in (False, True):
        given = [one.to(dtype if low else torch.float32).requires_grad_() for one in (x.detach(), weight.detach())]
        with torch.autocast("cpu", torch.bfloat16, enabled=low and kind == "autocast"), SmallMapsInFloat32():
            out = convolution(*given, padding=1)
        leave_nan_in_freed_memory()
        found.append(torch.autograd.grad(out.float().square().sum(), given))
    for exact, lower in zip(*found, strict=True):
        assert (lower - exact).abs().max() < BF16_ROUNDING * exact.abs().max()


def test_larger_maps_stay_in_bf16() -> None:
    x, weight = torch.randn(1, 4, 4, 5, 6), torch.randn(4, 4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), SmallMapsInFloat32():
        assert F.conv3d(x, weight, padding=1).dtype == torch.bfloat16
        assert F.conv3d(x[:, :, :3], weight, padding=1).dtype == torch.float32

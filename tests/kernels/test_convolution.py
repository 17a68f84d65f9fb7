"""Whatever kernel is taken, the convolution is torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from voxsam.kernels.convolution import convolve

ROUNDING = 5e-6  # of the largest value: float32 sums of up to 70 x 27 terms in another order; bf16 errs 100 times more


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

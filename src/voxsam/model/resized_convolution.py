"""A convolution of an enlarged feature map, made without enlarging it first: the same numbers, a quarter of the work.

n batch, C channels in, O channels out, d h w the map's own grid, D H W the grid that it is resized to.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 3  # of the kernel, on each axis


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a table made while clicking must also serve training
def _resize_taps(length: int, size: int) -> Tensor:
    """(3, size, length) float64: tap a of row p weighs the map's own samples for the enlarged sample p + a - 1.

    Linear with align_corners=True; rows beyond the ends are 0, as the convolution's padding is.
    """
    at = torch.linspace(0, length - 1, size, dtype=torch.float64)
    rows = (1 - (at[:, None] - torch.arange(length)).abs()).clamp(min=0)
    padded = F.pad(rows, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + size] for tap in range(TAPS)])


def resized_convolution(x_nCdhw: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """conv3d(interpolate(x, size, "trilinear", align_corners=True), weight, padding=1) -> (n, O, D, H, W).

    `weight` (O, C, 3, 3, 3). Resizing acts on each axis alone and the same on all channels; so does each tap of the
    kernel. The channels may therefore be mixed before d and h are enlarged: O C 27 products for each of the d h W
    places instead of D H W. Slices of the map go through one at a time, which keeps them in the processor's cache.
    """
    n, channels, depth, height, _ = x_nCdhw.shape
    out = weight.shape[0]
    on_d, on_h, on_w = (
        _resize_taps(length, side).to(x_nCdhw) for length, side in zip(x_nCdhw.shape[2:], size, strict=True)
    )
    mix = weight.permute(2, 3, 0, 1, 4).reshape(TAPS * TAPS * out, channels * TAPS)
    slices = []
    for x_nChw in x_nCdhw.unbind(2):
        enlarged = torch.einsum("nChw,cWw->nCchW", x_nChw, on_w).reshape(n, channels * TAPS, height * size[2])
        mixed = torch.matmul(mix, enlarged).reshape(n, TAPS, TAPS, out, height, size[2])
        slices.append(sum(torch.matmul(on_h[tap], mixed[:, :, tap]) for tap in range(TAPS)))
    along_d = torch.stack(slices, 3)  # (n, tap of d, O, d, H, W)
    along_d = along_d.transpose(1, 2).reshape(n, out, TAPS * depth, size[1] * size[2])
    return torch.matmul(on_d.transpose(0, 1).reshape(size[0], TAPS * depth), along_d).reshape(n, out, *size)

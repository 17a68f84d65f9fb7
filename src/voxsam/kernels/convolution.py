"""The one 3x3x3 convolution of the network: zero padding of 1, by the fastest kernel that there is for its size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW, MANY = 2, 64  # channels out and in: a kernel that computes sixteen channels out at a time wastes most of its work


def convolve(x_BCDHW: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """conv3d(x, weight, bias, padding=1, groups) -> (B, O, D, H, W), in the precision of x.

    On a CPU torch leaves float32 inputs of up to 20,480 rows (channels x D x H) to a kernel that oneDNN's beats by 3 to
    5 times; where no gradient is kept, oneDNN's is taken, and for few channels out matrix products that beat it twice.
    """
    weight, bias = weight.to(x_BCDHW.dtype), None if bias is None else bias.to(x_BCDHW.dtype)
    direct = x_BCDHW.device.type == "cpu" and x_BCDHW.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if direct and not torch.is_grad_enabled():
        few = bias is None and len(weight) <= FEW and weight.shape[1] >= MANY
        if few and not torch.is_autocast_enabled("cpu"):  # autocast would add the shares in bf16
            return _to_few_channels(x_BCDHW, weight)
        one = [1, 1, 1]
        return torch.mkldnn_convolution(x_BCDHW, weight, bias, one, one, one, groups)
    return F.conv3d(x_BCDHW, weight, bias, padding=1, groups=groups)


def _to_few_channels(x_BCDHW: Tensor, weight: Tensor) -> Tensor:
    """The channels of each slice mixed for all 27 taps in one product; then each tap's share put where it belongs."""
    (b, c, depth, height, width), out = x_BCDHW.shape, len(weight)
    taps = weight.flip(3, 4).permute(2, 0, 3, 4, 1).reshape(-1, c)  # (3 of d, O, 9 of h and w) x C
    total = x_BCDHW.new_zeros(b, out, depth + 2, height, width)
    for d in range(depth):
        mixed = torch.matmul(taps, x_BCDHW[:, :, d].flatten(2))
        shares = F.fold(mixed, (height, width), 3, padding=1).unflatten(1, (3, out))
        for tap, fraction in enumerate(shares.unbind(1)):
            total[:, :, d + 2 - tap] += fraction
    return total[:, :, 1:-1]

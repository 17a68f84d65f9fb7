"""The one 3x3x3 convolution of the network: zero padding of 1, by the fastest kernel that there is for its size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(x_BCDHW: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """conv3d(x, weight, bias, padding=1, groups) -> (B, O, D, H, W), in the precision of x.

    On a CPU torch leaves float32 inputs of up to 20,480 rows (channels x D x H) to a kernel that oneDNN's beats by 3 to
    5 times; where no gradient is kept, oneDNN's is taken.
    """
    weight, bias = weight.to(x_BCDHW.dtype), None if bias is None else bias.to(x_BCDHW.dtype)
    direct = x_BCDHW.device.type == "cpu" and x_BCDHW.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if direct and not torch.is_grad_enabled():
        one = [1, 1, 1]
        return torch.mkldnn_convolution(x_BCDHW, weight, bias, one, one, one, groups)
    return F.conv3d(x_BCDHW, weight, bias, padding=1, groups=groups)

"""InstanceNorm whose voxels stay where they lie, channels last: torch's own lays them out anew, and slows what follows.

B batch, C channels, V voxels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHANNELS_LAST = torch.channels_last_3d


class _InstanceNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the voxels of each channel; all (B, V, C) inside."""

    @staticmethod
    def forward(ctx: Any, x_BVC: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x_BVC - x_BVC.mean(1, keepdim=True)
        rsd = ((centred * centred).mean(1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(centred, rsd, weight)
        return torch.addcmul(bias, centred, rsd * weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,), (centred, rsd, weight) = gradients, ctx.saved_tensors
        to_bias = gradient.sum(1, keepdim=True)
        to_weight = (gradient * centred).sum(1, keepdim=True) * rsd
        scale, voxels = rsd * weight, centred.shape[1]
        to_x = torch.addcmul(-scale * to_bias / voxels, gradient, scale)
        to_x.addcmul_(centred, -scale * rsd * to_weight / voxels)
        return to_x, to_weight.sum((0, 1)), to_bias.sum((0, 1)), None


class FastInstanceNorm(nn.InstanceNorm3d):
    """InstanceNorm3d with weight and bias, channels last in and out where they come so in float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W), the same shape and layout."""
        last = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous(memory_format=CHANNELS_LAST)
        if not last or x.is_contiguous():
            return super().forward(x)
        rows = x.permute(0, 2, 3, 4, 1)
        normed = _InstanceNorm.apply(rows.flatten(1, 3), self.weight, self.bias, self.eps)
        return normed.view(rows.shape).permute(0, 4, 1, 2, 3)

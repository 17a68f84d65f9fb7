"""A convolution of an enlarged feature map, made without enlarging it first: the same numbers, a quarter of the work.

n batch, C channels in, O channels out, d h w the map's own grid, D H W the grid that it is resized to.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 3  # of the kernel, on each axis


def resized_convolution(x_nCdhw: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """conv3d(interpolate(x, size, "trilinear", align_corners=True), weight, padding=1) -> (n, O, D, H, W).

    `weight` (O, C, 3, 3, 3). Resizing acts on each axis alone and the same on all channels; so does each tap of the
    kernel. The channels may therefore be mixed before d and h are enlarged: O C 27 products for each of the d h W
    places instead of D H W. Slices of the map go through one at a time, which keeps them in the processor's cache.
    """
    device = x_nCdhw.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if cast else x_nCdhw.dtype
    return _ResizedConvolution.apply(x_nCdhw.to(dtype), weight.to(dtype), tuple(size))  # type: ignore[return-value]


@cache
@torch.inference_mode(False)  # a table made while clicking must also serve training
def _resize_taps(length: int, size: int) -> Tensor:
    """(3, size, length) float64: tap a of row p weighs the map's own samples for the enlarged sample p + a - 1.

    Linear with align_corners=True; rows beyond the ends are 0, as the convolution's padding is.
    """
    at = torch.linspace(0, length - 1, size, dtype=torch.float64)
    rows = (1 - (at[:, None] - torch.arange(length)).abs()).clamp(min=0)
    padded = F.pad(rows, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + size] for tap in range(TAPS)])


def _tables(x_nCdhw: Tensor, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """_resize_taps of the three axes, as x is."""
    like = x_nCdhw.dtype, x_nCdhw.device
    return tuple(_resize_taps_as(n, side, *like) for n, side in zip(x_nCdhw.shape[2:], size, strict=True))


@cache
@torch.inference_mode(False)
def _resize_taps_as(length: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """_resize_taps kept on the device, for ever: a CUDA graph reads them where they lay when it was recorded."""
    return _resize_taps(length, size).to(device, dtype)


def _mixing(weight: Tensor) -> Tensor:
    """(9 O, 3 C): the kernel as a matrix, taps of d and h with the channels out, taps of w with those in."""
    return weight.permute(2, 3, 0, 1, 4).reshape(TAPS * TAPS * weight.shape[0], -1)


def _enlarged(x_nChw: Tensor, on_w: Tensor) -> Tensor:
    """(n, 3 C, h W): one slice, enlarged along w for each tap."""
    return torch.einsum("nChw,cWw->nCchW", x_nChw, on_w).flatten(3).flatten(1, 2)


class _ResizedConvolution(torch.autograd.Function):
    """Both ways slice by slice; for the way back nothing is kept but the map and the weight."""

    @staticmethod
    def forward(ctx: Any, x_nCdhw: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x_nCdhw, weight)
        ctx.size = size
        on_d, on_h, on_w = _tables(x_nCdhw, size)
        n, _, depth, height, _ = x_nCdhw.shape
        out, mix = weight.shape[0], _mixing(weight)
        along_d = x_nCdhw.new_empty(n, out, TAPS, depth, *size[1:])
        for k, x_nChw in enumerate(x_nCdhw.unbind(2)):
            mixed = torch.matmul(mix, _enlarged(x_nChw, on_w)).reshape(n, TAPS, TAPS, out, height, size[2])
            one = sum(torch.matmul(on_h[tap], mixed[:, :, tap]) for tap in range(TAPS))
            along_d[:, :, :, k] = one.transpose(1, 2)  # type: ignore[union-attr]
        rows = on_d.transpose(0, 1).flatten(1)
        return torch.matmul(rows, along_d.reshape(n, out, TAPS * depth, -1)).reshape(n, out, *size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x_nCdhw, weight = ctx.saved_tensors
        on_d, on_h, on_w = _tables(x_nCdhw, ctx.size)
        n, channels, depth, height, _ = x_nCdhw.shape
        out, mix = weight.shape[0], _mixing(weight)
        rows = on_d.transpose(0, 1).flatten(1)
        along_d = torch.matmul(rows.T, gradients[0].reshape(n, out, ctx.size[0], -1))
        along_d = along_d.reshape(n, out, TAPS, depth, *ctx.size[1:])
        to_x = torch.empty_like(x_nCdhw)
        to_mix = torch.zeros_like(mix, dtype=torch.promote_types(mix.dtype, torch.float32))  # a sum over all slices
        for k, x_nChw in enumerate(x_nCdhw.unbind(2)):
            one = along_d[:, :, :, k].transpose(1, 2)  # (n, tap of d, O, H, W)
            mixed = torch.stack([torch.matmul(on_h[tap].T, one) for tap in range(TAPS)], 2).flatten(4).flatten(1, 3)
            to_mix += torch.einsum("nqp,nrp->qr", mixed, _enlarged(x_nChw, on_w))
            enlarged = torch.matmul(mix.T, mixed).reshape(n, channels, TAPS, height, ctx.size[2])
            to_x[:, :, k] = torch.einsum("nCchW,cWw->nChw", enlarged, on_w)
        to_weight = to_mix.reshape(TAPS, TAPS, out, channels, TAPS).permute(2, 3, 0, 1, 4)
        return to_x, to_weight.to(weight.dtype), None

"""The network's 3x3x3 convolutions: with the fastest kernel for their size, or of an enlarged map without enlarging it.

n batch, C channels in, O channels out, d h w a map's own grid, D H W the grid that it is resized to.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voxsam.network.mask_decoder import MaskDecoder

FEW, MANY = 2, 64  # channels out and in: a kernel that computes sixteen outputs at a time wastes most of its work
TAPS = 3  # of the kernel, on each axis


def convolve(x_BCDHW: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """conv3d(x, weight, bias, padding=1, groups) -> (B, O, D, H, W), in the precision of x.

    On a CPU torch leaves float32 inputs of up to 20,480 rows (channels x D x H) to a kernel that is 3 to 5 times slower
    than oneDNN's. Where no gradient is kept oneDNN's is used, and for few channels out matrix products, twice as fast.
    """
    weight, bias = weight.to(x_BCDHW.dtype), None if bias is None else bias.to(x_BCDHW.dtype)
    direct = x_BCDHW.device.type == "cpu" and x_BCDHW.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if direct and not torch.is_grad_enabled():
        few = bias is None and len(weight) <= FEW and weight.shape[1] >= MANY
        if few and not torch.is_autocast_enabled("cpu"):  # autocast would add the taps in bf16
            return _to_few_channels(x_BCDHW, weight)
        one = [1, 1, 1]
        return torch.mkldnn_convolution(x_BCDHW, weight, bias, one, one, one, groups)
    return F.conv3d(x_BCDHW, weight, bias, padding=1, groups=groups)


def _to_few_channels(x_BCDHW: Tensor, weight: Tensor) -> Tensor:
    """Mix the channels of each slice for all 27 taps in one product, then add each tap's part where it belongs."""
    (b, c, depth, height, width), out = x_BCDHW.shape, len(weight)
    taps = weight.flip(3, 4).permute(2, 0, 3, 4, 1).reshape(-1, c)  # (3 of d, O, 9 of h and w) x C
    total = x_BCDHW.new_zeros(b, out, depth + 2, height, width)
    for d in range(depth):
        mixed = torch.matmul(taps, x_BCDHW[:, :, d].flatten(2))
        parts = F.fold(mixed, (height, width), 3, padding=1).unflatten(1, (3, out))
        for tap, part in enumerate(parts.unbind(1)):
            total[:, :, d + 2 - tap] += part
    return total[:, :, 1:-1]


def resized_convolution(x_nCdhw: Tensor, weight: Tensor, onto_nODHW: Tensor) -> Tensor:
    """(n, O, D, H, W): onto + conv3d(interpolate(x, (D, H, W), "trilinear", align_corners=True), weight, padding=1).

    `weight` (O, C, 3, 3, 3). Resizing acts on each axis separately and alike on all channels; so does each tap of the
    kernel. The channels can therefore be mixed before d and h are enlarged: O C 27 products for each of d h W places
    instead of D H W. Slices of the map are processed one at a time, which keeps them in the processor's cache, and each
    is added to the few slices of the result that it touches.
    """
    device = x_nCdhw.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if cast else x_nCdhw.dtype
    return _ResizedConvolution.apply(x_nCdhw.to(dtype), weight.to(dtype), onto_nODHW)  # type: ignore[return-value]


@cache
@torch.inference_mode(False)  # a table made while clicking must also serve training
def _resize_taps(length: int, size: int) -> Tensor:
    """(3, size, length) float64: row p of tap a weights the map's own samples for the enlarged sample p + a - 1.

    Linear with align_corners=True; rows beyond the ends are 0, as the convolution's padding is.
    """
    at = torch.linspace(0, length - 1, size, dtype=torch.float64)
    rows = (1 - (at[:, None] - torch.arange(length)).abs()).clamp(min=0)
    padded = F.pad(rows, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + size] for tap in range(TAPS)])


def _tables(x_nCdhw: Tensor, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """_resize_taps of the three axes, with the type and device of x."""
    like = x_nCdhw.dtype, x_nCdhw.device
    return tuple(_resize_taps_as(n, side, *like) for n, side in zip(x_nCdhw.shape[2:], size, strict=True))


@cache
@torch.inference_mode(False)
def _resize_taps_as(length: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """_resize_taps, kept on the device for good: a CUDA graph reads them at their address when it was recorded."""
    return _resize_taps(length, size).to(device, dtype)


@cache
def _touched(length: int, size: int) -> tuple[slice, ...]:
    """For each sample of a map's axis, the enlarged samples to which it contributes through any tap of the kernel."""
    rows = [taken.nonzero().flatten().tolist() for taken in _resize_taps(length, size).any(0).unbind(1)]
    return tuple(slice(row[0], row[-1] + 1) if row else slice(0) for row in rows)


def _mixing(weight: Tensor) -> Tensor:
    """(O 9, 3 C): the kernel as a matrix, taps of d and h with the channels out, taps of w with those in."""
    return weight.permute(0, 2, 3, 1, 4).reshape(weight.shape[0] * TAPS * TAPS, -1)


def _enlarged(x_nChw: Tensor, on_w: Tensor) -> Tensor:
    """(n, 3 C, h W): one slice, enlarged along w for each tap."""
    return torch.einsum("nChw,cWw->nCchW", x_nChw, on_w).flatten(3).flatten(1, 2)


class _ResizedConvolution(torch.autograd.Function):
    """Both passes slice by slice; only the map and the weight are kept for backward. Sums are float32 or more."""

    @staticmethod
    def forward(ctx: Any, x_nCdhw: Tensor, weight: Tensor, onto_nODHW: Tensor) -> Tensor:
        """The map resized to the grid of `onto`, convolved with (O, C, 3, 3, 3), and added to a copy of `onto`."""
        ctx.save_for_backward(x_nCdhw, weight)
        ctx.size, ctx.onto = tuple(onto_nODHW.shape[2:]), onto_nODHW.dtype
        on_d, on_h, on_w = _tables(x_nCdhw, ctx.size)
        (n, _, depth, height, _), (*_, W) = x_nCdhw.shape, ctx.size
        out, mix, rows_h = len(weight), _mixing(weight), on_h.transpose(0, 1).flatten(1)
        total = onto_nODHW.to(torch.promote_types(x_nCdhw.dtype, torch.float32), copy=True)
        for k, (x_nChw, at) in enumerate(zip(x_nCdhw.unbind(2), _touched(depth, ctx.size[0]), strict=True)):
            mixed = torch.matmul(mix, _enlarged(x_nChw, on_w)).reshape(n, TAPS * out, TAPS * height, W)
            one = torch.matmul(rows_h, mixed).reshape(n, out, TAPS, -1)
            total[:, :, at] += torch.matmul(on_d[:, at, k].T, one).unflatten(3, ctx.size[1:])
        return total.to(torch.promote_types(x_nCdhw.dtype, onto_nODHW.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_nCdhw, weight = ctx.saved_tensors
        on_d, on_h, on_w = _tables(x_nCdhw, ctx.size)
        (n, channels, depth, height, _), (*_, W) = x_nCdhw.shape, ctx.size
        out, mix, rows_h = len(weight), _mixing(weight), on_h.transpose(0, 1).flatten(1)
        gradient = gradients[0].to(x_nCdhw.dtype)
        to_x = torch.empty_like(x_nCdhw)
        to_mix = torch.zeros_like(mix, dtype=torch.promote_types(mix.dtype, torch.float32))  # a sum over all slices
        for k, (x_nChw, at) in enumerate(zip(x_nCdhw.unbind(2), _touched(depth, ctx.size[0]), strict=True)):
            one = torch.matmul(on_d[:, at, k], gradient[:, :, at].flatten(3)).reshape(n, TAPS * out, -1, W)
            mixed = torch.matmul(rows_h.T, one).reshape(n, len(mix), height * W)
            to_mix += torch.einsum("nqp,nrp->qr", mixed, _enlarged(x_nChw, on_w))
            enlarged = torch.matmul(mix.T, mixed).reshape(n, channels, TAPS, height, W)
            to_x[:, :, k] = torch.einsum("nCchW,cWw->nChw", enlarged, on_w)
        to_weight = to_mix.reshape(out, TAPS, TAPS, channels, TAPS).permute(0, 3, 1, 2, 4)
        return to_x, to_weight.to(weight.dtype), gradients[0].to(ctx.onto)


class FastConvolution(nn.Conv3d):
    """A 3x3x3 convolution that keeps its grid, by `convolve`; in the precision of x."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, D, H, W) -> (n, O, D, H, W)."""
        return convolve(x, self.weight, self.bias, self.groups)


class FastPlaneConvolution(nn.Conv2d):
    """A convolution of slices in the precision of x."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, O, H, W)."""
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class FastMaskDecoder(MaskDecoder):
    """MaskDecoder whose levels are mixed before they are enlarged, also with gradients, which then take less memory."""

    def convolution(self, x_BCDHW: Tensor, weight: Tensor) -> Tensor:
        """As MaskDecoder.convolution."""
        return convolve(x_BCDHW, weight)

    def enlarged_convolution(self, x_BmGGG: Tensor, weight: Tensor, onto_BmFFF: Tensor) -> Tensor:
        """As MaskDecoder.enlarged_convolution."""
        return resized_convolution(x_BmGGG, weight, onto_BmFFF)


CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


class SmallMapsInFloat32(TorchFunctionMode):
    """Inside this mode, bf16 CPU convolutions, autocast's too, run in float32 if the kernel is as large as the map.

    oneDNN's bf16 gradient of their weights (torch 2.13) contains uninitialised memory: NaN, or 1e30. It is known for
    kernels that reach into the padding at every position, such as 3x3x3 on a depth of two; such maps cost nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in CONVOLUTIONS or len(args) < 2 or args[0].device.type != "cpu":
            return func(*args, **kwargs)
        x, weight = args[:2]
        low = torch.bfloat16 in (x.dtype, weight.dtype) or torch.is_autocast_enabled("cpu")
        if not low or all(side > kernel for side, kernel in zip(x.shape[2:], weight.shape[2:], strict=False)):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            single = [one.float() if isinstance(one, Tensor) else one for one in args]
            return func(*single, **{k: v.float() if isinstance(v, Tensor) else v for k, v in kwargs.items()})


CHANNELS_LAST = torch.channels_last_3d


class _InstanceNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the voxels of each channel; all tensors (B, V, C)."""

    @staticmethod
    def forward(ctx: Any, x_BVC: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """(B, V, C), and (C,) weight and bias -> (B, V, C)."""
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
    """InstanceNorm3d with weight and bias that keeps float32 maps on a CPU channels last if they come so."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W), the same shape and layout."""
        last = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous(memory_format=CHANNELS_LAST)
        if not last or x.is_contiguous():
            return super().forward(x)
        rows = x.permute(0, 2, 3, 4, 1)
        normed = _InstanceNorm.apply(rows.flatten(1, 3), self.weight, self.bias, self.eps)
        return normed.view(rows.shape).permute(0, 4, 1, 2, 3)

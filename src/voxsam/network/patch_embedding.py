"""Patch embedding: the crop's voxels to tokens, as one small convolution.

B batch, K image channels, D H W voxels of the crop (depth, height, width), c width of a token, T voxels per token and
axis ("stride").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsampling_taps(patch: int, stride: int) -> Tensor:
    """(patch, stride + 2): how the samples of one patch read the voxels -1 .. stride of the crop.

    Trilinear upsampling by patch / stride (align_corners=False) is linear on each axis: sample p of a patch lies at
    voxel f = (p + 0.5) * stride / patch - 0.5 and reads floor(f) and floor(f) + 1.
    """
    at = (torch.arange(patch, dtype=torch.float64) + 0.5) * stride / patch - 0.5
    low = at.floor()
    taps = torch.zeros(patch, stride + 2, dtype=torch.float64)
    rows = torch.arange(patch)
    taps[rows, low.long() + 1] += 1 - (at - low)
    taps[rows, low.long() + 2] += at - low
    return taps.float()


class PatchEmbedding(nn.Module):
    """SAM's patch convolution on every slice, then a depth-wise convolution along depth (paper, Sec. 3.2).

    The released code upsamples the crop to `patch / stride` times its side and copies it to three channels first. Both
    are linear, so upsampling, patch convolution and slice convolution are composed into one convolution of
    (stride + 2)^3 taps on the crop itself, with replicate padding. The composition is differentiable: the slice
    convolution is tuned, SAM's patch convolution stays frozen.

    Of several image channels (an extension) each goes through SAM's patch convolution as a grey image, as the released
    one channel does; a slice convolution of its own makes the depth of each, and the tokens are their sum.
    """

    taps: Tensor

    def __init__(self, width: int, patch: int, stride: int, channels: int = 1) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels
        taps = channels * patch  # of the slice convolution, channel after channel
        self.patch_weight = nn.Parameter(torch.randn(width, 3, patch, patch) / (3 * patch))
        self.patch_bias = nn.Parameter(torch.zeros(width))
        self.slice_weight = nn.Parameter(torch.full((width, taps), 1 / taps) + torch.randn(width, taps) / taps)
        self.slice_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("taps", upsampling_taps(patch, stride), persistent=False)

    def composed(self) -> tuple[Tensor, Tensor]:
        """The one convolution: weight (c, K (T + 2)^3), bias (c,)."""
        taps = self.taps.to(self.patch_weight.dtype)
        plane_cab = torch.einsum("cpq,pa,qb->cab", self.patch_weight.sum(1), taps, taps)
        depth_ckd = self.slice_weight.reshape(len(plane_cab), self.channels, -1) @ taps
        weight = (depth_ckd[..., None, None] * plane_cab[:, None, None]).flatten(1)
        return weight, self.patch_bias * self.slice_weight.sum(1) + self.slice_bias

    def forward(self, crops_BKDHW: Tensor) -> Tensor:
        """(B, K, D, H, W) normalised crops -> (B, D/T, H/T, W/T, c) tokens."""
        padded = F.pad(crops_BKDHW, (1, 1, 1, 1, 1, 1), mode="replicate")
        for axis in (2, 3, 4):
            padded = padded.unfold(axis, self.stride + 2, self.stride)
        return F.linear(padded.movedim(1, 4).flatten(4), *self.composed())


class SlicePatchEmbedding(nn.Module):
    """SAM's patch convolution alone: each token sees a square patch of the mean of T slices.

    The slices are upsampled in their plane to `patch / stride` times their side; as above that is composed with the
    convolution.
    """

    taps: Tensor

    def __init__(self, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.patch_weight = nn.Parameter(torch.randn(width, 3, patch, patch) / (3 * patch))
        self.patch_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("taps", upsampling_taps(patch, stride), persistent=False)

    def forward(self, crops_B1DHW: Tensor) -> Tensor:
        """(B, 1, D, H, W) normalised crops -> (B, D/T, H/T, W/T, c) tokens."""
        taps = self.taps.to(self.patch_weight.dtype)
        weight = torch.einsum("cpq,pa,qb->cab", self.patch_weight.sum(1), taps, taps).flatten(1)
        slices = crops_B1DHW[:, 0].unflatten(1, (-1, self.stride)).mean(2)
        padded = F.pad(slices, (1, 1, 1, 1), mode="replicate")
        for axis in (2, 3):
            padded = padded.unfold(axis, self.stride + 2, self.stride)
        return F.linear(padded.flatten(4), weight, self.patch_bias)

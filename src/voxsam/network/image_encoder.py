"""The image encoder: SAM's ViT with an adapter in each block, on a volume's tokens or slices (paper, Sec. 3.2).

B batch, K image channels, D H W token grid (in the patch embedding: voxels of the crop), c width of a token, T voxels
per token and axis ("stride"), C width of a feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxsam.network.adapters import adapter_kind, convolve_tokens
from voxsam.network.block import LAYER_NORM_EPS, Block
from voxsam.network.promptable import BlockProgress
from voxsam.network.sizes import ModelConfig


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

    With several image channels (an extension), each goes through SAM's patch convolution as a grey image, like the one
    channel of the released code, then through a slice convolution of its own; the tokens are their sum.
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
        """The composed convolution: weight (c, K (T + 2)^3), bias (c,)."""
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

    In their plane the slices are upsampled to `patch / stride` times their side; as above, this is composed with the
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


class Neck(nn.Module):
    """1x1x1 convolution, LayerNorm over channels, 3x3x3 convolution, LayerNorm: tokens to a feature map.

    For slices it is SAM's own: the second convolution is 3x3, on each slice.
    """

    def __init__(self, width: int, feature_width: int, slices: bool = False) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, feature_width, bias=False)
        self.norm1 = nn.LayerNorm(feature_width, eps=LAYER_NORM_EPS)
        convolution = nn.Conv2d if slices else nn.Conv3d
        self.conv = convolution(feature_width, feature_width, 3, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(feature_width, eps=LAYER_NORM_EPS)

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """(B, D, H, W, c) -> (B, C, D, H, W)."""
        x = self.convolved(self.norm1(self.reduce(x_BDHWc)))
        return self.norm2(x).permute(0, 4, 1, 2, 3)

    def convolved(self, x_BDHWC: Tensor) -> Tensor:
        """The second convolution, on the volume or on each slice."""
        if isinstance(self.conv, nn.Conv3d):
            return convolve_tokens(self.conv, x_BDHWC)
        planes = self.conv(x_BDHWC.flatten(0, 1).permute(0, 3, 1, 2))
        return planes.permute(0, 2, 3, 1).unflatten(0, x_BDHWC.shape[:2])


class ImageEncoder(nn.Module):
    """From a crop to four feature maps, level 4 the deepest.

    With `tokens: slices` it is SAM's own 2D encoder on each slice, its neck shared by the four levels, and the slices'
    maps are stacked along depth (paper, Sec. 4.3). A slice is the mean of `stride` slices of the crop, so that every
    voxel counts. The token grid is that of `tokens: volume`, so that the same decoder fits, and SAM runs once for each
    of its planes.

    Set `recompute` to keep only the input of each block for the backward pass and compute the rest again: a training
    step then needs the memory of one block instead of all.

    Raises UnsupportedError for an unknown adapter.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        c, side, slices = config.width, config.position_grid, config.tokens == "slices"
        if slices:
            self.patch_embedding = SlicePatchEmbedding(c, config.patch, config.stride)
        else:
            self.patch_embedding = PatchEmbedding(c, config.patch, config.stride, config.channels)
        self.plane_positions = nn.Parameter(torch.randn(side, side, c) * 0.02)
        start = torch.ones if config.depth_start == "ones" else torch.zeros
        self.depth_positions = None if slices else nn.Parameter(start(config.token_grid, c))
        kind = adapter_kind(config.adapter)
        shared = kind.shared(config) if kind.shared else None
        self.blocks = nn.ModuleList(Block(config, i, kind.make(config, i, shared)) for i in range(config.depth))
        necks = 1 if slices else len(config.levels)
        self.necks = nn.ModuleList(Neck(c, config.feature_width, slices) for _ in range(necks))
        self.shared_adapter = shared

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """(D, H, W, c): SAM's plane table pooled to (H, W), plus the depth table, stretched if D differs."""
        plane = F.adaptive_avg_pool2d(self.plane_positions.permute(2, 0, 1), grid[1:]).permute(1, 2, 0)
        depth = self.depth_positions
        if depth is None:
            return plane.expand(*grid, -1)
        if len(depth) != grid[0]:
            depth = F.interpolate(depth.T[None], size=grid[0], mode="linear")[0].T
        return depth[:, None, None] + plane

    def forward(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> tuple[Tensor, ...]:
        """(B, 1, D, H, W) normalised crops, sides multiples of the stride -> four (B, C, D/T, H/T, W/T).

        `progress` is called after each block.
        """
        x = self.patch_embedding(crops_B1DHW)
        x = x + self.positions((x.shape[1], x.shape[2], x.shape[3]))
        levels, carried = [], None
        for number, block in enumerate(self.blocks, 1):
            if self.recompute and torch.is_grad_enabled():
                x, carried = checkpoint(block, x, carried, use_reentrant=False)  # type: ignore[misc]
            else:
                x, carried = block(x, carried)
            if number in self.config.level_blocks:
                levels.append(self.necks[len(levels) % len(self.necks)](x))
            if progress is not None:
                progress(number, len(self.blocks))
        return tuple(levels)

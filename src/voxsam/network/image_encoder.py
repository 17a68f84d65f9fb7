"""The image encoder: SAM's ViT with an adapter in each block, on a volume's tokens or slices (paper, Sec. 3.2).

B batch, D H W token grid, c width of a token, C width of a feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxsam.network.adapters import adapter_kind, convolve_tokens
from voxsam.network.block import LAYER_NORM_EPS, Block
from voxsam.network.patch_embedding import PatchEmbedding, SlicePatchEmbedding
from voxsam.network.promptable import BlockProgress
from voxsam.network.sizes import ModelConfig


class Neck(nn.Module):
    """1x1x1 convolution, LayerNorm over channels, 3x3x3 convolution, LayerNorm: tokens to a feature map.

    Of slices it is SAM's own: the second convolution is 3x3, on each slice.
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
    """Crop to four feature maps, level 4 the deepest.

    With `tokens: slices` it is SAM's own 2D encoder on each slice, its neck shared by the four levels, and the slices'
    maps are stacked along depth (paper, Sec. 4.3). A slice is the mean of `stride` slices of the crop: every voxel
    counts, the grid of tokens is that of `tokens: volume`, so the same decoder serves, and SAM runs once for each of
    its planes.

    Set `recompute` to keep only the input of each block for the backward pass and compute the rest again: a training
    step then needs the memory of one block instead of all.

    Raises UnsupportedError for an adapter that is not known.
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
        """(D, H, W, c): SAM's plane table pooled to (H, W), plus the depth table, stretched if D is another."""
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

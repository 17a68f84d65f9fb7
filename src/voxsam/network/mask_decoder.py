"""The mask decoder: multi-layer aggregation of four feature maps and the crop itself (paper, Sec. 3.4, Fig. 4).

B batch, C width of a feature map, m width of a head, G token grid, F fusion grid (twice G, or the crop's side).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.network.sizes import ModelConfig

CLASSES = 2  # background, tumour


def _resize(x: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=align_corners)


def _normed(x: Tensor) -> Tensor:
    """InstanceNorm and ReLU."""
    return F.relu(F.instance_norm(x), inplace=not torch.is_grad_enabled())


class Head(nn.Module):
    """Two 3x3x3 convolutions, each with InstanceNorm and ReLU: one level's part of the mask features."""

    def __init__(self, feature_width: int, head_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(feature_width, head_width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(head_width, head_width, 3, padding=1, bias=False)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, C, G, G, G) -> (B, m, G, G, G)."""
        return _normed(self.conv2(_normed(self.conv1(x_BCDHW))))


class MaskDecoder(nn.Module):
    """Four heads, upsampled and concatenated with the crop, fused by a 3x3x3 convolution, then two logits per voxel.

    The fusing convolution is a sum over its input groups, and a click changes only `config.prompt_levels`, usually
    level 4 alone. `static` computes the part of the other levels and of the crop once; `fused` adds that of the
    prompted ones, and nothing is ever concatenated. Without `config.multi_layer` there is one head, for level 4.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m = config.head_width
        self.full_resolution = config.fusion == "crop"
        levels = config.levels
        self.prompted = [levels.index(level) for level in config.prompt_levels]  # heads
        self.unprompted = [n for n in range(len(levels)) if n not in self.prompted]
        self.heads = nn.ModuleList(Head(config.feature_width, m) for _ in levels)
        self.fuse = nn.Conv3d(len(levels) * m + config.channels, m, 3, padding=1, bias=False)
        self.classify = nn.Conv3d(m, CLASSES, 3, padding=1, bias=False)

    def _fusion_grid(self, token_grid: torch.Size, crop_shape: torch.Size) -> tuple[int, ...]:
        return tuple(crop_shape) if self.full_resolution else tuple(2 * n for n in token_grid)

    def _with_level(self, total_BmFFF: Tensor, head: int, features_BCDHW: Tensor) -> Tensor:
        """The sum so far plus what the level of one head (from 0) adds to the fusing convolution."""
        m = self.fuse.out_channels
        weight = self.fuse.weight[:, head * m : (head + 1) * m]
        return self.enlarged_convolution(self.heads[head](features_BCDHW), weight, total_BmFFF)

    def convolution(self, x_BCDHW: Tensor, weight: Tensor) -> Tensor:
        """conv3d(x, weight), 3 x 3 x 3, which keeps the grid."""
        return F.conv3d(x_BCDHW, weight, padding=1)

    def enlarged_convolution(self, x_BmGGG: Tensor, weight: Tensor, onto_BmFFF: Tensor) -> Tensor:
        """onto + conv3d(x enlarged to onto's grid, weight)."""
        enlarged = _resize(x_BmGGG, onto_BmFFF.shape[2:], align_corners=True)
        return onto_BmFFF + self.convolution(enlarged, weight)

    def static(self, features: tuple[Tensor, ...], crops_B1DHW: Tensor) -> Tensor:
        """(B, m, F, F, F) the part of the crop and of the levels that no click changes: once for each crop."""
        size = self._fusion_grid(features[0].shape[2:], crops_B1DHW.shape[2:])
        image = _resize(crops_B1DHW, size, align_corners=False)
        total = self.convolution(image, self.fuse.weight[:, len(self.heads) * self.fuse.out_channels :])
        for head in self.unprompted:
            total = self._with_level(total, head, features[head])
        return total

    def fused(self, static: Tensor, prompted: tuple[Tensor, ...]) -> Tensor:
        """The static part and the prompted levels, after the prompt encoder -> (B, m, F, F, F) mask features."""
        for head, features_BCDHW in zip(self.prompted, prompted, strict=True):
            static = self._with_level(static, head, features_BCDHW)
        return _normed(static)

    def forward(self, fused_BmFFF: Tensor, crop_shape: tuple[int, ...]) -> Tensor:
        """Mask features -> (B, 2, D, H, W) logits on the crop."""
        return _resize(self.classify(fused_BmFFF), crop_shape, align_corners=True)

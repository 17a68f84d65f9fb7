"""The mask decoder: multi-layer aggregation of four feature maps and the crop itself (paper, Sec. 3.4, Fig. 4).

B batch, C width of a feature map, m width of a head, G token grid, F fusion grid (twice G, or the crop's side).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.model.convolution import convolve
from voxsam.model.resized_convolution import resized_convolution
from voxsam.model.sizes import LEVELS, ModelConfig

CLASSES = 2  # background, tumour


def _resize(x: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=align_corners)


class Head(nn.Module):
    """Two 3x3x3 convolutions, each with InstanceNorm and ReLU: one level's share of the mask features."""

    def __init__(self, feature_width: int, head_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(feature_width, head_width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(head_width, head_width, 3, padding=1, bias=False)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, C, G, G, G) -> (B, m, G, G, G)."""
        x = F.relu(F.instance_norm(convolve(x_BCDHW, self.conv1.weight)))
        return F.relu(F.instance_norm(convolve(x, self.conv2.weight)))


class MaskDecoder(nn.Module):
    """Four heads, upsampled and concatenated with the crop, fused by a 3x3x3 convolution, then two logits per voxel.

    The fusing convolution is a sum over its input groups, and a click changes level 4 only. `static` computes the share
    of levels 1-3 and of the crop once; `fused` adds the share of level 4. No concatenation is ever made, and no level
    is enlarged before the convolution has mixed its channels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m = config.head_width
        self.full_resolution = config.fusion == "crop"
        self.heads = nn.ModuleList(Head(config.feature_width, m) for _ in range(LEVELS))
        self.fuse = nn.Conv3d(LEVELS * m + config.channels, m, 3, padding=1, bias=False)
        self.classify = nn.Conv3d(m, CLASSES, 3, padding=1, bias=False)

    def _fusion_grid(self, token_grid: torch.Size, crop_shape: torch.Size) -> tuple[int, ...]:
        return tuple(crop_shape) if self.full_resolution else tuple(2 * n for n in token_grid)

    def _share(self, level: int, features_BCDHW: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, m, F, F, F): what one level (0..3) adds to the fusing convolution."""
        m = self.fuse.out_channels
        return resized_convolution(
            self.heads[level](features_BCDHW), self.fuse.weight[:, level * m : (level + 1) * m], size
        )

    def static(self, features: tuple[Tensor, ...], crops_B1DHW: Tensor) -> Tensor:
        """(B, m, F, F, F): the share of the first three levels and of the crop; holds while the crop holds."""
        size = self._fusion_grid(features[0].shape[2:], crops_B1DHW.shape[2:])
        image = _resize(crops_B1DHW, size, align_corners=False)
        total = convolve(image, self.fuse.weight[:, LEVELS * self.fuse.out_channels :])
        for level in range(LEVELS - 1):
            total = total + self._share(level, features[level], size)
        return total

    def fused(self, static: Tensor, deepest_BCDHW: Tensor) -> Tensor:
        """The static share and level 4 after the prompt encoder -> (B, m, F, F, F) mask features."""
        x = static + self._share(LEVELS - 1, deepest_BCDHW, tuple(static.shape[2:]))
        return F.relu(F.instance_norm(x))

    def forward(self, fused_BmFFF: Tensor, crop_shape: tuple[int, ...]) -> Tensor:
        """Mask features -> (B, 2, D, H, W) logits on the crop."""
        return _resize(convolve(fused_BmFFF, self.classify.weight), crop_shape, align_corners=True)

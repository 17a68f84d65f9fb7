"""3D UX-Net (Lee et al., ICLR 2023): a U-Net whose encoder uses depth-wise 7^3 convolutions in place of attention.

B batch, C channels, D H W crop.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from voxsam.lab.systems.networks import CLASSES, ChannelNorm, Four, NetworkKind, Options, Size, cube, require_crop

KERNEL = 7
EXPANSION = 4  # hidden channels of a block, times its own
SCALE = 1e-6  # initial scale of a block's output
STEP = 16  # voxels of the crop for each voxel of the deepest map


class UXNetOptions(Options):
    """The defaults are the original's: 53,005,922 parameters for any crop."""

    widths: Four = Field((48, 96, 192, 384), description="channels of the encoder's four stages")
    depths: Four = Field((2, 2, 2, 2), description="blocks in each stage")
    hidden: PositiveInt = Field(768, description="channels of the deepest map")


class UXNet(nn.Module):
    """3D UX-Net; the encoder is implemented here, the rest is MONAI's UNETR blocks with instance normalisation.

    Raises UnsupportedError for a crop whose sides are not multiples of 16, or all 16.
    """

    def __init__(self, size: Size, channels: int, options: UXNetOptions) -> None:
        super().__init__()
        require_crop(size, cube(STEP), "ux-net", several=True)
        widths = options.widths
        stem = nn.Conv3d(channels, widths[0], KERNEL, stride=2, padding=KERNEL // 2)
        self.downs = nn.ModuleList([nn.Sequential(stem, ChannelNorm(widths[0]))])
        self.downs.extend(_down(fine, coarse) for fine, coarse in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.Sequential(*(LargeKernelBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, options.depths, strict=True)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        made = (*widths, options.hidden)
        given = (channels, *widths)
        self.skips = nn.ModuleList(_convolutions(a, b) for a, b in zip(given, made, strict=True))
        self.ups = nn.ModuleList(_up(made[i + 1], made[i]) for i in range(4))
        self.last = _convolutions(widths[0], widths[0])
        self.head = UnetOutBlock(3, widths[0], CLASSES)

    def forward(self, crops_BCDHW: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 2, D, H, W) logits."""
        x, maps = crops_BCDHW, [self.skips[0](crops_BCDHW)]
        for down, stage, norm, skip in zip(self.downs, self.stages, self.norms, self.skips[1:], strict=True):
            x = stage(down(x))
            maps.append(skip(norm(x)))
        x = maps.pop()
        for level in reversed(range(4)):
            x = self.ups[level](x, maps[level])
        return self.head(self.last(x))


class LargeKernelBlock(nn.Module):
    """A depth-wise 7^3 convolution, then an MLP for each channel by itself, scaled, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = EXPANSION * channels
        self.depthwise = nn.Conv3d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.expand = nn.Conv3d(channels, hidden, 1, groups=channels)
        self.reduce = nn.Conv3d(hidden, channels, 1, groups=channels)
        self.act, self.scale = nn.GELU(), nn.Parameter(torch.full((channels, 1, 1, 1), SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, h, w) -> the same shape."""
        return x + self.scale * self.reduce(self.act(self.expand(self.norm(self.depthwise(x)))))


def _down(given: int, made: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(given), nn.Conv3d(given, made, 2, stride=2))


def _convolutions(given: int, made: int) -> nn.Module:
    return UnetrBasicBlock(3, given, made, 3, 1, "instance", res_block=True)


def _up(given: int, made: int) -> nn.Module:
    return UnetrUpBlock(3, given, made, 3, 2, "instance", res_block=True)


NETWORKS = {"ux-net": NetworkKind(UXNetOptions, UXNet)}

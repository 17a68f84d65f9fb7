"""UNETR++ (Shaker et al., IEEE TMI 2024): efficient paired attention, over channels and over space, at four levels.

B batch, C channels, D H W crop, N tokens of a level, h heads, c channels of a head, P tokens that N are projected to.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voxsam.lab.systems.networks import CLASSES, Four, NetworkKind, Options, Size, Three, divided, require_crop

LEVELS = 4
SCALE = 1e-6  # initial scale of an attention's output
DROPOUT, CHANNEL_DROPOUT = 0.15, 0.1  # of the attention; of whole channels before a block's last convolution


class UNETRPPOptions(Options):
    """The defaults are the original's: 55,700,458 parameters for a crop of 64 x 160 x 160."""

    widths: Four = Field((32, 64, 128, 256), description="channels of the four levels")
    depths: Four = Field((3, 3, 3, 3), description="blocks in each level, of encoder and decoder alike")
    projected: Four = Field((64, 64, 64, 32), description="tokens that the spatial attention projects a level to")
    projected_up: PositiveInt = Field(64, description="the same in the decoder")
    heads: PositiveInt = Field(4, description="heads of the attention")
    width: PositiveInt = Field(16, description="channels at full resolution")
    patch: Three = Field((2, 4, 4), description="voxels of the crop for each token of the first level (D, H, W)")
    original_order: bool = Field(False, description="keep the original's fault in the order of the spatial attention")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(width % self.heads or width % 2 for width in self.widths):
            raise ValueError("heads, and 2, must divide all widths")
        if any(coarse % fine for fine, coarse in pairwise(self.widths)):
            raise ValueError("each of the widths must divide the next")
        return self


class UNETRPP(nn.Module):
    """UNETR++ in the version for CT organs, for any crop, without deep supervision.

    Raises UnsupportedError for a crop whose sides are not multiples of eight patches, or all eight patches.
    """

    def __init__(self, size: Size, channels: int, options: UNETRPPOptions) -> None:
        super().__init__()
        d, h, w = options.patch
        require_crop(size, (8 * d, 8 * h, 8 * w), "unetrpp", several=True)
        widths, patch = options.widths, options.patch
        tokens = [math.prod(divided(size, (d * 2**i, h * 2**i, w * 2**i))) for i in range(LEVELS)]
        self.downs = nn.ModuleList([_down(channels, widths[0], patch, groups=channels)])
        self.downs.extend(_down(widths[i], widths[i + 1], (2, 2, 2), groups=widths[i]) for i in range(LEVELS - 1))
        self.stages = nn.ModuleList(
            _stage(options, level, tokens[level], options.projected[level]) for level in range(LEVELS)
        )
        self.ups = nn.ModuleList(_up(widths[i + 1], widths[i], (2, 2, 2)) for i in range(LEVELS - 1))
        self.up_stages = nn.ModuleList(
            _stage(options, level, tokens[level], options.projected_up) for level in range(LEVELS - 1)
        )
        self.last_up = _up(widths[0], options.width, patch)
        self.skip = UnetResBlock(3, channels, options.width, 3, 1, "instance")
        self.last = UnetResBlock(3, options.width, options.width, 3, 1, "instance")
        self.head = nn.Conv3d(options.width, CLASSES, 1)

    def forward(self, crops_BCDHW: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 2, D, H, W) logits."""
        x, maps = crops_BCDHW, []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
            maps.append(x)
        for level in reversed(range(LEVELS - 1)):
            x = self.up_stages[level](self.ups[level](x) + maps[level])
        return self.head(self.last(self.last_up(x) + self.skip(crops_BCDHW)))


class PairedBlock(nn.Module):
    """Paired attention over the tokens of a map, then convolutions, each with a residual connection."""

    def __init__(self, channels: int, tokens: int, projected: int, heads: int, original_order: bool) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = PairedAttention(channels, tokens, projected, heads, original_order)
        self.scale = nn.Parameter(torch.full((channels,), SCALE))
        self.convolutions = nn.Sequential(
            UnetResBlock(3, channels, channels, 3, 1, "batch"),
            nn.Dropout3d(CHANNEL_DROPOUT),
            nn.Conv3d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, h, w) -> the same shape."""
        x_BNC = x.flatten(2).transpose(1, 2) + self.positions
        x_BNC = x_BNC + self.scale * self.attention(self.norm(x_BNC))
        x = x_BNC.transpose(1, 2).reshape(x.shape)
        return x + self.convolutions(x)


class PairedAttention(nn.Module):
    """Channels attend to channels and tokens to P projected tokens, with shared queries and keys.

    `original_order` reshapes the spatial output (h, N, c) into rows of C as if it were (c, h, N), as UNETR++'s code
    does: a token then gets values of other tokens.
    """

    def __init__(self, channels: int, tokens: int, projected: int, heads: int, original_order: bool) -> None:
        super().__init__()
        self.heads, self.original_order = heads, original_order
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.project = nn.Linear(tokens, projected)  # of keys and of values
        self.temperature_channels = nn.Parameter(torch.ones(heads, 1, 1))
        self.temperature_space = nn.Parameter(torch.ones(heads, 1, 1))
        self.out_space, self.out_channels = nn.Linear(channels, channels // 2), nn.Linear(channels, channels // 2)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C): half of it from each attention."""
        parts_BhcN = self.qkvv(x_BNC).unflatten(-1, (4, self.heads, -1)).permute(2, 0, 3, 4, 1)
        queries, keys, over_channels, over_space = parts_BhcN
        keys_BhcP, values_BhcP = self.project(keys), self.project(over_space)
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)

        channels_Bhcc = queries @ keys.transpose(-2, -1) * self.temperature_channels
        out_BhcN = self.dropout(channels_Bhcc.softmax(-1)) @ over_channels
        space_BhNP = queries.transpose(-2, -1) @ keys_BhcP * self.temperature_space
        out_BhNc = self.dropout(space_BhNP.softmax(-1)) @ values_BhcP.transpose(-2, -1)

        by_channels = out_BhcN.permute(0, 3, 1, 2).reshape(x_BNC.shape)
        order = (0, 3, 1, 2) if self.original_order else (0, 2, 1, 3)
        by_space = out_BhNc.permute(order).reshape(x_BNC.shape)
        return torch.cat([self.out_space(by_space), self.out_channels(by_channels)], -1)


def _stage(options: UNETRPPOptions, level: int, tokens: int, projected: int) -> nn.Sequential:
    width, heads = options.widths[level], options.heads
    return nn.Sequential(
        *(PairedBlock(width, tokens, projected, heads, options.original_order) for _ in range(options.depths[level]))
    )


def _down(given: int, made: int, step: Size, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(given, made, step, step, bias=False), nn.GroupNorm(groups, made))


def _up(given: int, made: int, step: Size) -> nn.Module:
    return nn.ConvTranspose3d(given, made, step, step, bias=False)


NETWORKS = {"unetrpp": NetworkKind(UNETRPPOptions, UNETRPP)}

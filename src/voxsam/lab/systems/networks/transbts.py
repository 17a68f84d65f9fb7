"""TransBTS (Wang et al., MICCAI 2021): a convolutional encoder, a transformer over its deepest map, a decoder.

B batch, C channels, D H W crop, N tokens (D/8 * H/8 * W/8), E width of the transformer.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from voxsam.lab.systems.networks import CLASSES, NetworkKind, Options, Residual, Size, cube, divided, require_crop

STEP = 8  # voxels of the crop for each token of the transformer, on each axis
FIRST_DROPOUT = 0.2  # channel dropout after the first convolution


class TransBTSOptions(Options):
    """The defaults are the original's: 32,263,826 parameters for a crop of 64 x 160 x 160."""

    width: PositiveInt = Field(16, multiple_of=8, description="channels at full resolution; they double at each level")
    embedding: PositiveInt = Field(512, description="width of the transformer")
    mlp: PositiveInt = Field(4096, description="hidden width of the transformer's MLPs")
    heads: PositiveInt = Field(8, description="heads of the transformer's attention")
    layers: PositiveInt = Field(4, description="layers of the transformer")
    deep_blocks: NonNegativeInt = Field(4, description="residual blocks of the encoder at an eighth of the resolution")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the transformer")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.embedding % self.heads:
            raise ValueError("heads must divide embedding")
        return self


class TransBTS(nn.Module):
    """TransBTS without the original's unused tensors (`linear_encoding`, `pre_head_ln`) and its softmax.

    Raises UnsupportedError for a crop whose sides are not multiples of 8, or all 8.
    """

    def __init__(self, size: Size, channels: int, options: TransBTSOptions) -> None:
        super().__init__()
        require_crop(size, cube(STEP), "transbts", several=True)
        widths = [options.width * factor for factor in (1, 2, 4, 8)]
        blocks = (1, 2, 2, options.deep_blocks)
        self.stem = nn.Sequential(nn.Conv3d(channels, widths[0], 3, padding=1), nn.Dropout3d(FIRST_DROPOUT))
        self.levels = nn.ModuleList(
            nn.Sequential(*(_pre_activated(width) for _ in range(n))) for width, n in zip(widths, blocks, strict=True)
        )
        self.downs = nn.ModuleList(nn.Conv3d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths))
        self.embed = nn.Sequential(
            nn.BatchNorm3d(widths[3]), nn.ReLU(inplace=True), nn.Conv3d(widths[3], options.embedding, 3, padding=1)
        )
        self.transformer = Transformer(math.prod(divided(size, cube(STEP))), options)
        self.join = nn.Sequential(_convolutions(options.embedding, widths[3]), Residual(_convolutions(widths[3])))
        self.ups = nn.ModuleList(UpBlock(coarse) for coarse in (widths[3], widths[2], widths[1]))
        self.head = nn.Conv3d(widths[0], CLASSES, 1)

    def forward(self, crops_BCDHW: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 2, D, H, W) logits."""
        x, skips = self.levels[0](self.stem(crops_BCDHW)), []
        for down, level in zip(self.downs, self.levels[1:], strict=True):
            skips.append(x)
            x = level(down(x))
        x_BEdhw = self.embed(x)
        x_BNE = self.transformer(x_BEdhw.flatten(2).transpose(1, 2))
        x = self.join(x_BNE.transpose(1, 2).reshape(x_BEdhw.shape))
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
        return self.head(x)


class Transformer(nn.Module):
    """A pre-norm transformer on tokens with learned positions, without a final normalisation."""

    def __init__(self, tokens: int, options: TransBTSOptions) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, tokens, options.embedding))
        self.dropout = nn.Dropout(options.dropout)
        width, drop, layers = options.embedding, options.dropout, []
        for _ in range(options.layers):
            attention = SelfAttention(width, options.heads, drop)
            mlp = [nn.Linear(width, options.mlp), nn.GELU(), nn.Dropout(drop), nn.Linear(options.mlp, width)]
            dropouts = nn.Dropout(drop), nn.Dropout(drop)  # two, as in the original
            attended = Residual(nn.LayerNorm(width), attention, *dropouts)
            layers.append(nn.Sequential(attended, Residual(nn.LayerNorm(width), *mlp, nn.Dropout(drop))))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BNE: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        return self.layers(self.dropout(x_BNE + self.positions))


class SelfAttention(nn.Module):
    """Full self-attention; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        queries, keys, values = self.qkv(x_BNE).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        return self.proj(
            F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop).transpose(1, 2).flatten(2)
        )


class UpBlock(nn.Module):
    """Upsampling by 2 at half the channels, merged with the encoder's map of that resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow, self.up = nn.Conv3d(channels, half, 1), nn.ConvTranspose3d(half, half, 2, stride=2)
        self.merge, self.block = nn.Conv3d(channels, half, 1), Residual(_convolutions(half))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, D, H, W) and (B, C/2, 2D, 2H, 2W) -> (B, C/2, 2D, 2H, 2W)."""
        return self.block(self.merge(torch.cat([skip, self.up(self.narrow(x))], 1)))


def _pre_activated(channels: int) -> Residual:
    def half() -> list[nn.Module]:
        return [nn.GroupNorm(8, channels), nn.ReLU(inplace=True), nn.Conv3d(channels, channels, 3, padding=1)]

    return Residual(*half(), *half())


def _convolutions(given: int, made: int | None = None) -> nn.Sequential:
    made = made or given

    def half(channels: int) -> list[nn.Module]:
        return [nn.Conv3d(channels, made, 3, padding=1), nn.BatchNorm3d(made), nn.ReLU(inplace=True)]

    return nn.Sequential(*half(given), *half(made))


NETWORKS = {"transbts": NetworkKind(TransBTSOptions, TransBTS)}

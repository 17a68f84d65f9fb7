"""nnFormer (Zhou et al., IEEE TIP 2023): attention in shifted windows in encoder, skip connections and decoder.

B batch, C channels, D H W crop; inside, maps are (B, d, h, w, C), channels last.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voxsam.lab.systems.networks.parts import CLASSES, Options, Size, divided, halved, require_crop
from voxsam.lab.systems.networks.window_attention import WindowBlock

DROP_PATH = 0.2  # share of the samples for which the last block is left out in training; it rises linearly from 0
LEVELS = 4


class NnFormerOptions(Options):
    """The defaults are those of the original for tumours: 149,486,426 parameters for a crop of 64 x 160 x 160."""

    width: PositiveInt = Field(192, multiple_of=2, description="channels of the first stage; they double at each stage")
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (2, 2, 2, 2), description="blocks in each of the four stages"
    )
    heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (6, 12, 24, 48), description="heads of the attention in each stage"
    )
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        (2, 4, 4), description="voxels of the crop for each token (D, H, W), even numbers"
    )
    windows: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (8, 8, 6, 4), description="side of the attention windows in each stage, tokens"
    )
    original_index: bool = Field(False, description="keep the original's fault in the index of relative positions")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(self.width * 2**i % heads for i, heads in enumerate(self.heads)):
            raise ValueError("heads must divide the channels of their stage")
        if any(side % 2 for side in self.patch):
            raise ValueError("even numbers in patch")
        return self


class NnFormer(nn.Module):
    """The version that the paper's baselines ran: without deep supervision.

    Raises UnsupportedError for a crop whose sides are no multiples of eight patches.
    """

    def __init__(self, size: Size, channels: int, options: NnFormerOptions) -> None:
        super().__init__()
        d, h, w = options.patch
        require_crop(size, (8 * d, 8 * h, 8 * w), "nnformer")
        grids = [divided(size, options.patch)]
        for _ in range(LEVELS - 1):
            grids.append(halved(grids[-1]))
        self.embed = PatchEmbedding(channels, options.width, options.patch)
        paths = _spread(DROP_PATH, options.depths)
        self.stages = nn.ModuleList(Stage(options, level, grids[level], paths[level]) for level in range(LEVELS))
        paths = _spread(DROP_PATH, options.depths[2::-1])[::-1]
        self.decoder = nn.ModuleList(UpStage(options, level, grids[level], paths[level]) for level in range(LEVELS - 1))
        self.head = nn.ConvTranspose3d(options.width, CLASSES, options.patch, stride=options.patch)

    def forward(self, crops_BCDHW: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 2, D, H, W) logits."""
        x, maps = self.embed(crops_BCDHW), []
        for stage in self.stages:
            seen, x = stage(x)
            maps.append(seen)
        x = maps.pop()
        for up, skip in zip(reversed(self.decoder), reversed(maps), strict=True):  # type: ignore[call-overload]
            x = up(x, skip)
        return self.head(x.movedim(-1, 1))


class PatchEmbedding(nn.Module):
    """Four convolutions instead of the usual one: the crop -> tokens (B, d, h, w, C)."""

    def __init__(self, channels: int, width: int, patch: Size) -> None:
        super().__init__()
        half, rest = width // 2, divided(patch, (2, 2, 2))
        steps = ((channels, half, 2), (half, half, 1), (half, width, rest), (width, width, 1))
        self.convolutions = nn.ModuleList(nn.Conv3d(a, b, 3, stride, padding=1) for a, b, stride in steps)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b, _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, d, h, w, C)."""
        last = len(self.norms) - 1
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution(x).movedim(1, -1)
            x = norm(F.gelu(x) if number < last else x)
            x = x.movedim(-1, 1)
        return x.movedim(1, -1)


class Stage(nn.Module):
    """Blocks whose windows are shifted every second time; what is seen of it, and half the resolution for the next."""

    def __init__(self, options: NnFormerOptions, level: int, size: Size, paths: list[float]) -> None:
        super().__init__()
        channels = options.width * 2**level
        self.blocks = nn.Sequential(
            *(_block(options, level, size, path, shifted=bool(i % 2)) for i, path in enumerate(paths))
        )
        self.norm = nn.LayerNorm(channels)
        self.down_norm = self.down = None
        if level < LEVELS - 1:
            self.down_norm = nn.LayerNorm(channels)
            self.down = nn.Conv3d(channels, 2 * channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d, h, w, C) -> the same, normalised; and (B, d/2, h/2, w/2, 2C), or the same after the last stage."""
        x = self.blocks(x)
        seen = self.norm(x)
        if self.down is None or self.down_norm is None:
            return seen, x
        return seen, self.down(self.down_norm(F.gelu(x)).movedim(-1, 1)).movedim(1, -1)


class UpStage(nn.Module):
    """Twice the resolution, which then asks the encoder's map, and blocks of which every second one is shifted."""

    def __init__(self, options: NnFormerOptions, level: int, size: Size, paths: list[float]) -> None:
        super().__init__()
        channels = options.width * 2**level
        self.norm = nn.LayerNorm(2 * channels)
        self.up = nn.ConvTranspose3d(2 * channels, channels, 2, stride=2)
        self.ask = _block(options, level, size, paths[0], across=True)
        self.blocks = nn.Sequential(*(_block(options, level, size, path, shifted=True) for path in paths[1:]))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, d/2, h/2, w/2, 2C) and (B, d, h, w, C) -> (B, d, h, w, C)."""
        up = self.up(self.norm(x).movedim(-1, 1)).movedim(1, -1)
        return self.blocks(self.ask(up + skip, up, skip))


def _block(options: NnFormerOptions, level: int, size: Size, path: float, **kind: bool) -> WindowBlock:
    channels, heads, side = options.width * 2**level, options.heads[level], options.windows[level]
    return WindowBlock(channels, heads, size, side, drop_path=path, original_index=options.original_index, **kind)


def _spread(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates from 0 to `last` for the blocks of each stage."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").tolist()
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


OPTIONS, build = NnFormerOptions, NnFormer

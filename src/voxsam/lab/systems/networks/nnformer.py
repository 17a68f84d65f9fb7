"""nnFormer (Zhou et al., IEEE TIP 2023): attention in shifted windows in encoder, skip connections and decoder."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from monai.networks.layers import DropPath
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voxsam.lab.systems.networks import CLASSES, Four, NetworkKind, Options, Size, Three, divided, halved, require_crop

HIDDEN = 4  # width of a block's MLP, times its channels
BLOCKED = -100.0  # added to the attention between tokens that are neighbours only by the cyclic shift


class RelativePositions(nn.Module):
    """A learned bias for each head and each difference of positions within a window."""

    def __init__(self, side: int, heads: int, original_index: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(nn.init.normal_(torch.empty((2 * side - 1) ** 3, heads), std=0.02))
        self.register_buffer("rows", relative_rows(side, original_index), persistent=False)

    def forward(self) -> Tensor:
        """The biases (heads, N, N)."""
        rows_NN = self.rows
        assert isinstance(rows_NN, Tensor)
        return self.table[rows_NN].permute(2, 0, 1)


def relative_rows(side: int, original_index: bool = False) -> Tensor:
    """(N, N): the table row for each pair of tokens in a window; every difference of positions has its own row.

    `original_index` multiplies the difference along depth by 3S - 1 instead of (2S - 1)^2, as nnFormer's code does:
    distinct differences then share rows, and of 3,375 rows for S = 8 only 547 are used.
    """
    along = torch.arange(side)
    places_N3 = torch.cartesian_prod(along, along, along)
    difference_NN3 = places_N3[:, None] - places_N3[None] + side - 1
    row, plane = 2 * side - 1, 3 * side - 1 if original_index else (2 * side - 1) ** 2
    return (difference_NN3 * torch.tensor([plane, row, 1])).sum(-1)


class WindowBlock(nn.Module):
    """Attention in windows, then an MLP, each on normalised tokens and with a residual connection.

    With `across`, the queries are a second map without a projection, and keys and values come from a third (nnFormer's
    skip attention). A window never exceeds the smallest side of the grid; if it equals that side, windows are not
    shifted. Grids that windows do not divide are padded with zeros, which take part as tokens.
    """

    def __init__(
        self, channels: int, heads: int, size: Size, side: int, *, shifted: bool = False, across: bool = False,
        drop_path: float = 0.0, original_index: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.side, self.heads = size, min(side, *size), heads
        self.shift = side // 2 if shifted and min(size) > side else 0
        self.across = across
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, (2 if across else 3) * channels)
        self.positions = RelativePositions(self.side, heads, original_index)
        self.proj = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, HIDDEN * channels), nn.GELU(), nn.Linear(HIDDEN * channels, channels)
        )
        self.drop_path = DropPath(drop_path)
        regions = shift_regions(self._padded(), self.side, self.shift) if self.shift else None
        self.register_buffer("regions", regions, persistent=False)

    def forward(self, x: Tensor, queries: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """(B, D, H, W, C) each -> (B, D, H, W, C). `queries` and `keys` are given if and only if `across`."""
        assert self.across == (queries is not None and keys is not None)
        given = self.qkv(self._windows(self.norm1(x if keys is None else keys)))
        asked = None if queries is None else self._windows(self.norm1(queries))
        x = x + self.drop_path(self._back(self.proj(self._attend(given, asked)), x.shape))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, given_nNC: Tensor, asked_nNC: Tensor | None) -> Tensor:
        """(n, N, 3C) queries, keys and values, or (n, N, 2C) and separate queries (n, N, C) -> (n, N, C)."""
        parts = given_nNC.unflatten(-1, (2 if self.across else 3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries = parts[0] if asked_nNC is None else asked_nNC.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        bias = self.positions()[None]
        if self.shift:
            regions_nN = self.regions
            assert isinstance(regions_nN, Tensor)
            apart_nNN = regions_nN[:, :, None] != regions_nN[:, None, :]
            bias = (bias + BLOCKED * apart_nNN[:, None]).repeat(len(queries) // len(regions_nN), 1, 1, 1)
        out = F.scaled_dot_product_attention(queries, parts[-2], parts[-1], attn_mask=bias.to(queries.dtype))
        return out.transpose(1, 2).flatten(2)

    def _padded(self) -> Size:
        d, h, w = (n + -n % self.side for n in self.size)
        return d, h, w

    def _windows(self, x_BDHWC: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B * windows, N, C)."""
        pads = [(0, padded - n) for n, padded in zip(self.size, self._padded(), strict=True)]
        x = F.pad(x_BDHWC, (0, 0, *pads[2], *pads[1], *pads[0]))
        if self.shift:
            x = x.roll((-self.shift,) * 3, (1, 2, 3))
        return partition(x, self.side)

    def _back(self, windows_nNC: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `_windows`, to a map of `shape`."""
        side, (d, h, w) = self.side, (n // self.side for n in self._padded())
        x = windows_nNC.view(shape[0], d, h, w, side, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(shape[0], d * side, h * side, w * side, -1)
        if self.shift:
            x = x.roll((self.shift,) * 3, (1, 2, 3))
        return x[:, : shape[1], : shape[2], : shape[3]]


def partition(x_BDHWC: Tensor, side: int) -> Tensor:
    """(B, D, H, W, C), whose sides `side` divides, -> (B * windows, side^3, C)."""
    b, d, h, w, c = x_BDHWC.shape
    x = x_BDHWC.view(b, d // side, side, h // side, side, w // side, side, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, side**3, c)


def shift_regions(size: Size, side: int, shift: int) -> Tensor:
    """(windows, N): the region of each token of a shifted window; a window's regions are not adjacent in the scan.

    On each axis, the tokens that the roll moved from the start to the end are a region of their own in the last window.
    """
    regions = torch.zeros(size)
    for axis, n in enumerate(size):
        along = torch.zeros(n)
        along[n - side : n - shift], along[n - shift :] = 1, 2
        regions = 3 * regions + along.view([-1 if i == axis else 1 for i in range(3)])
    return partition(regions[None, ..., None], side)[..., 0]


DROP_PATH = 0.2  # fraction of training samples that skip the last block; it rises linearly from 0 over the blocks
LEVELS = 4


class NnFormerOptions(Options):
    """The defaults are those of the original for tumours: 149,486,426 parameters for a crop of 64 x 160 x 160."""

    width: PositiveInt = Field(192, multiple_of=2, description="channels of the first stage; they double at each stage")
    depths: Four = Field((2, 2, 2, 2), description="blocks in each of the four stages")
    heads: Four = Field((6, 12, 24, 48), description="heads of the attention in each stage")
    patch: Three = Field((2, 4, 4), description="voxels of the crop for each token (D, H, W), even numbers")
    windows: Four = Field((8, 8, 6, 4), description="side of the attention windows in each stage, tokens")
    original_index: bool = Field(False, description="keep the original's fault in the index of relative positions")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(self.width * 2**i % heads for i, heads in enumerate(self.heads)):
            raise ValueError("heads must divide the channels of their stage")
        if any(side % 2 for side in self.patch):
            raise ValueError("even numbers in patch")
        return self


class NnFormer(nn.Module):
    """nnFormer in the version of the paper's baselines: without deep supervision.

    Raises UnsupportedError for a crop whose sides are not multiples of eight patches.
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
    """Patch embedding by four convolutions instead of the usual one."""

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
    """Blocks with every second one shifted; outputs the normalised map, and a map of half the resolution."""

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
        """(B, d, h, w, C) -> the same shape, normalised; and (B, d/2, h/2, w/2, 2C), or (B, d, h, w, C) at the last."""
        x = self.blocks(x)
        seen = self.norm(x)
        if self.down is None or self.down_norm is None:
            return seen, x
        return seen, self.down(self.down_norm(F.gelu(x)).movedim(-1, 1)).movedim(1, -1)


class UpStage(nn.Module):
    """Upsampling by 2, skip attention over the encoder's map, then blocks with shifted windows."""

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
    """Linear rates from 0 to `last` for the blocks of each stage."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").tolist()
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


NETWORKS = {"nnformer": NetworkKind(NnFormerOptions, NnFormer)}

"""Attention inside windows of a 3D grid of tokens, with learned relative positions: the blocks of nnFormer.

B batch, D H W grid of tokens, C channels, S window side, N tokens of a window (S^3), n windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers import DropPath
from torch import Tensor, nn

from voxsam.lab.systems.networks.parts import Size

HIDDEN = 4  # width of a block's MLP, times its channels
BLOCKED = -100.0  # added to the attention between tokens that only the cyclic shift brought together


class RelativePositions(nn.Module):
    """A learned bias for each head and each difference of positions within a window."""

    def __init__(self, side: int, heads: int, original_index: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(nn.init.normal_(torch.empty((2 * side - 1) ** 3, heads), std=0.02))
        self.register_buffer("rows", relative_rows(side, original_index), persistent=False)

    def forward(self) -> Tensor:
        """(heads, N, N)."""
        rows_NN = self.rows
        assert isinstance(rows_NN, Tensor)
        return self.table[rows_NN].permute(2, 0, 1)


def relative_rows(side: int, original_index: bool = False) -> Tensor:
    """(N, N): the row of the table for each pair of a window's tokens; every difference of positions has its own.

    `original_index` multiplies the difference along depth by 3S - 1 where (2S - 1)^2 is meant, as nnFormer's code does:
    then different differences share rows, and of 3,375 rows for S = 8 no more than 547 are used.
    """
    along = torch.arange(side)
    places_N3 = torch.cartesian_prod(along, along, along)
    difference_NN3 = places_N3[:, None] - places_N3[None] + side - 1
    row, plane = 2 * side - 1, 3 * side - 1 if original_index else (2 * side - 1) ** 2
    return (difference_NN3 * torch.tensor([plane, row, 1])).sum(-1)


class WindowBlock(nn.Module):
    """Attention in windows, then an MLP, each on normalised tokens and added to what came in.

    With `across`, the queries are not made from the tokens: they are a second map as it is, and keys and values come
    from a third (nnFormer's skip attention). A window never exceeds the smallest side of the grid; where it reaches it,
    windows are not shifted. Grids that windows do not divide are padded with zeros, which take part as tokens.
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
        """(B, D, H, W, C) each -> (B, D, H, W, C). `queries` and `keys` are given if and only if it is `across`."""
        assert self.across == (queries is not None and keys is not None)
        given = self.qkv(self._windows(self.norm1(x if keys is None else keys)))
        asked = None if queries is None else self._windows(self.norm1(queries))
        x = x + self.drop_path(self._back(self.proj(self._attend(given, asked)), x.shape))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, given_nNC: Tensor, asked_nNC: Tensor | None) -> Tensor:
        """(n, N, C) keys and values, with the queries before them or apart -> (n, N, C)."""
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
        """The reverse of `_windows`, to a map of `shape`."""
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
    """(windows, N): in which region each token of a shifted window lies; regions are parted in the scan.

    On each axis, what the roll brought to the end from the beginning is a region of its own, in the last window.
    """
    regions = torch.zeros(size)
    for axis, n in enumerate(size):
        along = torch.zeros(n)
        along[n - side : n - shift], along[n - shift :] = 1, 2
        regions = 3 * regions + along.view([-1 if i == axis else 1 for i in range(3)])
    return partition(regions[None, ..., None], side)[..., 0]

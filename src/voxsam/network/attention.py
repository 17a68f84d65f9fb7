"""Window attention with decomposed relative positions in 3D, and which tokens of a grid share a window.

n windows, t tokens per window (a box of d, h, w), c width, h heads, e width of a head, D H W token grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE_LOGIT = 64.0  # two sides of a wrap differ by 2 * 64 in their logit: e^-128 is 0 in float32 (released: e^-100)
KERNEL_MULTIPLE = 16  # fused kernels prefer head widths that fill whole vector registers


@dataclass(frozen=True)
class Windows:
    """Index table of n windows, each a box of t tokens, `window` = (d, h, w): one table per grid and shift.

    `index` (n, t): flat token index in the (D, H, W) grid, any valid one for padding. `padding` (n, t) bool, None if
    the grid needs none. `sides` (n, t, 3): +1 or -1 on an axis where the window spans the wrap of a shifted grid, 0
    where it does not; None for a grid that is not shifted. `inverse` (D * H * W,): where each token is in `index`.
    """

    index: Tensor
    padding: Tensor | None
    sides: Tensor | None
    inverse: Tensor
    window: tuple[int, int, int]


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a table made while clicking must also serve training
def windows(grid: tuple[int, int, int], window: tuple[int, int, int], shifted: bool, device: torch.device) -> Windows:
    """The windows of a token grid (D, H, W); `shifted` moves them by half a window (Swin's cyclic roll).

    The roll, the zero padding of grids that are not multiples of the window, and the partition are all in the table:
    gathering tokens by it is a single copy.
    """
    axes = [_axis(length, side, side // 2 if shifted else 0) for length, side in zip(grid, window, strict=True)]
    (pos_d, side_d), (pos_h, side_h), (pos_w, side_w) = axes

    def spread(d: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(d), len(h), len(w), *window)
        parts = (d[:, None, None, :, None, None], h[None, :, None, None, :, None], w[None, None, :, None, None, :])
        full = [p.expand(shape).reshape(-1, math.prod(window)) for p in parts]
        return full[0], full[1], full[2]

    d, h, w = spread(pos_d, pos_h, pos_w)
    outside = (d >= grid[0]) | (h >= grid[1]) | (w >= grid[2])
    index = torch.where(outside, 0, (d * grid[1] + h) * grid[2] + w)
    inverse = torch.empty(math.prod(grid), dtype=torch.long)
    inside = (~outside).flatten()
    inverse[index.flatten()[inside]] = torch.arange(index.numel())[inside]
    sides = torch.stack(spread(side_d, side_h, side_w), -1).float().to(device) if shifted else None
    padding = outside.to(device) if bool(outside.any()) else None
    return Windows(index.to(device), padding, sides, inverse.to(device), window)


def _axis(length: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """(windows, w) positions in the padded, rolled axis, and their sides."""
    padded = -(-length // window) * window
    position = ((torch.arange(padded) + shift) % padded).reshape(-1, window)
    wraps = position[:, :1] > position[:, -1:]
    return position, torch.where(position < shift, -1, 1) * wraps


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _key_code(window: tuple[int, int, int], axes: str, device: torch.device) -> Tensor:
    """(t, r) one-hot codes of each token's position in a window, concatenated over the axes."""
    position = torch.stack(torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")).flatten(1)
    codes = [F.one_hot(place, side) for place, side, axis in zip(position, window, "dhw", strict=True) if axis in axes]
    return torch.cat(codes, 1).float().to(device)


class WindowAttention(nn.Module):
    """SAM's multi-head attention inside windows of tokens (docs/released.md, "Image encoder", 4).

    logit(q, k) = scale q.k + gain (q.Rd[dd] + q.Rh[dh] + q.Rw[dw]), with an unscaled q in the second part and
    d = position of q - position of k. For one query the second part takes only as many different values as the window
    has places along d, h and w, so these are appended to the query as extra channels, and the one-hot codes of its
    position to the key: any fused attention kernel will do, and no t x t bias is stored. The mask of shifted windows is
    3 more channels: the side of the wrap, +-8 each.

    With `axes` "hw" it is SAM's own attention: no table along depth, no gain.
    """

    def __init__(self, width: int, heads: int, relative_rows: int, axes: str = "dhw") -> None:
        super().__init__()
        self.heads, self.axes = heads, axes
        head = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_d = nn.Parameter(torch.zeros(relative_rows, head)) if "d" in axes else None
        self.rel_pos_h = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_w = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_gain = nn.Parameter(torch.ones(())) if "d" in axes else None

    def relative_tables(self, window: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """For each of `axes` (places, places, e): the table row of query position (dim 0) and key position (dim 1)."""
        return tuple(
            self._relative_table(getattr(self, f"rel_pos_{axis}"), places)
            for axis, places in zip("dhw", window, strict=True)
            if axis in self.axes
        )

    def _relative_table(self, table: Tensor, places: int) -> Tensor:
        rows = F.interpolate(table.T[None], size=2 * places - 1, mode="linear")[0].T
        offset = torch.arange(places, device=rows.device)
        rows = rows[offset[:, None] - offset[None, :] + places - 1]
        return rows if self.rel_pos_gain is None else self.rel_pos_gain * rows

    def _relative_logits(self, q_nhte: Tensor, window: tuple[int, int, int], tables: tuple[Tensor, ...]) -> Tensor:
        """(n, h, t, r): for each query and axis, its logit towards each of the key positions, r in all."""
        n, h, t, e = q_nhte.shape
        q = q_nhte.reshape(n, h, *window, e)
        found = [
            torch.einsum(f"nodhwe,{axis}je->nodhwj", q, table.to(q.dtype))
            for axis, table in zip(self.axes, tables, strict=True)
        ]
        return torch.cat(found, -1).reshape(n, h, t, -1)

    def forward(
        self, qkv_ntc: Tensor, sides_nt3: Tensor | None, window: tuple[int, int, int], tables: tuple[Tensor, ...]
    ) -> Tensor:
        """(n, t, 3 c) query, key and value of n windows -> (n, t, c) attention of each token.

        `sides_nt3` from Windows.sides, None if all are 0; `tables` from `relative_tables`. The block applies `qkv`
        before and `proj` after.
        """
        n, t, c = qkv_ntc.shape[0], qkv_ntc.shape[1], qkv_ntc.shape[2] // 3
        q, k, v = qkv_ntc.reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        relative = self._relative_logits(q, window, tables)
        code = _key_code(window, self.axes, k.device).to(k.dtype).expand(n, -1, -1)
        if sides_nt3 is not None:
            sides = (sides_nt3 * SIDE_LOGIT**0.5).to(q.dtype)
            relative = torch.cat([relative, sides[:, None].expand(-1, self.heads, -1, -1)], -1)
            code = torch.cat([code, sides], -1)
        return self.attend(q, k, v, relative, code).flatten(2)

    def attend(self, q_nhte: Tensor, k_nhte: Tensor, v_nhte: Tensor, relative_nhtr: Tensor, code_ntr: Tensor) -> Tensor:
        """(n, t, h, e) by torch's fused attention: `relative` and `code` are r extra channels of query and key."""
        e, r = q_nhte.shape[-1], relative_nhtr.shape[-1]
        spare = -(e + r) % KERNEL_MULTIPLE
        out = F.scaled_dot_product_attention(
            F.pad(torch.cat([q_nhte * e**-0.5, relative_nhtr], -1), (0, spare)),
            F.pad(torch.cat([k_nhte, code_ntr[:, None].expand(-1, q_nhte.shape[1], -1, -1)], -1), (0, spare)),
            F.pad(v_nhte, (0, r + spare)),
            scale=1.0,
        )
        return out[..., :e].transpose(1, 2)

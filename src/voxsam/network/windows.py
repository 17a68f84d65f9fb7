"""Attention windows: which tokens of a grid attend to one another, as one index table per grid and shift.

The cyclic roll, the zero padding of grids that are no multiple of the window, and the partition into windows are all
folded into the table: gathering tokens by it is a single copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SIDE_LOGIT = 64.0  # two sides of a wrap differ by 2 * 64 in their logit: e^-128 is 0 in float32 (released: e^-100)


@dataclass(frozen=True)
class Windows:
    """For n windows of t tokens, those of a box of `window` = (d, h, w).

    `index` (n, t): flat token index in the (D, H, W) grid, any valid one for padding. `padding` (n, t) bool or None
    if the grid needs none. `sides` (n, t, 3): +1 or -1 on an axis where the window spans the wrap of a shifted grid,
    0 where it does not. `inverse` (D * H * W,): where each token stands in `index`, flattened.
    """

    index: Tensor
    padding: Tensor | None
    sides: Tensor
    inverse: Tensor
    shifted: bool
    window: tuple[int, int, int]


def _axis(length: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """(windows, w) positions in the padded, rolled axis, and their sides."""
    padded = -(-length // window) * window
    position = ((torch.arange(padded) + shift) % padded).reshape(-1, window)
    wraps = position[:, :1] > position[:, -1:]
    sides = torch.where(position < shift, -1, 1) * wraps
    return position, sides


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a table made while clicking must also serve training
def windows(grid: tuple[int, int, int], window: tuple[int, int, int], shifted: bool, device: torch.device) -> Windows:
    """The windows of a token grid (D, H, W); `shifted` moves them by half a window (Swin's cyclic roll)."""
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
    inverse = torch.empty(grid[0] * grid[1] * grid[2], dtype=torch.long)
    inside = (~outside).flatten()
    inverse[index.flatten()[inside]] = torch.arange(index.numel())[inside]
    sides = torch.stack(spread(side_d, side_h, side_w), -1).float()
    padding = outside.to(device) if bool(outside.any()) else None
    return Windows(index.to(device), padding, sides.to(device), inverse.to(device), shifted, window)

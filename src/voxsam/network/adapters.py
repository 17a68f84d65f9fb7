"""Adapters, tuned parts in each block: the hooks that they may use, the registry of designs, and the paper's own.

B batch, D H W token grid, c width of a token, m width of a bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.errors import UnsupportedError
from voxsam.extras import load_systems
from voxsam.network.sizes import ModelConfig


class BlockHook(nn.Module):
    """The places where an adapter may act in a block; this base class changes nothing and has no parameters.

    x is what the block passes on, y what attention or mlp is about to add to it; both keep their shape (B, D, H, W, c).
    `between` says whether the adapter acts between attention and the end of the block. If it does not, a block can
    finish some windows before it begins others (voxsam.kernels.block).
    """

    between = True

    def before_attention(self, x_BDHWc: Tensor) -> Tensor:
        """x at the start of the block."""
        return x_BDHWc

    def change_qkv(self, normed_ntc: Tensor, qkv_ntk: Tensor) -> Tensor:
        """Query, key and value (k = 3 c) of the tokens of some windows, from the normed tokens; may change them."""
        return qkv_ntk

    def after_attention(self, y_BDHWc: Tensor) -> Tensor:
        """What attention adds to x."""
        return y_BDHWc

    def before_mlp(self, x_BDHWc: Tensor) -> Tensor:
        """x after attention."""
        return x_BDHWc

    def after_mlp(self, y_BDHWc: Tensor) -> Tensor:
        """What the mlp adds to x."""
        return y_BDHWc

    def after_block(self, x_BDHWc: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x at the end of the block; `carried` comes from the block before, None in the first, and goes to the next."""
        return x_BDHWc, carried


class NoAdapter(BlockHook):
    """SAM's block without an adapter."""

    between = False


class GridLinear(nn.Linear):
    """A linear layer on all tokens of the grid at once, as in adapters."""


def convolve_tokens(convolution: nn.Conv3d, x_BDHWm: Tensor) -> Tensor:
    """Apply a convolution over the token grid, which keeps its shape."""
    return convolution(x_BDHWm.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class SpatialAdapter(BlockHook):
    """x + up(relu(conv(relu(down(x))))), with one more ReLU around `up` in the released profile (paper, Fig. 2).

    The convolution is depth-wise and 3 x 3 x 3.
    """

    between = False

    def __init__(self, width: int, bottleneck: int, outer_relu: bool) -> None:
        super().__init__()
        self.outer_relu = outer_relu
        self.down = GridLinear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.up = GridLinear(bottleneck, width)

    def before_attention(self, x_BDHWc: Tensor) -> Tensor:
        """x plus what the adapter adds to it."""
        hidden = F.relu(convolve_tokens(self.conv, F.relu(self.down(x_BDHWc))))
        change = self.up(hidden)
        return x_BDHWc + (F.relu(change) if self.outer_relu else change)


@dataclass(frozen=True)
class AdapterKind:
    """An adapter design: `make` gives the hook of each block (from 0); its last argument is what `shared` made for all.

    `norms`: whether both LayerNorms of each block are tuned with it, as in every row of the paper's count.
    """

    make: Callable[[ModelConfig, int, nn.Module | None], BlockHook]
    shared: Callable[[ModelConfig], nn.Module] | None = None
    norms: bool = True


# By the `adapter` of a ModelConfig; voxsam.lab.systems adds the designs that VoxSAM's own is compared with.
ADAPTERS: dict[str, AdapterKind] = {
    "none": AdapterKind(lambda config, block, shared: NoAdapter()),
    "spatial": AdapterKind(
        lambda config, block, shared: SpatialAdapter(config.width, config.adapter_width, config.adapter_relu)
    ),
}


def adapter_kind(name: str) -> AdapterKind:
    """The design of that name. Raises UnsupportedError for an unknown one."""
    if name not in ADAPTERS:
        load_systems()
    if name not in ADAPTERS:
        raise UnsupportedError(f"the adapter {name}", f"one of {', '.join(ADAPTERS)}", "check its name")
    return ADAPTERS[name]

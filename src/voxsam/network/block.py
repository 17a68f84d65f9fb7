"""One block of the image encoder: attention in windows and an mlp, with a hook for what is tuned.

B batch, D H W token grid, N = D H W, c width of a token, n windows, t tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from voxsam.kernels.linear import Precision, Product, product
from voxsam.network.adapters import BlockHook
from voxsam.network.attention import WindowAttention
from voxsam.network.sizes import ModelConfig
from voxsam.network.windows import Windows, windows

LAYER_NORM_EPS = 1e-6  # SAM's
CHUNK_TOKENS = 2048  # tokens of whole windows that go through a block together when no gradient is kept
GPU_CHUNK_TOKENS = 65536  # the same on a GPU, which wants few and large kernels: two crops of 128^3 with a stride of 4


class Products(NamedTuple):
    """What tokens are multiplied by within their windows: four linear layers, and the tables of relative positions."""

    qkv: Product
    proj: Product
    widen: Product
    narrow: Product
    tables: tuple[Tensor, ...]  # WindowAttention.relative_tables


class Part(NamedTuple):
    """Some whole windows: `padding` (n, t) and `sides` (n, t, 3) as in Windows, None where there is nothing to do."""

    padding: Tensor | None
    sides: Tensor | None
    window: tuple[int, int, int]


Inside = Callable[[Tensor, Part, Products], Tensor]  # (n, t, c) tokens of whole windows -> the same shape


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); `adapter` may act before, between and after.

    Attention and mlp never leave their window, so that whole windows go through both, one after the other; where the
    adapter acts on the grid between them, and where padding would go through the mlp of slices, attention is done for
    all windows first.
    """

    def __init__(self, config: ModelConfig, block: int, hook: BlockHook) -> None:
        super().__init__()
        c = config.width
        self.config, self.block = config, block
        self.slices = config.tokens == "slices"
        self.shifted = block % 2 == 0 and not self.slices
        self.adapter = hook
        self.norm1 = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        axes = "hw" if self.slices else "dhw"
        self.attention = WindowAttention(c, config.heads, config.relative_rows(block), axes)
        self.norm2 = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(c, config.mlp_ratio * c), nn.GELU(), nn.Linear(config.mlp_ratio * c, c))

    def forward(
        self, x_BDHWc: Tensor, precision: Precision = "float32", carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, D, H, W, c) tokens -> the same shape, and what goes on to the next block (BlockHook.after_block).

        `precision` of the products: see `product`.
        """
        x = self.adapter.before_attention(x_BDHWc, precision)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        plan = windows(grid, self.config.window_of(self.block, grid), self.shifted, x.device)
        by = self._products(x, plan.window, precision)
        if self.adapter.inside or (self.slices and plan.padding is not None):
            x = self._on_the_grid(x, plan, by, precision)
        else:
            if x is x_BDHWc and not torch.is_grad_enabled():
                x = x.clone()  # what follows is written into it
            tokens = x.flatten(1, 3)
            x = _windowed(self._within_windows, tokens, plan, by, tokens).reshape(x.shape)
        return self.adapter.after_block(x, carried, precision)

    def _products(self, x_BDHWc: Tensor, window: tuple[int, int, int], precision: Precision) -> Products:
        rows = min(CHUNK_TOKENS, x_BDHWc.numel() // (x_BDHWc.shape[0] * x_BDHWc.shape[-1]))
        linears = self.attention.qkv, self.attention.proj, self.mlp[0], self.mlp[2]
        qkv, proj, widen, narrow = (product(linear, rows, x_BDHWc, precision) for linear in linears)  # type: ignore[arg-type]
        return Products(qkv, proj, widen, narrow, self.attention.relative_tables(window))

    def _attend(self, x_ntc: Tensor, part: Part, by: Products) -> Tensor:
        """(n, t, c): what each token takes from its window, before `proj`."""
        normed = self.norm1(x_ntc)
        if part.padding is not None:
            normed = normed.masked_fill(part.padding[..., None], 0)
        qkv = self.adapter.change_qkv(normed, by.qkv(normed))
        return self.attention(qkv, part.sides, part.window, by.tables)

    def _attention_alone(self, x_ntc: Tensor, part: Part, by: Products) -> Tensor:
        return by.proj(self._attend(x_ntc, part, by)).to(x_ntc.dtype)

    def _within_windows(self, x_ntc: Tensor, part: Part, by: Products) -> Tensor:
        x_ntc = by.proj.plus(self._attend(x_ntc, part, by), x_ntc)
        return by.narrow.plus(by.widen(self.norm2(x_ntc), "gelu"), x_ntc)

    def _on_the_grid(self, x: Tensor, plan: Windows, by: Products, precision: Precision) -> Tensor:
        """The same with the hooks between attention and the block's end."""
        tokens = x.flatten(1, 3)
        y = _windowed(self._attention_alone, tokens, plan, by, torch.empty_like(tokens)).reshape(x.shape)
        x = x + self.adapter.after_attention(y, precision)
        x = self.adapter.before_mlp(x, precision)
        y = by.narrow(by.widen(self.norm2(x), "gelu")).to(x.dtype)
        return x + self.adapter.after_mlp(y, precision)


def _windowed(inside: Inside, tokens_BNc: Tensor, plan: Windows, by: Products, into: Tensor) -> Tensor:
    """`inside` for all windows -> (B, N, c). Without gradients it may be written `into`, which may be the tokens."""
    few = len(tokens_BNc) * plan.index.numel() <= GPU_CHUNK_TOKENS
    if torch.is_grad_enabled() or (few and _on_gpu(tokens_BNc.device)):
        return _all_at_once(inside, tokens_BNc, plan, by)
    for tokens, out in zip(tokens_BNc, into, strict=True):
        _in_chunks(inside, tokens, plan, by, out)
    return into


def _on_gpu(device: torch.device) -> bool:
    return device.type in ("cuda", "mps")


def _all_at_once(inside: Inside, tokens_BNc: Tensor, plan: Windows, by: Products) -> Tensor:
    """Every window of the batch together, for training and on a GPU: out of place, so that gradients flow."""
    b, _, c = tokens_BNc.shape
    n, t = plan.index.shape
    gathered = tokens_BNc.index_select(1, plan.index.flatten()).reshape(b * n, t, c)
    padding = None if plan.padding is None else plan.padding.repeat(b, 1)
    sides = plan.sides.repeat(b, 1, 1) if plan.shifted else None
    out = inside(gathered, Part(padding, sides, plan.window), by).reshape(b, n * t, c)
    return out.index_select(1, plan.inverse)


def _in_chunks(inside: Inside, tokens_Nc: Tensor, plan: Windows, by: Products, into_Nc: Tensor) -> None:
    """A few windows at a time: activations stay small and in the cache."""
    step = max(1, (GPU_CHUNK_TOKENS if _on_gpu(tokens_Nc.device) else CHUNK_TOKENS) // plan.index.shape[1])
    for start in range(0, len(plan.index), step):
        some = slice(start, start + step)
        index = plan.index[some]
        padding = None if plan.padding is None else plan.padding[some]
        sides = plan.sides[some] if plan.shifted else None
        gathered = tokens_Nc.index_select(0, index.flatten()).reshape(*index.shape, -1)
        out = inside(gathered, Part(padding, sides, plan.window), by).flatten(0, 1)
        if padding is None:
            into_Nc.index_copy_(0, index.flatten(), out)
        else:
            keep = ~padding.flatten()
            into_Nc[index.flatten()[keep]] = out[keep]

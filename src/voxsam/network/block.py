"""One block of the image encoder: window attention and an mlp, with a hook for the adapter.

B batch, D H W token grid, c width of a token, n windows, t tokens per window.
"""

from __future__ import annotations

from torch import Tensor, nn

from voxsam.network.adapters import BlockHook
from voxsam.network.attention import WindowAttention, Windows, windows
from voxsam.network.sizes import ModelConfig

LAYER_NORM_EPS = 1e-6  # SAM's


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); `adapter` may act before, between and after."""

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

    def forward(self, x_BDHWc: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, D, H, W, c) tokens -> the same shape, and what is carried to the next block (BlockHook.after_block)."""
        x = self.adapter.before_attention(x_BDHWc)
        x = x + self.adapter.after_attention(self._attend(x))
        x = self.adapter.before_mlp(x)
        x = x + self.adapter.after_mlp(self.mlp(self.norm2(x)))
        return self.adapter.after_block(x, carried)

    def windows_of(self, x_BDHWc: Tensor) -> Windows:
        """The windows in which the tokens attend to one another."""
        grid = (x_BDHWc.shape[1], x_BDHWc.shape[2], x_BDHWc.shape[3])
        return windows(grid, self.config.window_of(self.block, grid), self.shifted, x_BDHWc.device)

    def _attend(self, x_BDHWc: Tensor) -> Tensor:
        """(B, D, H, W, c) attention of each token in its window; padding tokens are 0 after the norm, as in SAM."""
        plan, (b, c) = self.windows_of(x_BDHWc), (x_BDHWc.shape[0], x_BDHWc.shape[-1])
        n, t = plan.index.shape
        normed = self.norm1(x_BDHWc).flatten(1, 3).index_select(1, plan.index.flatten()).reshape(b * n, t, c)
        if plan.padding is not None:
            normed = normed.masked_fill(plan.padding.repeat(b, 1)[..., None], 0)
        sides = None if plan.sides is None else plan.sides.repeat(b, 1, 1)
        qkv = self.adapter.change_qkv(normed, self.attention.qkv(normed))
        y = self.attention(qkv, sides, plan.window, self.attention.relative_tables(plan.window))
        y = self.attention.proj(y).reshape(b, n * t, c).index_select(1, plan.inverse)
        return y.reshape(x_BDHWc.shape)

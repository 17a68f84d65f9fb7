"""The 3D image encoder: SAM's ViT with spatial adapters, a depth position table and 3D necks (paper, Sec. 3.2).

B batch, D H W token grid, c width of a token, C width of a feature map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxsam.model.adapters import SpatialAdapter
from voxsam.model.attention import WindowAttention
from voxsam.model.convolution import convolve
from voxsam.model.linear import Precision, Product, product
from voxsam.model.patch_embedding import PatchEmbedding
from voxsam.model.promptable import BlockProgress
from voxsam.model.sizes import ModelConfig
from voxsam.model.windows import Windows, windows

LAYER_NORM_EPS = 1e-6  # SAM's
CHUNK_TOKENS = 2048  # tokens of whole windows that go through a block together when no gradient is kept


class Products(NamedTuple):
    """The four linear layers of a block within its windows, ready to be multiplied."""

    qkv: Product
    proj: Product
    widen: Product
    narrow: Product


class Block(nn.Module):
    """adapter; then x + attention(norm1(x)); then x + mlp(norm2(x)). The last two never leave their window."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        c = config.width
        self.window = config.window
        self.shifted = block % 2 == 0
        self.adapter = SpatialAdapter(c, config.adapter_width, outer_relu=config.adapter_relu)
        self.norm1 = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        self.attention = WindowAttention(c, config.heads, config.window, config.relative_rows(block))
        self.norm2 = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(c, config.mlp_ratio * c), nn.GELU(), nn.Linear(config.mlp_ratio * c, c))

    def forward(self, x_BDHWc: Tensor, precision: Precision = "float32") -> Tensor:
        """(B, D, H, W, c) tokens -> the same shape. `precision` of the products: see `product`."""
        x = self.adapter(x_BDHWc, precision)
        plan = windows(tuple(x.shape[1:4]), self.window, self.shifted, x.device)
        tokens = x.flatten(1, 3)
        products = self._products(tokens, precision)
        inside = self._all_at_once if torch.is_grad_enabled() else self._in_chunks
        return inside(tokens, plan, products).reshape(x.shape)

    def _products(self, tokens_BNc: Tensor, precision: Precision) -> Products:
        rows = min(CHUNK_TOKENS, tokens_BNc.shape[1])
        linears = self.attention.qkv, self.attention.proj, self.mlp[0], self.mlp[2]
        return Products(*(product(linear, rows, tokens_BNc, precision) for linear in linears))  # type: ignore[arg-type]

    def _within_windows(self, x_ntc: Tensor, padding: Tensor | None, sides: Tensor | None, by: Products) -> Tensor:
        normed = self.norm1(x_ntc)
        if padding is not None:
            normed = normed.masked_fill(padding[..., None], 0)
        x_ntc = by.proj.plus(self.attention(by.qkv(normed), sides), x_ntc)
        return by.narrow.plus(by.widen(self.norm2(x_ntc), "gelu"), x_ntc)

    def _all_at_once(self, tokens_BNc: Tensor, plan: Windows, by: Products) -> Tensor:
        """Every window of the batch together, for training: out of place, so that gradients flow."""
        b, _, c = tokens_BNc.shape
        n, t = plan.index.shape
        gathered = tokens_BNc.index_select(1, plan.index.flatten()).reshape(b * n, t, c)
        padding = None if plan.padding is None else plan.padding.repeat(b, 1)
        sides = plan.sides.repeat(b, 1, 1) if plan.shifted else None
        out = self._within_windows(gathered, padding, sides, by).reshape(b, n * t, c)
        return out.index_select(1, plan.inverse)

    def _in_chunks(self, tokens_BNc: Tensor, plan: Windows, by: Products) -> Tensor:
        """A few windows at a time, written back in place: activations stay small and in the cache."""
        step = max(1, CHUNK_TOKENS // plan.index.shape[1])
        for tokens in tokens_BNc:
            for start in range(0, len(plan.index), step):
                part = slice(start, start + step)
                index = plan.index[part]
                padding = None if plan.padding is None else plan.padding[part]
                sides = plan.sides[part] if plan.shifted else None
                gathered = tokens.index_select(0, index.flatten()).reshape(*index.shape, -1)
                out = self._within_windows(gathered, padding, sides, by).flatten(0, 1)
                if padding is None:
                    tokens.index_copy_(0, index.flatten(), out)
                else:
                    keep = ~padding.flatten()
                    tokens[index.flatten()[keep]] = out[keep]
        return tokens_BNc


class Neck(nn.Module):
    """1x1x1 convolution, LayerNorm over channels, 3x3x3 convolution, LayerNorm: tokens to a feature map."""

    def __init__(self, width: int, feature_width: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, feature_width, bias=False)
        self.norm1 = nn.LayerNorm(feature_width, eps=LAYER_NORM_EPS)
        self.conv = nn.Conv3d(feature_width, feature_width, 3, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(feature_width, eps=LAYER_NORM_EPS)

    def forward(self, x_BDHWc: Tensor, precision: Precision = "float32") -> Tensor:
        """(B, D, H, W, c) -> (B, C, D, H, W), in the precision of x."""
        dtype, rows = x_BDHWc.dtype, x_BDHWc.numel() // x_BDHWc.shape[-1]
        reduced = product(self.reduce, rows, x_BDHWc, precision)(x_BDHWc)
        x = self.norm1(reduced.to(dtype)).to(reduced.dtype).permute(0, 4, 1, 2, 3)
        return self.norm2(convolve(x, self.conv.weight).permute(0, 2, 3, 4, 1).to(dtype)).permute(0, 4, 1, 2, 3)


class ImageEncoder(nn.Module):
    """Crop to four feature maps, level 4 the deepest.

    Set `recompute` to keep only the input of each block for the backward pass and compute the rest again: a training
    step then needs the memory of one block instead of all. `precision` is that of products and convolutions on a CPU
    where no gradients are kept (`product`); the tokens and their norms stay float32.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.precision: Precision = "float32"
        c, side = config.width, config.position_grid
        self.patch_embedding = PatchEmbedding(c, config.patch, config.stride, config.channels)
        self.plane_positions = nn.Parameter(torch.randn(side, side, c) * 0.02)
        start = torch.ones if config.depth_start == "ones" else torch.zeros
        self.depth_positions = nn.Parameter(start(config.token_grid, c))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.necks = nn.ModuleList(Neck(c, config.feature_width) for _ in config.levels)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """(D, H, W, c): SAM's plane table pooled to (H, W), plus the depth table, stretched if D is another."""
        plane = F.adaptive_avg_pool2d(self.plane_positions.permute(2, 0, 1), grid[1:]).permute(1, 2, 0)
        depth = self.depth_positions
        if len(depth) != grid[0]:
            depth = F.interpolate(depth.T[None], size=grid[0], mode="linear")[0].T
        return depth[:, None, None] + plane

    def forward(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> tuple[Tensor, ...]:
        """(B, 1, D, H, W) normalised crops, sides multiples of the stride -> four (B, C, D/T, H/T, W/T).

        `progress` is called after each block.
        """
        x = self.patch_embedding(crops_B1DHW)
        x = x + self.positions(tuple(x.shape[1:4]))
        levels = []
        for number, block in enumerate(self.blocks, 1):
            again = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x, self.precision)
            if number in self.config.level_blocks:
                levels.append(self.necks[len(levels)](x, self.precision))
            if progress is not None:
                progress(number, len(self.blocks))
        return tuple(levels)

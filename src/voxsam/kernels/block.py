"""Faster blocks of the image encoder, some windows at a time, in packed products; their adapter, attention and necks.

All of this applies where no gradient is kept; elsewhere, and where a device has nothing better, the classes behave as
their base classes. B batch, D H W token grid, N = D H W, c width of a token, n windows, t tokens per window, h heads,
e width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.kernels.convolution import convolve
from voxsam.kernels.linear import Lower, Product, product
from voxsam.network.adapters import GridLinear, SpatialAdapter
from voxsam.network.attention import WindowAttention, Windows
from voxsam.network.block import Block
from voxsam.network.image_encoder import Neck
from voxsam.network.prompt_encoder import PromptEncoder

CHUNK_TOKENS = 2048  # tokens of whole windows that go through a block together, to stay in a processor's cache
GPU_CHUNK_TOKENS = 65536  # the same on a GPU, which prefers few, large kernels: two crops of 128^3 with a stride of 4
OPEN_TOKENS = 256  # tokens per window from which plain products beat a CPU's fused kernel


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


class FastBlock(Lower, Block):
    """Block that takes some windows through attention and mlp before others, since neither leaves its window.

    Their activations then stay small and in the cache. If the adapter acts on the grid between the two, or padding
    would go through the mlp of slices, attention is computed for all windows first.
    """

    def forward(self, x_BDHWc: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As Block.forward."""
        if torch.is_grad_enabled():
            return super().forward(x_BDHWc, carried)
        x = self.adapter.before_attention(x_BDHWc)
        plan = self.windows_of(x)
        if on_gpu(x.device) and len(x) * plan.index.numel() <= GPU_CHUNK_TOKENS:
            return self._rest(x, self._attend(x), carried)
        by = self._products(x, plan.window)
        if self.adapter.between or (self.slices and plan.padding is not None):
            return self._rest(x, _windowed(self._attention_alone, x, plan, by, torch.empty_like(x)), carried)
        into = torch.empty_like(x) if x is x_BDHWc else x  # the adapter's own tensor may be written into
        return self.adapter.after_block(_windowed(self._within_windows, x, plan, by, into), carried)

    def _rest(self, x: Tensor, attended: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What follows attention, on the whole grid."""
        x = self.adapter.before_mlp(x + self.adapter.after_attention(attended))
        widen, narrow = (product(self.mlp[i], x.numel() // x.shape[-1], x, self.precision) for i in (0, 2))  # type: ignore[arg-type]
        y = narrow(widen(self.norm2(x), "gelu")).to(x.dtype)
        return self.adapter.after_block(x + self.adapter.after_mlp(y), carried)

    def _products(self, x_BDHWc: Tensor, window: tuple[int, int, int]) -> Products:
        rows = min(CHUNK_TOKENS, x_BDHWc.numel() // (x_BDHWc.shape[0] * x_BDHWc.shape[-1]))
        linears = self.attention.qkv, self.attention.proj, self.mlp[0], self.mlp[2]
        packed = (product(linear, rows, x_BDHWc, self.precision) for linear in linears)  # type: ignore[arg-type]
        return Products(*packed, tables=self.attention.relative_tables(window))

    def _taken(self, x_ntc: Tensor, part: Part, by: Products) -> Tensor:
        """(n, t, c) attention of each token in its window, before `proj`."""
        normed = self.norm1(x_ntc)
        if part.padding is not None:
            normed = normed.masked_fill(part.padding[..., None], 0)
        qkv = self.adapter.change_qkv(normed, by.qkv(normed))
        return self.attention(qkv, part.sides, part.window, by.tables)

    def _attention_alone(self, x_ntc: Tensor, part: Part, by: Products) -> Tensor:
        return by.proj(self._taken(x_ntc, part, by)).to(x_ntc.dtype)

    def _within_windows(self, x_ntc: Tensor, part: Part, by: Products) -> Tensor:
        x_ntc = by.proj.plus(self._taken(x_ntc, part, by), x_ntc)
        return by.narrow.plus(by.widen(self.norm2(x_ntc), "gelu"), x_ntc)


def on_gpu(device: torch.device) -> bool:
    """Whether a device prefers few, large kernels."""
    return device.type in ("cuda", "mps")


def _windowed(inside: Inside, x_BDHWc: Tensor, plan: Windows, by: Products, into_BDHWc: Tensor) -> Tensor:
    """Apply `inside` to all windows and write `into`, which may be x: no window reads what another has written."""
    step = max(1, (GPU_CHUNK_TOKENS if on_gpu(x_BDHWc.device) else CHUNK_TOKENS) // plan.index.shape[1])
    into_BNc = into_BDHWc.flatten(1, 3)
    for tokens, out in zip(x_BDHWc.flatten(1, 3), into_BNc, strict=True):
        for start in range(0, len(plan.index), step):
            some = slice(start, start + step)
            index = plan.index[some]
            padding, sides = (None if table is None else table[some] for table in (plan.padding, plan.sides))
            gathered = tokens.index_select(0, index.flatten()).reshape(*index.shape, -1)
            made = inside(gathered, Part(padding, sides, plan.window), by).flatten(0, 1)
            if padding is None:
                out.index_copy_(0, index.flatten(), made)
            else:
                keep = ~padding.flatten()
                out[index.flatten()[keep]] = made[keep]
    return into_BNc.reshape(x_BDHWc.shape)


class FastAttention(WindowAttention):
    """WindowAttention, by plain products for large windows on a CPU."""

    def attend(self, q_nhte: Tensor, k_nhte: Tensor, v_nhte: Tensor, relative_nhtr: Tensor, code_ntr: Tensor) -> Tensor:
        """As WindowAttention.attend, by plain products, head by head.

        The logits of one head fit in a core's cache, and their memory is reused; query, key and value are read in
        place, and nothing is padded. With windows of 8^3 this is a fifth faster than torch's fused kernel.
        """
        n, h, t, e = q_nhte.shape
        plain = q_nhte.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if t < OPEN_TOKENS or not plain:  # products that write into a tensor support neither gradients nor autocast
            return super().attend(q_nhte, k_nhte, v_nhte, relative_nhtr, code_ntr)
        out, logits = q_nhte.new_empty(n, t, h, e), q_nhte.new_empty(t, t)
        for window in range(n):
            code_rt = code_ntr[window].T
            for head in range(h):
                torch.mm(relative_nhtr[window, head], code_rt, out=logits)
                logits.addmm_(q_nhte[window, head], k_nhte[window, head].T, alpha=e**-0.5)
                torch.softmax(logits, -1, out=logits)
                torch.mm(logits, v_nhte[window, head], out=out[window, :, head])
        return out


class FastGridLinear(Lower, GridLinear):
    """GridLinear by `product`, in the precision of x."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., k) -> (..., m)."""
        return product(self, x.numel() // x.shape[-1], x, self.precision)(x).to(x.dtype)


class FastSpatialAdapter(Lower, SpatialAdapter):
    """SpatialAdapter with the activation and the addition to x fused into the products."""

    def before_attention(self, x_BDHWc: Tensor) -> Tensor:
        """As SpatialAdapter.before_attention."""
        if torch.is_grad_enabled():
            return super().before_attention(x_BDHWc)
        rows = x_BDHWc.numel() // x_BDHWc.shape[-1]
        down, up = (product(linear, rows, x_BDHWc, self.precision) for linear in (self.down, self.up))
        hidden = down(x_BDHWc, "relu").permute(0, 4, 1, 2, 3)
        hidden = convolve(hidden, self.conv.weight, self.conv.bias, self.conv.groups)
        hidden = F.relu(hidden).permute(0, 2, 3, 4, 1)
        return x_BDHWc + up(hidden, "relu") if self.outer_relu else up.plus(hidden, x_BDHWc)


class FastNeck(Lower, Neck):
    """Neck with both convolutions in the lower precision, if any, and the norms in that of the tokens."""

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """As Neck.forward."""
        if torch.is_grad_enabled():
            return super().forward(x_BDHWc)
        dtype, rows = x_BDHWc.dtype, x_BDHWc.numel() // x_BDHWc.shape[-1]
        reduced = product(self.reduce, rows, x_BDHWc, self.precision)(x_BDHWc)
        x = self.norm1(reduced.to(dtype)).to(reduced.dtype)
        return self.norm2(self.convolved(x).to(dtype)).permute(0, 4, 1, 2, 3)


class FastPromptEncoder(PromptEncoder):
    """PromptEncoder that takes, on a CPU, as many image tokens at a time as its cache holds."""

    def look(self, image_BCT: Tensor, asked: list[Tensor]) -> Tensor:
        """As PromptEncoder.look."""
        if image_BCT.device.type != "cpu" or torch.is_grad_enabled() or image_BCT.shape[2] <= CHUNK_TOKENS:
            return super().look(image_BCT, asked)
        return torch.cat(
            [super(FastPromptEncoder, self).look(part, asked) for part in image_BCT.split(CHUNK_TOKENS, 2)], 2
        )

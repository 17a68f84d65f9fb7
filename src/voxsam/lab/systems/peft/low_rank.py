"""Low-rank changes of query and value: LoRA, as SAMed uses it, and MA-SAM's factors with its adapters along depth.

n windows, t tokens of a window, B batch, D H W token grid, c width of a token, r rank.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.kernels.linear import Precision
from voxsam.network.adapters import BlockHook, convolve_tokens, multiply
from voxsam.network.sizes import ModelConfig

FACTOR_DROPOUT = 0.1  # MA-SAM's


def add_to_query_and_value(qkv_ntk: Tensor, query_ntc: Tensor, value_ntc: Tensor) -> Tensor:
    """Query and value changed in place; key as it was."""
    c = query_ntc.shape[-1]
    qkv_ntk[..., :c] += query_ntc
    qkv_ntk[..., -c:] += value_ntc
    return qkv_ntk


class LoRA(BlockHook):
    """q + Bq Aq x and v + Bv Av x; B starts as 0 (Hu et al., LoRA, ICLR 2022, Sec. 4.1, with alpha = r)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query_down, self.value_down = (nn.Linear(width, rank, bias=False) for _ in "qv")
        self.query_up, self.value_up = (nn.Linear(rank, width, bias=False) for _ in "qv")
        nn.init.zeros_(self.query_up.weight)
        nn.init.zeros_(self.value_up.weight)

    def change_qkv(self, normed_ntc: Tensor, qkv_ntk: Tensor) -> Tensor:
        """Query and value changed."""
        query = self.query_up(self.query_down(normed_ntc))
        return add_to_query_and_value(qkv_ntk, query, self.value_up(self.value_down(normed_ntc)))


class Factors(nn.Module):
    """U and V of a tensor train, shared by all blocks; V starts as 0 (Jie and Deng, FacT, AAAI 2023, FacT-TT)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)


class DepthConvolution(nn.Module):
    """x + up(gelu(conv(down(norm(x))))): a full convolution of 3 tokens along depth in the bottleneck."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.conv = nn.Conv3d(bottleneck, bottleneck, (3, 1, 1), padding=(1, 0, 0))
        self.up = nn.Linear(bottleneck, width, bias=False)

    def forward(self, x_BDHWc: Tensor, precision: Precision) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        hidden = convolve_tokens(self.conv, multiply(self.down, self.norm(x_BDHWc), precision))
        return x_BDHWc + multiply(self.up, F.gelu(hidden), precision)


class MASAM(BlockHook):
    """Factors for query and value, and a convolution along depth before attention and before the mlp.

    Chen et al., MA-SAM, Medical Image Analysis 2024, Sec. 3.2 and 3.3.
    """

    def __init__(self, config: ModelConfig, rank: int, factors: Factors) -> None:
        super().__init__()
        self.attention = DepthConvolution(config.width, config.adapter_width)
        self.mlp = DepthConvolution(config.width, config.adapter_width)
        self.query, self.value = (nn.Linear(rank, rank, bias=False) for _ in "qv")
        self.dropout = nn.Dropout(FACTOR_DROPOUT)
        self._factors = (factors,)  # in a tuple: they are the encoder's, and each file holds them once

    def before_attention(self, x_BDHWc: Tensor, precision: Precision) -> Tensor:
        """x and what its neighbours along depth say."""
        return self.attention(x_BDHWc, precision)

    def change_qkv(self, normed_ntc: Tensor, qkv_ntk: Tensor) -> Tensor:
        """Query and value changed."""
        factors = self._factors[0]
        inner = factors.down(normed_ntc)
        query, value = (factors.up(self.dropout(core(inner))) for core in (self.query, self.value))
        return add_to_query_and_value(qkv_ntk, query, value)

    def before_mlp(self, x_BDHWc: Tensor, precision: Precision) -> Tensor:
        """x and what its neighbours along depth say."""
        return self.mlp(x_BDHWc, precision)

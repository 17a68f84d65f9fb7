"""The adapters that VoxSAM's own is compared with (paper, Table 2, and beyond); importing this registers them.

All but MedAdapter and MASAM change nothing when training begins. B batch, D H W token grid, n windows, t tokens of a
window, c width of a token, m width of a bottleneck, r rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.network.adapters import ADAPTERS, AdapterKind, BlockHook, GridLinear, convolve_tokens
from voxsam.network.sizes import LEVELS, ModelConfig


class Bottleneck(nn.Module):
    """y + up(gelu(down(y))), `up` initialised to 0."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = GridLinear(width, bottleneck)
        self.up = GridLinear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y_BDHWc: Tensor) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        return y_BDHWc + self.up(F.gelu(self.down(y_BDHWc)))


class Houlsby(BlockHook):
    """A bottleneck after the MLP, and with `adapter_twice` also after attention, before each is added to x.

    Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, Fig. 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Bottleneck(config.width, config.adapter_width) if config.adapter_twice else None
        self.mlp = Bottleneck(config.width, config.adapter_width)

    def after_attention(self, y_BDHWc: Tensor) -> Tensor:
        """Apply the bottleneck to the output of attention, if there is one."""
        return y_BDHWc if self.attention is None else self.attention(y_BDHWc)

    def after_mlp(self, y_BDHWc: Tensor) -> Tensor:
        """Apply the bottleneck to the output of the MLP."""
        return self.mlp(y_BDHWc)


class ProTuning(BlockHook):
    """x + up(relu(conv(relu(down(x))))) after the block, the convolution depth-wise and 3 x 3 on each slice.

    Nie et al., Pro-tuning, arXiv:2207.14381, in the form that has the paper's number of parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m = config.adapter_width
        self.down = GridLinear(config.width, m)
        self.conv = nn.Conv3d(m, m, (1, 3, 3), padding=(0, 1, 1), groups=m)
        self.up = GridLinear(m, config.width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def after_block(self, x_BDHWc: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The block's adapted output, and `carried` unchanged."""
        hidden = F.relu(convolve_tokens(self.conv, F.relu(self.down(x_BDHWc))))
        return x_BDHWc + self.up(hidden), carried


class DepthBottleneck(nn.Module):
    """x + up(conv(down(x))), all linear; the convolution is depth-wise, 3 tokens along depth, initialised to 0."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = GridLinear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, (3, 1, 1), padding=(1, 0, 0), groups=bottleneck)
        self.up = GridLinear(bottleneck, width)
        for zero in (self.conv.weight, self.conv.bias, self.down.bias, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        hidden = convolve_tokens(self.conv, self.down(x_BDHWc))
        return x_BDHWc + self.up(hidden)


class STAdapter(BlockHook):
    """A bottleneck along depth before attention, and with `adapter_twice` also before the MLP.

    Pan et al., ST-Adapter, NeurIPS 2022, Sec. 3.2, where depth is time.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = DepthBottleneck(config.width, config.adapter_width)
        self.mlp = DepthBottleneck(config.width, config.adapter_width) if config.adapter_twice else None

    def before_attention(self, x_BDHWc: Tensor) -> Tensor:
        """The tokens, with information from their neighbours along depth."""
        return self.attention(x_BDHWc)

    def before_mlp(self, x_BDHWc: Tensor) -> Tensor:
        """The same, if there is a second bottleneck."""
        return x_BDHWc if self.mlp is None else self.mlp(x_BDHWc)


class MedAdapter(BlockHook):
    """x + gelu(up(h + mix(h))) after the block, with h = gelu(down(x)) (Shen et al., Med-Tuning, MIDL 2024, Fig. 3).

    mix sums convolutions of 3 and of 5 tokens and h with weighted frequencies, and applies a 1 x 1 x 1 convolution. In
    the last block of a stage it is joined with the mix carried over from the stage before, 0 for the first.
    """

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        m = config.adapter_width
        self.down = GridLinear(config.width, m)
        self.near, self.wide = _branch(m, 3), _branch(m, 5)
        self.frequency_weight = nn.Parameter(torch.ones(config.token_grid))
        self.frequency_bias = nn.Parameter(torch.ones(config.token_grid))
        self.mix = nn.Conv3d(m, m, 1)
        self.up = GridLinear(m, config.width)
        ends_a_stage = (block + 1) % (config.depth // LEVELS) == 0
        self.earlier = nn.Conv3d(m, m, 1) if ends_a_stage else None
        self.join = nn.Conv3d(2 * m, m, 1) if ends_a_stage else None

    def after_block(self, x_BDHWc: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The adapted tokens, and the mix (B, m, D, H, W) of the last finished stage."""
        hidden = F.gelu(self.down(x_BDHWc)).permute(0, 4, 1, 2, 3)
        mixed = self.mix(self.near(hidden) + self.wide(hidden) + self._filtered(hidden))
        if self.earlier is not None and self.join is not None:
            before = torch.zeros_like(mixed) if carried is None else carried
            carried = mixed = self.join(torch.cat([mixed, self.earlier(before)], 1))
        out = F.gelu(self.up((hidden + mixed).permute(0, 2, 3, 4, 1)))
        return x_BDHWc + out, carried

    def _filtered(self, x_BmDHW: Tensor) -> Tensor:
        """Weight the frequencies along depth and add their biases, interpolated for a grid of another depth."""
        weight, bias = (_stretched(row, x_BmDHW.shape[2]) for row in (self.frequency_weight, self.frequency_bias))
        axes = (2, 3, 4)
        with torch.autocast(x_BmDHW.device.type, enabled=False):  # there is no FFT in half precision
            spectrum = torch.fft.fftn(x_BmDHW.float(), dim=axes) * weight.float() + bias.float()
            return torch.fft.ifftn(spectrum, dim=axes).abs().to(x_BmDHW.dtype)


def _branch(width: int, taps: int) -> nn.Sequential:
    """Depth-wise convolutions within the slice and along depth, BatchNorm, ReLU."""
    half = taps // 2
    norm = nn.BatchNorm3d(width)
    norm.num_batches_tracked = torch.zeros(())  # a float: model files hold only floating-point tensors
    return nn.Sequential(
        nn.Conv3d(width, width, (1, taps, taps), padding=(0, half, half), groups=width),
        nn.Conv3d(width, width, (taps, 1, 1), padding=(half, 0, 0), groups=width),
        norm,
        nn.ReLU(),
    )


def _stretched(row: Tensor, length: int) -> Tensor:
    """The row interpolated to (length, 1, 1)."""
    if len(row) != length:
        row = F.interpolate(row[None, None], size=length, mode="linear")[0, 0]
    return row[:, None, None]


FACTOR_DROPOUT = 0.1  # MA-SAM's


def add_to_query_and_value(qkv_ntk: Tensor, query_ntc: Tensor, value_ntc: Tensor) -> Tensor:
    """Add to query and value in place; the key is unchanged."""
    c = query_ntc.shape[-1]
    qkv_ntk[..., :c] += query_ntc
    qkv_ntk[..., -c:] += value_ntc
    return qkv_ntk


class LoRA(BlockHook):
    """q + Bq Aq x and v + Bv Av x; B is initialised to 0 (Hu et al., LoRA, ICLR 2022, Sec. 4.1, with alpha = r)."""

    between = False

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query_down, self.value_down = (nn.Linear(width, rank, bias=False) for _ in "qv")
        self.query_up, self.value_up = (nn.Linear(rank, width, bias=False) for _ in "qv")
        nn.init.zeros_(self.query_up.weight)
        nn.init.zeros_(self.value_up.weight)

    def change_qkv(self, normed_ntc: Tensor, qkv_ntk: Tensor) -> Tensor:
        """Change query and value."""
        query = self.query_up(self.query_down(normed_ntc))
        return add_to_query_and_value(qkv_ntk, query, self.value_up(self.value_down(normed_ntc)))


class Factors(nn.Module):
    """U and V of a tensor train, shared by all blocks; V starts at 0 (Jie and Deng, FacT, AAAI 2023, FacT-TT)."""

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
        self.down = GridLinear(width, bottleneck, bias=False)
        self.conv = nn.Conv3d(bottleneck, bottleneck, (3, 1, 1), padding=(1, 0, 0))
        self.up = GridLinear(bottleneck, width, bias=False)

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        hidden = convolve_tokens(self.conv, self.down(self.norm(x_BDHWc)))
        return x_BDHWc + self.up(F.gelu(hidden))


class MASAM(BlockHook):
    """Factors for query and value, and a convolution along depth before attention and before the MLP.

    Chen et al., MA-SAM, Medical Image Analysis 2024, Sec. 3.2 and 3.3.
    """

    def __init__(self, config: ModelConfig, rank: int, factors: Factors) -> None:
        super().__init__()
        self.attention = DepthConvolution(config.width, config.adapter_width)
        self.mlp = DepthConvolution(config.width, config.adapter_width)
        self.query, self.value = (nn.Linear(rank, rank, bias=False) for _ in "qv")
        self.dropout = nn.Dropout(FACTOR_DROPOUT)
        self._factors = (factors,)  # in a tuple, unregistered: they belong to the encoder, and a file holds them once

    def before_attention(self, x_BDHWc: Tensor) -> Tensor:
        """The tokens, with information from their neighbours along depth."""
        return self.attention(x_BDHWc)

    def change_qkv(self, normed_ntc: Tensor, qkv_ntk: Tensor) -> Tensor:
        """Change query and value."""
        factors = self._factors[0]
        inner = factors.down(normed_ntc)
        query, value = (factors.up(self.dropout(core(inner))) for core in (self.query, self.value))
        return add_to_query_and_value(qkv_ntk, query, value)

    def before_mlp(self, x_BDHWc: Tensor) -> Tensor:
        """The tokens, with information from their neighbours along depth."""
        return self.mlp(x_BDHWc)


RANKS = {"lora": 8, "samed": 4, "masam": 32}  # if a configuration does not set one


def rank_of(config: ModelConfig) -> int:
    """The rank of a low-rank adapter."""
    return config.adapter_rank or RANKS[config.adapter]


def _low_rank(config: ModelConfig, block: int, shared: nn.Module | None) -> BlockHook:
    return LoRA(config.width, rank_of(config))


def _masam(config: ModelConfig, block: int, shared: nn.Module | None) -> BlockHook:
    assert isinstance(shared, Factors)
    return MASAM(config, rank_of(config), shared)


ADAPTERS.update(
    houlsby=AdapterKind(lambda config, block, shared: Houlsby(config)),
    protuning=AdapterKind(lambda config, block, shared: ProTuning(config)),
    st=AdapterKind(lambda config, block, shared: STAdapter(config)),
    med=AdapterKind(lambda config, block, shared: MedAdapter(config, block)),
    lora=AdapterKind(_low_rank, norms=False),
    samed=AdapterKind(_low_rank, norms=False),
    masam=AdapterKind(_masam, lambda config: Factors(config.width, rank_of(config)), norms=False),
)

"""Med-Tuning's adapter: convolutions of two sizes and a filter of frequencies, handed on from stage to stage.

Shen et al., Med-Tuning, MIDL 2024 (arXiv 2023), Fig. 3.

B batch, D H W token grid, c width of a token, m width of the bottleneck.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.kernels.linear import Precision
from voxsam.network.adapters import BlockHook, multiply
from voxsam.network.sizes import LEVELS, ModelConfig


class MedAdapter(BlockHook):
    """x + gelu(up(h + mix(h))) behind the block, with h = gelu(down(x)).

    mix is the sum of convolutions of 3 and of 5 tokens and of h with its frequencies weighed, through a 1 x 1 x 1
    convolution. In the last block of a stage it is joined with what the stage before handed on, 0 for the first.
    """

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        m = config.adapter_width
        self.down = nn.Linear(config.width, m)
        self.near, self.wide = _branch(m, 3), _branch(m, 5)
        self.frequency_weight = nn.Parameter(torch.ones(config.token_grid))
        self.frequency_bias = nn.Parameter(torch.ones(config.token_grid))
        self.mix = nn.Conv3d(m, m, 1)
        self.up = nn.Linear(m, config.width)
        ends_a_stage = (block + 1) % (config.depth // LEVELS) == 0
        self.earlier = nn.Conv3d(m, m, 1) if ends_a_stage else None
        self.join = nn.Conv3d(2 * m, m, 1) if ends_a_stage else None

    def after_block(
        self, x_BDHWc: Tensor, carried: Tensor | None, precision: Precision
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens, and the mix of the last finished stage (B, m, D, H, W)."""
        hidden = multiply(self.down, x_BDHWc, precision, "gelu").permute(0, 4, 1, 2, 3)
        mixed = self.mix(self.near(hidden) + self.wide(hidden) + self._filtered(hidden))
        if self.earlier is not None and self.join is not None:
            before = torch.zeros_like(mixed) if carried is None else carried
            carried = mixed = self.join(torch.cat([mixed, self.earlier(before)], 1))
        out = multiply(self.up, (hidden + mixed).permute(0, 2, 3, 4, 1), precision, "gelu")
        return x_BDHWc + out, carried

    def _filtered(self, x_BmDHW: Tensor) -> Tensor:
        """The frequencies along depth weighed, each with its bias; stretched for a grid of another depth."""
        weight, bias = (_stretched(row, x_BmDHW.shape[2]) for row in (self.frequency_weight, self.frequency_bias))
        axes = (2, 3, 4)
        with torch.autocast(x_BmDHW.device.type, enabled=False):  # there is no transform in half precision
            spectrum = torch.fft.fftn(x_BmDHW.float(), dim=axes) * weight.float() + bias.float()
            return torch.fft.ifftn(spectrum, dim=axes).abs().to(x_BmDHW.dtype)


def _branch(width: int, taps: int) -> nn.Sequential:
    """Depth-wise convolutions in the slice and along depth, BatchNorm, ReLU."""
    half = taps // 2
    norm = nn.BatchNorm3d(width)
    norm.num_batches_tracked = torch.zeros(())  # a float: model files hold no other numbers
    return nn.Sequential(
        nn.Conv3d(width, width, (1, taps, taps), padding=(0, half, half), groups=width),
        nn.Conv3d(width, width, (taps, 1, 1), padding=(half, 0, 0), groups=width),
        norm,
        nn.ReLU(),
    )


def _stretched(row: Tensor, length: int) -> Tensor:
    """(length, 1, 1)."""
    if len(row) != length:
        row = F.interpolate(row[None, None], size=length, mode="linear")[0, 0]
    return row[:, None, None]

"""Adapters with a bottleneck: Houlsby's, Pro-tuning's and ST-Adapter's. At first, each changes nothing.

B batch, D H W token grid, c width of a token, m width of the bottleneck.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.kernels.linear import Precision
from voxsam.network.adapters import BlockHook, convolve_tokens, multiply
from voxsam.network.sizes import ModelConfig


class Bottleneck(nn.Module):
    """y + up(gelu(down(y))), `up` starting as 0."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y_BDHWc: Tensor, precision: Precision) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        return y_BDHWc + multiply(self.up, multiply(self.down, y_BDHWc, precision, "gelu"), precision)


class Houlsby(BlockHook):
    """A bottleneck behind the mlp, and with `adapter_twice` behind attention as well, before each is added to x.

    Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, Fig. 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Bottleneck(config.width, config.adapter_width) if config.adapter_twice else None
        self.mlp = Bottleneck(config.width, config.adapter_width)

    def after_attention(self, y_BDHWc: Tensor, precision: Precision) -> Tensor:
        """The bottleneck's answer to what attention found, where there is one."""
        return y_BDHWc if self.attention is None else self.attention(y_BDHWc, precision)

    def after_mlp(self, y_BDHWc: Tensor, precision: Precision) -> Tensor:
        """The bottleneck's answer to what the mlp found."""
        return self.mlp(y_BDHWc, precision)


class ProTuning(BlockHook):
    """x + up(relu(conv(relu(down(x))))) behind the block, the convolution depth-wise and 3 x 3 on each slice.

    Nie et al., Pro-tuning, arXiv:2207.14381, in the form that has the paper's number of parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        m = config.adapter_width
        self.down = nn.Linear(config.width, m)
        self.conv = nn.Conv3d(m, m, (1, 3, 3), padding=(0, 1, 1), groups=m)
        self.up = nn.Linear(m, config.width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def after_block(
        self, x_BDHWc: Tensor, carried: Tensor | None, precision: Precision
    ) -> tuple[Tensor, Tensor | None]:
        """The block's answer and the prompt for the next one."""
        hidden = F.relu(convolve_tokens(self.conv, multiply(self.down, x_BDHWc, precision, "relu")))
        return x_BDHWc + multiply(self.up, hidden, precision), carried


class DepthBottleneck(nn.Module):
    """x + up(conv(down(x))), all linear; the convolution is depth-wise, 3 tokens along depth, 0 at first."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, (3, 1, 1), padding=(1, 0, 0), groups=bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for zero in (self.conv.weight, self.conv.bias, self.down.bias, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x_BDHWc: Tensor, precision: Precision) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        hidden = convolve_tokens(self.conv, multiply(self.down, x_BDHWc, precision))
        return x_BDHWc + multiply(self.up, hidden, precision)


class STAdapter(BlockHook):
    """A bottleneck along depth before attention.

    Pan et al., ST-Adapter, NeurIPS 2022, Sec. 3.2: there depth is time.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = DepthBottleneck(config.width, config.adapter_width)

    def before_attention(self, x_BDHWc: Tensor, precision: Precision) -> Tensor:
        """x and what its neighbours along depth say."""
        return self.attention(x_BDHWc, precision)


class STAdapterTwice(STAdapter):
    """And one more before the mlp."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mlp = DepthBottleneck(config.width, config.adapter_width)

    def before_mlp(self, x_BDHWc: Tensor, precision: Precision) -> Tensor:
        """x and what its neighbours along depth say."""
        return self.mlp(x_BDHWc, precision)

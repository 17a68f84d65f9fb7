"""The spatial adapter: a bottleneck with a depth-wise 3D convolution (paper, Fig. 2).

B batch, D H W token grid, c width of a token, m width of the bottleneck.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.model.convolution import convolve
from voxsam.model.linear import Precision, product


class SpatialAdapter(nn.Module):
    """x + up(relu(conv(relu(down(x))))), with one more ReLU around `up` in the released profile."""

    def __init__(self, width: int, bottleneck: int, outer_relu: bool) -> None:
        super().__init__()
        self.outer_relu = outer_relu
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.up = nn.Linear(bottleneck, width)

    def forward(self, x_BDHWc: Tensor, precision: Precision = "float32") -> Tensor:
        """(B, D, H, W, c) -> the same shape. `precision` of the products: see `product`."""
        rows = x_BDHWc.numel() // x_BDHWc.shape[-1]
        down, up = (product(linear, rows, x_BDHWc, precision) for linear in (self.down, self.up))
        hidden = down(x_BDHWc, "relu").permute(0, 4, 1, 2, 3)
        hidden = convolve(hidden, self.conv.weight, self.conv.bias, self.conv.groups)
        hidden = F.relu(hidden).permute(0, 2, 3, 4, 1)
        return x_BDHWc + up(hidden, "relu") if self.outer_relu else up.plus(hidden, x_BDHWc)

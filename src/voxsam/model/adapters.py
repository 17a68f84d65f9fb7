"""The spatial adapter: a bottleneck with a depth-wise 3D convolution (paper, Fig. 2).

B batch, D H W token grid, c width of a token, m width of the bottleneck.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SpatialAdapter(nn.Module):
    """x + up(relu(conv(relu(down(x))))), with one more ReLU around `up` in the released profile."""

    def __init__(self, width: int, bottleneck: int, outer_relu: bool) -> None:
        super().__init__()
        self.outer_relu = outer_relu
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.up = nn.Linear(bottleneck, width)

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """(B, D, H, W, c) -> the same shape."""
        hidden = F.relu(self.down(x_BDHWc)).permute(0, 4, 1, 2, 3)
        hidden = F.relu(self.conv(hidden)).permute(0, 2, 3, 4, 1)
        change = self.up(hidden)
        return x_BDHWc + (F.relu(change) if self.outer_relu else change)

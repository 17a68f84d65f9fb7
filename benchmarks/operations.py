"""The number of floating-point operations in the image encoder's matrix products and convolutions, by formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from voxsam.network.sizes import LEVELS, ModelConfig


@dataclass(frozen=True)
class EncoderOperations:
    """Operations to encode one crop; a multiply-add counts as two."""

    patch_embedding: int
    blocks: int
    necks: int

    @property
    def encoder(self) -> int:
        """The sum of all three parts."""
        return self.patch_embedding + self.blocks + self.necks


def encoder_operations(config: ModelConfig, crop_shape: Sequence[int]) -> EncoderOperations:
    """The operations that the encoder's arithmetic requires for one crop (D, H, W).

    The patch embedding is the composed convolution; the rest is as in the reference implementation: attention at the
    head's own width, MLP and adapter without the tokens that pad a window. Channels appended to query and key,
    upsampling, norms, activations and softmax are not counted, so a rate derived from this number is a lower bound.
    """
    grid = [n // config.stride for n in crop_shape]
    tokens = prod(grid)
    return EncoderOperations(
        patch_embedding=2 * tokens * (config.stride + 2) ** 3 * config.width,
        blocks=config.depth * _block(config, grid),
        necks=LEVELS * 2 * tokens * config.feature_width * (config.width + 27 * config.feature_width),
    )


def _block(config: ModelConfig, grid: Sequence[int]) -> int:
    c, w = config.width, config.window
    tokens, in_windows = prod(grid), prod(-(-n // w) * w for n in grid)
    adapter = tokens * config.adapter_width * (2 * c + 27)
    projections = in_windows * 4 * c * c  # query, key, value, output
    attention = in_windows * c * (2 * w**3 + 3 * w)  # q k^T, times v; relative positions
    mlp = tokens * 2 * config.mlp_ratio * c * c
    return 2 * (adapter + projections + attention + mlp)

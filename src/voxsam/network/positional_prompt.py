"""The prompt encoder that the paper compares its own with: SAM's positional prompts, in 3D (paper, Sec. 3.3 and 4.4).

A click is where it lies, not what lies there: Fourier features of its place, plus a learned vector for its label, look
at the image and the image looks back, both with their places added (Kirillov et al., Segment Anything, 2023, App. A).

B batch, N points, M prompt tokens (N + 1), T image tokens (D * H * W), C width of a feature map.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from voxsam.network.prompt_encoder import PADDING, POSITIVE, Attention, in_crop
from voxsam.network.sizes import ModelConfig


class TwoWayLayer(nn.Module):
    """Prompt tokens look at one another, then at the image; then every image token looks at them.

    The places are added to queries and keys, not to values; in the first layer the tokens ask
    one another as they are, for they are hardly more than places yet (SAM's two-way block).
    """

    def __init__(self, config: ModelConfig, first: bool) -> None:
        super().__init__()
        c = config.feature_width
        self.first = first
        self.self_attention = Attention(c, c, config.prompt_heads)
        self.token_to_image = Attention(c, c // 2, config.prompt_heads)
        self.image_to_token = Attention(c, c // 2, config.prompt_heads)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(c) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(c, config.prompt_mlp), nn.ReLU(), nn.Linear(config.prompt_mlp, c))

    def forward(
        self, image_BTC: Tensor, tokens_BMC: Tensor, image_places_TC: Tensor, token_places_BMC: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image tokens and prompt tokens -> both, changed; `mask` as for `Attention`, over the prompt tokens."""
        if self.first:
            tokens = self.self_attention(tokens_BMC, tokens_BMC, mask=mask)
        else:
            placed = tokens_BMC + token_places_BMC
            tokens = tokens_BMC + self.self_attention(placed, placed, tokens_BMC, mask)
        tokens = self.norm1(tokens)
        placed_image = image_BTC + image_places_TC
        tokens = self.norm2(tokens + self.token_to_image(tokens + token_places_BMC, placed_image, image_BTC))
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.image_to_token(placed_image, tokens + token_places_BMC, tokens, mask)
        return self.norm4(image_BTC + seen), tokens


class PositionalPromptEncoder(nn.Module):
    """Changes a feature map by where the clicks lie in its crop; clicks outside the crop change nothing.

    As in SAM the points have one token more for company, which is no point: there is something to look at even where no
    click is left. SAM's output tokens, which its own decoder makes masks from, have no use here and are left out.
    """

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.feature_width
        self.stride, self.polar = config.stride, config.polarity
        drawn = np.random.RandomState(0).standard_normal((3, c // 2))  # whose numbers NumPy keeps as they are for ever
        self.register_buffer("frequencies", torch.tensor(drawn, dtype=torch.float32), persistent=False)
        self.labels = nn.Embedding(2 if config.polarity else 1, c)
        self.no_point = nn.Parameter(torch.randn(1, c))
        self.layers = nn.ModuleList(TwoWayLayer(config, first=n == 0) for n in range(config.prompt_layers))

    def places(self, fraction: Tensor) -> Tensor:
        """(..., C) Fourier features of places (..., 3) given as fractions (0 to 1) of the crop's sides d, h, w."""
        phase = 2 * math.pi * ((2 * fraction - 1) @ self.frequencies.float())
        return torch.cat([phase.sin(), phase.cos()], -1).to(self.frequencies.dtype)

    def image_places(self, grid: tuple[int, ...]) -> Tensor:
        """(T, C): the places of the middles of all image tokens."""
        along = [(torch.arange(n, device=self.frequencies.device) + 0.5) / n for n in grid]
        return self.places(torch.cartesian_prod(*along))

    def forward(
        self,
        features_BCDHW: Tensor,
        prompt_features_BNC: Tensor | None = None,
        labels_BN: Tensor | None = None,
        points_BN3: Tensor | None = None,
    ) -> Tensor:
        """(B, C, D, H, W) features, (B, N) labels, (B, N, 3) points = (d, h, w) in crop voxels -> features.

        `labels_BN`: 1 positive, 0 negative, -1 padding; left out, all are positive. The features say nothing to it.
        """
        assert points_BN3 is not None, "a positional prompt without a place"
        if labels_BN is None:
            labels_BN = torch.full(points_BN3.shape[:2], POSITIVE, device=points_BN3.device)
        grid = tuple(features_BCDHW.shape[2:])
        crop_shape = tuple(n * self.stride for n in grid)
        tokens = self._tokens(points_BN3, labels_BN, crop_shape)
        seen = (labels_BN != PADDING) & in_crop(points_BN3, crop_shape)
        mask = torch.cat([seen.new_ones(len(seen), 1), seen], 1)[:, None, None]
        image, image_places, token_places = features_BCDHW.flatten(2).transpose(1, 2), self.image_places(grid), tokens
        for layer in self.layers:
            image, tokens = layer(image, tokens, image_places, token_places, mask)
        return image.transpose(1, 2).reshape(features_BCDHW.shape)

    def _tokens(self, points_BN3: Tensor, labels_BN: Tensor, crop_shape: tuple[int, ...]) -> Tensor:
        """(B, M, C): the one that is no point, then each point's place and label."""
        at = points_BN3.float() + 0.5
        fraction = torch.stack([place / n for place, n in zip(at.unbind(-1), crop_shape, strict=True)], -1)
        kinds = labels_BN.clamp(min=0) if self.polar else torch.zeros_like(labels_BN)
        points = self.places(fraction) + self.labels(kinds)
        return torch.cat([self.no_point.expand(len(points), 1, -1), points], 1)

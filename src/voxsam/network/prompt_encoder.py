"""The prompt encoder: a visual sampler under the clicks, global queries, cross-attention (paper, Sec. 3.3, Fig. 3).

Also the encoder that the paper compares it with: SAM's positional prompts, in 3D (Sec. 3.3 and 4.4).

B batch, N points, Q global queries, M prompt tokens (N + 1), T image tokens (D * H * W), C width of a feature map.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.network.sizes import ModelConfig

PADDING, NEGATIVE, POSITIVE = -1, 0, 1  # labels of points


def sample_features(features_BCDHW: Tensor, points_BN3: Tensor, crop_shape: tuple[int, int, int]) -> Tensor:
    """The visual sampler: (B, N, C) features at `points_BN3` = (d, h, w) in crop voxels, trilinear, 0 outside.

    A point p on an axis of length P is sampled at (p + 0.5) * 2 / P - 1 (align_corners=False).
    """
    size = torch.tensor(crop_shape, dtype=torch.float32, device=points_BN3.device)
    unit = (points_BN3.float() + 0.5) * 2 / size - 1
    grid = unit.flip(-1)[:, :, None, None]  # grid_sample wants (w, h, d)
    sampled = F.grid_sample(features_BCDHW.float(), grid, mode="bilinear", align_corners=False)
    return sampled[..., 0, 0].transpose(1, 2).to(features_BCDHW.dtype)


def in_crop(points_BN3: Tensor, crop_shape: tuple[int, ...]) -> Tensor:
    """(B, N) bool: which points (crop voxels) lie in the crop, its outer faces included."""
    d, h, w = ((at >= -0.5) & (at <= n - 0.5) for at, n in zip(points_BN3.unbind(-1), crop_shape, strict=True))
    return d & h & w


def mark_tokens(values_BNC: Tensor, points_BN3: Tensor, crop_shape: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """(B, C, *grid): each point's value spread over the eight tokens around it, by the weights of trilinear sampling.

    A point in the outermost half token counts for the tokens that there are; one outside the crop marks nothing.
    Nothing is copied between the processor and a GPU, so that a CUDA graph can hold it.
    """
    b, _, c = values_BNC.shape
    inside = in_crop(points_BN3, crop_shape)
    axes = [_neighbours(*axis) for axis in zip(points_BN3.unbind(-1), crop_shape, grid, strict=True)]
    out = values_BNC.new_zeros(b, math.prod(grid), c)
    for (d, fraction_d), (h, fraction_h), (w, fraction_w) in itertools.product(*axes):
        weight = (fraction_d * fraction_h * fraction_w * inside)[..., None]
        token = ((d * grid[1] + h) * grid[2] + w)[..., None]
        out = out.scatter_add(1, token.expand(-1, -1, c), (weight * values_BNC).to(out.dtype))
    return out.transpose(1, 2).reshape(b, c, *grid)


def _neighbours(at_BN: Tensor, side: int, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two of `count` tokens on an axis of `side` voxels around each point: (B, N) index and weight of each."""
    place = ((at_BN + 0.5) * count / side - 0.5).clamp(0, count - 1)
    below = place.floor()
    first, fraction = below.long(), place - below
    return (first, 1 - fraction), ((first + 1).clamp(max=count - 1), fraction)


class Attention(nn.Module):
    """Multi-head attention with its own inner width (SAM's decoder attention)."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q_BMC: Tensor, k_BKC: Tensor, v_BKC: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, M, C) queries, (B, K, C) keys and values -> (B, M, C); without values, the keys are the values.

        `mask` broadcasts to (B, heads, M, K); True attends.
        """

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        v_BKC = k_BKC if v_BKC is None else v_BKC
        q, k, v = split(self.q_proj(q_BMC)), split(self.k_proj(k_BKC)), split(self.v_proj(v_BKC))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class PromptLayer(nn.Module):
    """Queries and points attend to one another; then every image token attends to the queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.feature_width
        self.global_queries = nn.Parameter(torch.randn(config.queries, c))
        self.self_attention = Attention(c, c, config.prompt_heads)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(c) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(c, config.prompt_mlp), nn.ReLU(), nn.Linear(config.prompt_mlp, c))
        self.image_to_query = Attention(c, c // 2, config.prompt_heads)

    def ask(self, points_BNC: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points -> (B, Q, C) queries for the image, and the updated points."""
        count = len(self.global_queries)
        q = torch.cat([self.global_queries.expand(len(points_BNC), -1, -1), points_BNC], 1)
        q = self.norm2(q + self.norm1(self.self_attention(q, q, mask=mask)))
        queries, points = q[:, :count], q[:, count:]
        return self.norm3(queries + self.mlp(queries)), points

    def forward(self, image_BTC: Tensor, queries_BQC: Tensor) -> Tensor:
        """(B, T, C) image tokens, each updated on its own."""
        return self.norm4(image_BTC + self.image_to_query(image_BTC, queries_BQC))


class PromptEncoder(nn.Module):
    """Changes a feature map, by default the deepest, according to the clicks' prompt features.

    With `config.polarity` a learned vector, one for positive and one for negative clicks, is added to the prompt
    features; released checkpoints have none, and take only positive clicks. With `config.marks` another one is added to
    the tokens around the click, so that a correction acts where it was made; the paper's prompt has no position.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.queries, self.stride = config.queries, config.stride
        self.layers = nn.ModuleList(PromptLayer(config) for _ in range(config.prompt_layers))
        self.polarity = nn.Embedding(2, config.feature_width) if config.polarity else None
        self.marks = nn.Embedding(2, config.feature_width) if config.marks else None
        if self.marks is not None:
            nn.init.zeros_(self.marks.weight)

    def mark(self, features_BCDHW: Tensor, points_BN3: Tensor, labels_BN: Tensor | None) -> Tensor:
        """The features with the tokens around the points (crop voxels) marked; unchanged if the model does not mark."""
        if self.marks is None:
            return features_BCDHW
        if labels_BN is None:
            labels_BN = torch.ones(points_BN3.shape[:2], dtype=torch.long, device=points_BN3.device)
        values = self.marks(labels_BN.clamp(min=0)) * (labels_BN != PADDING)[..., None]
        grid = tuple(features_BCDHW.shape[2:])
        return features_BCDHW + mark_tokens(values, points_BN3, tuple(n * self.stride for n in grid), grid)

    def forward(
        self,
        features_BCDHW: Tensor,
        prompt_features_BNC: Tensor,
        labels_BN: Tensor | None = None,
        points_BN3: Tensor | None = None,
    ) -> Tensor:
        """(B, C, D, H, W) features, (B, N, C) those under the clicks, (B, N) labels -> features.

        Labels are 1 (positive), 0 (negative), -1 (padding). `points_BN3` (crop voxels) are where a model with marks
        marks the clicks; without them it marks nothing.
        """
        if points_BN3 is not None:
            features_BCDHW = self.mark(features_BCDHW, points_BN3, labels_BN)
        points, mask = prompt_features_BNC, None
        if labels_BN is not None:
            if self.polarity is not None:
                points = points + self.polarity(labels_BN.clamp(min=0))
            queries = torch.ones(len(labels_BN), self.queries, dtype=torch.bool, device=labels_BN.device)
            mask = torch.cat([queries, labels_BN != PADDING], 1)[:, None, None]
        elif self.polarity is not None:
            points = points + self.polarity.weight[POSITIVE]
        asked = []
        for layer in self.layers:
            queries, points = layer.ask(points, mask)  # type: ignore[operator]
            asked.append(queries)
        return self.look(features_BCDHW.flatten(2), asked).reshape(features_BCDHW.shape)

    def look(self, image_BCT: Tensor, asked: list[Tensor]) -> Tensor:
        """Pass image tokens through all layers: the queries do not depend on them, nor the tokens on one another."""
        image = image_BCT.transpose(1, 2)
        for layer, queries in zip(self.layers, asked, strict=True):
            image = layer(image, queries)
        return image.transpose(1, 2)


class TwoWayLayer(nn.Module):
    """Prompt tokens attend to one another, then to the image; then every image token attends to them.

    Positions are added to queries and keys, not to values. In the first layer the tokens attend to one another without
    them, since they are hardly more than positions yet (SAM's two-way block).
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
        """Image tokens and prompt tokens -> both, updated; `mask` as for `Attention`, over the prompt tokens."""
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
    """Changes a feature map according to where the clicks lie in its crop; clicks outside the crop change nothing.

    A click is its position, not what lies there: Fourier features of its position, plus a learned vector for its label,
    attend to the image, and the image attends to them, both with their positions added (Kirillov et al., Segment
    Anything, 2023, App. A).

    As in SAM there is one more token, which is no point, so that there is something to attend to even if no click is
    left. SAM's output tokens, from which its own decoder makes masks, have no use here and are left out.
    """

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.feature_width
        self.stride, self.polar = config.stride, config.polarity
        drawn = np.random.RandomState(0).standard_normal((3, c // 2))  # whose numbers NumPy has frozen
        self.register_buffer("frequencies", torch.tensor(drawn, dtype=torch.float32), persistent=False)
        self.labels = nn.Embedding(2 if config.polarity else 1, c)
        self.no_point = nn.Parameter(torch.randn(1, c))
        self.layers = nn.ModuleList(TwoWayLayer(config, first=n == 0) for n in range(config.prompt_layers))

    def places(self, fraction: Tensor) -> Tensor:
        """(..., C) Fourier features of positions (..., 3), given as fractions (0 to 1) of the crop's sides d, h, w."""
        phase = 2 * math.pi * ((2 * fraction - 1) @ self.frequencies.float())
        return torch.cat([phase.sin(), phase.cos()], -1).to(self.frequencies.dtype)

    def image_places(self, grid: tuple[int, ...]) -> Tensor:
        """(T, C) Fourier features of the centres of all image tokens."""
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

        `labels_BN`: 1 positive, 0 negative, -1 padding; by default all positive. The prompt features are ignored.
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
        """(B, M, C): the token that is no point, then each point's position and label."""
        at = points_BN3.float() + 0.5
        fraction = torch.stack([place / n for place, n in zip(at.unbind(-1), crop_shape, strict=True)], -1)
        kinds = labels_BN.clamp(min=0) if self.polar else torch.zeros_like(labels_BN)
        points = self.places(fraction) + self.labels(kinds)
        return torch.cat([self.no_point.expand(len(points), 1, -1), points], 1)

"""The released computation as a reference implementation, on a network's own weights: test oracle and baseline.

Nothing is folded, fused or cached here: the crop is copied to three channels and upsampled, every slice goes through
the patch convolution, each window has its t x t table of relative positions and its -100 mask, softmax is explicit, and
the decoder concatenates all its input channels for every click (docs/released.md, top to bottom).

B batch, D H W voxels or tokens, c width of a token, C width of a feature map, n windows, t = w^3 tokens of a window,
h heads, e width of a head, N points, Q global queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.network.adapters import SpatialAdapter
from voxsam.network.attention import WindowAttention
from voxsam.network.block import Block
from voxsam.network.image_encoder import ImageEncoder, Neck, PatchEmbedding
from voxsam.network.mask_decoder import Head, MaskDecoder
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import Attention, PromptEncoder, PromptLayer
from voxsam.network.promptable import BlockProgress, Features

MASKED = -100.0  # added to the logits of two tokens from different sides of the wrap-around
TOKEN_NORM_EPS = 1e-6
PROMPT_NORM_EPS = 1e-5  # of torch's InstanceNorm as well
LEVELS = 4


class ReferenceNetwork(VoxSAMNetwork):
    """A VoxSAMNetwork with the same parameters and predictions, computed as in the released code."""

    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """As VoxSAMNetwork.encode, without reporting progress."""
        return encode(self.image_encoder, crops_B1DHW)

    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """As VoxSAMNetwork.sample."""
        return sample(features[-1], points_BN3, self.config.stride)

    def static(self, features: Features, crops_B1DHW: Tensor) -> Tensor:
        """(4, B, C, D, H, W): the features as they are. No part of the decoder is computed before the click."""
        return torch.stack(features)

    def decode(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        prompt_features: Tensor | None = None,
        labels: Tensor | None = None,
        static: Tensor | None = None,
        conditioning: None = None,
        previous: None = None,
    ) -> Tensor:
        """As VoxSAMNetwork.decode, without conditioning and previous mask, which the released code does not have."""
        assert conditioning is None and previous is None
        levels = list(features if static is None else static)
        if points is not None:
            prompt_features = self.sample(features, points) if prompt_features is None else prompt_features
            if self.prompt_encoder.marks is not None:
                levels[-1] = levels[-1] + marks(self.prompt_encoder, levels[-1], points, labels, crops_B1DHW.shape[2:])
        if prompt_features is not None:
            levels[-1] = prompt(self.prompt_encoder, levels[-1], prompt_features, labels)
        return decode(self.mask_decoder, levels, crops_B1DHW)


def marks(
    encoder: PromptEncoder, level_BCDHW: Tensor, points_BN3: Tensor, labels_BN: Tensor | None, crop: Sequence[int]
) -> Tensor:
    """What clicks add to level 4: their polarity's vector times the outer product of hat functions along the axes."""
    assert encoder.marks is not None
    total = torch.zeros_like(level_BCDHW)
    for b, points in enumerate(points_BN3):
        for n, point in enumerate(points):
            label = 1 if labels_BN is None else int(labels_BN[b, n])
            if label < 0 or any(not -0.5 <= p <= side - 0.5 for p, side in zip(point.tolist(), crop, strict=True)):
                continue
            hats = []
            for p, side, tokens in zip(point, crop, level_BCDHW.shape[2:], strict=True):
                at = ((p + 0.5) * tokens / side - 0.5).clamp(0, tokens - 1)
                hats.append((1 - (torch.arange(tokens) - at).abs()).clamp(min=0))
            total[b] += torch.einsum("c,i,j,k->cijk", encoder.marks.weight[label], *hats)
    return total


# Image encoder


def encode(encoder: ImageEncoder, crops_B1DHW: Tensor) -> Features:
    """Encode normalised crops (B, 1, D, H, W) to four feature maps."""
    x = patch_tokens(encoder.patch_embedding, crops_B1DHW)
    x = x + positions(encoder, x.shape[1:4])
    levels = []
    for number, block in enumerate(encoder.blocks):
        x = encode_block(block, x, shifted=number % 2 == 0)
        if (number + 1) % (len(encoder.blocks) // LEVELS) == 0:  # after blocks 3, 6, 9 and 12 of twelve
            levels.append(neck(encoder.necks[len(levels)], x))
    return tuple(levels)


def patch_tokens(embedding: PatchEmbedding, crops_B1DHW: Tensor) -> Tensor:
    """(B, 1, D, H, W) -> (B, D/T, H/T, W/T, c): three channels, upsampled, patches of slices, then along depth."""
    batch, patch = len(crops_B1DHW), embedding.patch_weight.shape[-1]
    size = [n // embedding.stride * patch for n in crops_B1DHW.shape[2:]]
    large = F.interpolate(crops_B1DHW.repeat(1, 3, 1, 1, 1), size=size, mode="trilinear", align_corners=False)
    slices = large.transpose(1, 2).flatten(0, 1)
    planes = F.conv2d(slices, embedding.patch_weight, embedding.patch_bias, stride=patch)
    planes = planes.unflatten(0, (batch, -1)).transpose(1, 2)
    kernel = embedding.slice_weight[:, None, :, None, None]
    tokens = F.conv3d(planes, kernel, embedding.slice_bias, stride=(patch, 1, 1), groups=planes.shape[1])
    return tokens.permute(0, 2, 3, 4, 1)


def positions(encoder: ImageEncoder, grid: Sequence[int]) -> Tensor:
    """(D, H, W, c): SAM's table, averaged over the cells of the (H, W) grid, plus the table over depth."""
    table, depth = encoder.plane_positions, encoder.depth_positions
    side = len(table)
    cells = [[slice(i * side // n, -(-(i + 1) * side // n)) for i in range(n)] for n in grid[1:]]
    plane = torch.stack([torch.stack([table[a, b].mean((0, 1)) for b in cells[1]]) for a in cells[0]])
    if len(depth) != grid[0]:
        depth = F.interpolate(depth.T[None], size=grid[0], mode="linear", align_corners=False)[0].T
    return plane[None] + depth[:, None, None]


def encode_block(block: Block, x_BDHWc: Tensor, shifted: bool) -> Tensor:
    """adapter; x + attention(norm1(x)) in shifted or unshifted windows; x + mlp(norm2(x))."""
    x = adapt(block.adapter, x_BDHWc)
    normed = layer_norm(x, block.norm1.weight, block.norm1.bias, TOKEN_NORM_EPS)
    x = x + attend_in_windows(block.attention, normed, block.config.window, shifted)
    hidden = layer_norm(x, block.norm2.weight, block.norm2.bias, TOKEN_NORM_EPS)
    hidden = F.gelu(F.linear(hidden, block.mlp[0].weight, block.mlp[0].bias))
    return x + F.linear(hidden, block.mlp[2].weight, block.mlp[2].bias)


def adapt(adapter: SpatialAdapter, x_BDHWc: Tensor) -> Tensor:
    """x + W2 relu(conv(relu(W1 x))), with another relu around W2 in the released profile."""
    hidden = torch.relu(F.linear(x_BDHWc, adapter.down.weight, adapter.down.bias)).permute(0, 4, 1, 2, 3)
    hidden = F.conv3d(hidden, adapter.conv.weight, adapter.conv.bias, padding=1, groups=hidden.shape[1])
    change = F.linear(torch.relu(hidden).permute(0, 2, 3, 4, 1), adapter.up.weight, adapter.up.bias)
    return x_BDHWc + (torch.relu(change) if adapter.outer_relu else change)


def attend_in_windows(attention: WindowAttention, x_BDHWc: Tensor, w: int, shifted: bool) -> Tensor:
    """Zero-pad to whole windows, roll by half a window, partition, attend with the mask, and undo all that."""
    shift, shape = w // 2 if shifted else 0, x_BDHWc.shape
    padding = [n for length in reversed(shape[1:4]) for n in (0, -length % w)]
    x = F.pad(x_BDHWc, (0, 0, *padding))
    padded = x.shape[1:4]
    x = torch.roll(x, (-shift,) * 3, (1, 2, 3))
    mask = wrap_mask(padded, w, shift).to(x)
    out = window_attention(attention, partition(x, w), mask.repeat(len(x), 1, 1))
    out = torch.roll(unpartition(out, w, padded), (shift,) * 3, (1, 2, 3))
    return out[:, : shape[1], : shape[2], : shape[3]]


def partition(x_BDHWc: Tensor, w: int) -> Tensor:
    """(B, D, H, W, c) -> (B D/w H/w W/w, w^3, c)."""
    b, d, h, v, c = x_BDHWc.shape
    x = x_BDHWc.view(b, d // w, w, h // w, w, v // w, w, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, w**3, c)


def unpartition(x_ntc: Tensor, w: int, grid: Sequence[int]) -> Tensor:
    """The inverse of `partition`: (B D/w H/w W/w, w^3, c) -> (B, D, H, W, c)."""
    d, h, v = (n // w for n in grid)
    x = x_ntc.view(-1, d, h, v, w, w, w, x_ntc.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *grid, x_ntc.shape[-1])


def wrap_mask(grid: Sequence[int], w: int, shift: int) -> Tensor:
    """(windows, t, t): -100 for two tokens that the roll moved together from different sides of the grid, else 0."""
    region = torch.zeros(1, *grid, 1)
    if shift:
        parts = (slice(0, -w), slice(-w, -shift), slice(-shift, None))
        for a, in_depth in enumerate(parts):
            for b, in_height in enumerate(parts):
                for c, in_width in enumerate(parts):
                    region[:, in_depth, in_height, in_width] = 9 * a + 3 * b + c
    label = partition(region, w)[..., 0]
    return (label[:, :, None] != label[:, None, :]) * MASKED


def window_attention(attention: WindowAttention, x_ntc: Tensor, mask_ntt: Tensor) -> Tensor:
    """(n, t, c) -> (n, t, c): softmax(scale q k^T + relative positions + mask) v, by explicit matrix products."""
    n, t, c = x_ntc.shape
    h, e = attention.heads, c // attention.heads
    qkv = F.linear(x_ntc, attention.qkv.weight, attention.qkv.bias)
    q, k, v = qkv.view(n, t, 3, h, e).permute(2, 0, 3, 1, 4).reshape(3, n * h, t, e).unbind(0)
    logits = torch.bmm(q * e**-0.5, k.transpose(1, 2)) + relative_bias(attention, q)
    logits = (logits.view(n, h, t, t) + mask_ntt[:, None]).view(n * h, t, t)
    out = torch.bmm(torch.softmax(logits, -1), v)
    out = out.view(n, h, t, e).transpose(1, 2).reshape(n, t, c)
    return F.linear(out, attention.proj.weight, attention.proj.bias)


def relative_bias(attention: WindowAttention, q_mte: Tensor) -> Tensor:
    """(m, t, t) for m = n h: gain * (q.Rd[dd] + q.Rh[dh] + q.Rw[dw]) for every query and key, with the unscaled q."""
    m, t, e = q_mte.shape
    w = round(t ** (1 / 3))
    q = q_mte.view(m, w, w, w, e)
    in_depth, in_height, in_width = (
        relative_table(table, w) for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)
    )
    bias = torch.einsum("mdhwe,dke->mdhwk", q, in_depth)[..., :, None, None]
    bias = bias + torch.einsum("mdhwe,hke->mdhwk", q, in_height)[..., None, :, None]
    bias = bias + torch.einsum("mdhwe,wke->mdhwk", q, in_width)[..., None, None, :]
    return attention.rel_pos_gain * bias.reshape(m, t, t)


def relative_table(table: Tensor, w: int) -> Tensor:
    """(rows, e) -> (w, w, e): row (position of q - position of k + w - 1) of the table interpolated to 2 w - 1 rows."""
    rows = F.interpolate(table.T[None], size=2 * w - 1, mode="linear", align_corners=False)[0].T
    return torch.stack([torch.stack([rows[q - k + w - 1] for k in range(w)]) for q in range(w)])


def neck(neck: Neck, x_BDHWc: Tensor) -> Tensor:
    """1x1x1 convolution, LayerNorm over channels, 3x3x3 convolution, LayerNorm: tokens to (B, C, D, H, W)."""
    x = F.conv3d(x_BDHWc.permute(0, 4, 1, 2, 3), neck.reduce.weight[:, :, None, None, None])
    x = channel_norm(x, neck.norm1.weight, neck.norm1.bias)
    return channel_norm(F.conv3d(x, neck.conv.weight, padding=1), neck.norm2.weight, neck.norm2.bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def channel_norm(x_BCDHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over axis 1, written out."""
    centred = x_BCDHW - x_BCDHW.mean(1, keepdim=True)
    unit = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + TOKEN_NORM_EPS)
    return unit * weight[:, None, None, None] + bias[:, None, None, None]


# Prompt encoder


def sample(features_BCDHW: Tensor, points_BN3: Tensor, stride: int) -> Tensor:
    """(B, N, C): the features at (d, h, w) in crop voxels, interpolated trilinearly between eight tokens; 0 outside."""
    grid = features_BCDHW.shape[2:]
    at = (points_BN3.float() + 0.5) / stride - 0.5
    low = at.floor()
    prompt_features = torch.zeros(())
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        token = low + corner
        weight = (1 - (at - token).abs()).prod(-1)
        inside = torch.stack([(token[..., a] >= 0) & (token[..., a] < grid[a]) for a in range(3)]).all(0)
        d, h, w = (token[..., a].long().clamp(0, grid[a] - 1) for a in range(3))
        values = torch.stack([features_BCDHW[b, :, d[b], h[b], w[b]].T for b in range(len(d))])
        prompt_features = prompt_features + values * (weight * inside)[..., None]
    return prompt_features


def prompt(
    encoder: PromptEncoder, features_BCDHW: Tensor, prompt_features_BNC: Tensor, labels_BN: Tensor | None
) -> Tensor:
    """Level 4, prompted with the prompt features.

    `labels_BN` (1 positive, 0 negative) matter only to a model with polarity; padding points are not supported.
    """
    points = prompt_features_BNC
    if encoder.polarity is not None:
        labels = torch.ones(prompt_features_BNC.shape[:2], dtype=torch.long) if labels_BN is None else labels_BN
        points = points + encoder.polarity.weight[labels]
    image = features_BCDHW.flatten(2).transpose(1, 2)
    for layer in encoder.layers:
        image, points = prompt_layer(layer, image, points)
    return image.transpose(1, 2).reshape(features_BCDHW.shape)


def prompt_layer(layer: PromptLayer, image_BTC: Tensor, points_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and points attend to each other; then every image token attends to the queries."""
    count = len(layer.global_queries)
    q = torch.cat([layer.global_queries[None].repeat(len(image_BTC), 1, 1), points_BNC], 1)
    q = q + _norm(layer.norm1, attend(layer.self_attention, q, q))
    q = _norm(layer.norm2, q)
    queries = q[:, :count]
    hidden = torch.relu(F.linear(queries, layer.mlp[0].weight, layer.mlp[0].bias))
    queries = _norm(layer.norm3, queries + F.linear(hidden, layer.mlp[2].weight, layer.mlp[2].bias))
    image = _norm(layer.norm4, image_BTC + attend(layer.image_to_query, image_BTC, queries))
    return image, q[:, count:]


def _norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return layer_norm(x, norm.weight, norm.bias, PROMPT_NORM_EPS)


def attend(attention: Attention, q_BMC: Tensor, kv_BKC: Tensor) -> Tensor:
    """Multi-head attention with a scale of 1 / sqrt(width of a head) and explicit softmax."""
    projections = ((q_BMC, attention.q_proj), (kv_BKC, attention.k_proj), (kv_BKC, attention.v_proj))
    q, k, v = (
        F.linear(x, p.weight, p.bias).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x, p in projections
    )
    fraction = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
    out = (fraction @ v).transpose(1, 2).flatten(2)
    return F.linear(out, attention.out_proj.weight, attention.out_proj.bias)


# Mask decoder


def decode(decoder: MaskDecoder, levels: Sequence[Tensor], crops_B1DHW: Tensor) -> Tensor:
    """Four maps and the crop -> (B, 2, D, H, W): heads, upsampling, concatenation of all channels, one convolution."""
    crop_shape = crops_B1DHW.shape[2:]
    size = list(crop_shape) if decoder.full_resolution else [2 * n for n in levels[0].shape[2:]]
    parts = [upsample(decode_head(h, level), size) for h, level in zip(decoder.heads, levels, strict=True)]
    parts.append(F.interpolate(crops_B1DHW, size=size, mode="trilinear", align_corners=False))
    fused = torch.relu(instance_norm(F.conv3d(torch.cat(parts, 1), decoder.fuse.weight, padding=1)))
    return upsample(F.conv3d(fused, decoder.classify.weight, padding=1), crop_shape)


def decode_head(head: Head, x_BCDHW: Tensor) -> Tensor:
    """Two 3x3x3 convolutions, each followed by InstanceNorm and ReLU."""
    x = torch.relu(instance_norm(F.conv3d(x_BCDHW, head.conv1.weight, padding=1)))
    return torch.relu(instance_norm(F.conv3d(x, head.conv2.weight, padding=1)))


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear interpolation with align_corners=True: the centres of the outermost voxels stay in place."""
    return F.interpolate(x, size=list(size), mode="trilinear", align_corners=True)


def instance_norm(x_BCDHW: Tensor) -> Tensor:
    """Normalise each channel of each crop to mean 0 and variance 1, as torch's InstanceNorm3d (eps 1e-5)."""
    return F.instance_norm(x_BCDHW, eps=PROMPT_NORM_EPS)

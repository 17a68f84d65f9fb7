"""A small SAM of random weights as Meta writes it: every tensor of that layout, by name and shape."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

WIDTH, DEPTH, HEADS, GRID, PATCH, WINDOW, OUT, MLP = 32, 4, 2, 8, 16, 3, 32, 64
GLOBAL = (1, 3)
DECODER_MLP, IOU_HIDDEN = 48, 40


def sam_tensors(seed: int = 0, grid: int = GRID, window: int = WINDOW) -> dict[str, Tensor]:
    """The state dict; all tensors differ."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {**_encoder(grid, window), **_prompts(), **_decoder()}
    return {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}


def _encoder(grid: int, window: int) -> dict[str, tuple[int, ...]]:
    out = {"pos_embed": (1, grid, grid, WIDTH), **_linear("patch_embed.proj", WIDTH, 3, PATCH, PATCH)}
    for block in range(DEPTH):
        rows = 2 * (grid if block in GLOBAL else window) - 1
        own = {
            **_norm("norm1", WIDTH),
            **_norm("norm2", WIDTH),
            **_linear("attn.qkv", 3 * WIDTH, WIDTH),
            **_linear("attn.proj", WIDTH, WIDTH),
            **_linear("mlp.lin1", MLP, WIDTH),
            **_linear("mlp.lin2", WIDTH, MLP),
            "attn.rel_pos_h": (rows, WIDTH // HEADS),
            "attn.rel_pos_w": (rows, WIDTH // HEADS),
        }
        out |= {f"blocks.{block}.{name}": shape for name, shape in own.items()}
    out |= {"neck.0.weight": (OUT, WIDTH, 1, 1), "neck.2.weight": (OUT, OUT, 3, 3)}
    out |= {**_norm("neck.1", OUT), **_norm("neck.3", OUT)}
    return {f"image_encoder.{name}": shape for name, shape in out.items()}


def _prompts() -> dict[str, tuple[int, ...]]:
    out = {
        "pe_layer.positional_encoding_gaussian_matrix": (2, OUT // 2),
        "not_a_point_embed.weight": (1, OUT),
        "no_mask_embed.weight": (1, OUT),
        **{f"point_embeddings.{kind}.weight": (1, OUT) for kind in range(4)},
        **_linear("mask_downscaling.0", 4, 1, 2, 2),
        **_norm("mask_downscaling.1", 4),
        **_linear("mask_downscaling.3", 16, 4, 2, 2),
        **_norm("mask_downscaling.4", 16),
        **_linear("mask_downscaling.6", OUT, 16, 1, 1),
    }
    return {f"prompt_encoder.{name}": shape for name, shape in out.items()}


def _decoder() -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {"iou_token.weight": (1, OUT), "mask_tokens.weight": (4, OUT)}
    for layer in range(2):
        stem = f"transformer.layers.{layer}"
        out |= _attention(f"{stem}.self_attn", OUT)
        out |= _attention(f"{stem}.cross_attn_token_to_image", OUT // 2)
        out |= _attention(f"{stem}.cross_attn_image_to_token", OUT // 2)
        out |= {**_linear(f"{stem}.mlp.lin1", DECODER_MLP, OUT), **_linear(f"{stem}.mlp.lin2", OUT, DECODER_MLP)}
        for number in range(1, 5):
            out |= _norm(f"{stem}.norm{number}", OUT)
    out |= {
        **_attention("transformer.final_attn_token_to_image", OUT // 2),
        **_norm("transformer.norm_final_attn", OUT),
    }
    out |= {"output_upscaling.0.weight": (OUT, OUT // 4, 2, 2), "output_upscaling.0.bias": (OUT // 4,)}
    out |= _norm("output_upscaling.1", OUT // 4)
    out |= {"output_upscaling.3.weight": (OUT // 4, OUT // 8, 2, 2), "output_upscaling.3.bias": (OUT // 8,)}
    for mask in range(4):
        out |= _mlp(f"output_hypernetworks_mlps.{mask}", (OUT, OUT, OUT, OUT // 8))
    out |= _mlp("iou_prediction_head", (OUT, IOU_HIDDEN, IOU_HIDDEN, 4))
    return {f"mask_decoder.{name}": shape for name, shape in out.items()}


def _linear(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, inner: int) -> dict[str, tuple[int, ...]]:
    parts = {}
    for part in ("q_proj", "k_proj", "v_proj"):
        parts |= _linear(f"{name}.{part}", inner, OUT)
    return parts | _linear(f"{name}.out_proj", OUT, inner)


def _mlp(name: str, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    parts = {}
    for layer, (into, out) in enumerate(pairwise(widths)):
        parts |= _linear(f"{name}.layers.{layer}", out, into)
    return parts

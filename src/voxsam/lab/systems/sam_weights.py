"""A transformers.SamModel from SAM's own files: Meta's layout or a folder in transformers' layout; or small, at random.

The sizes follow from the shapes of the tensors, so any width, depth and image size is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from voxsam.errors import CheckpointError, InputError
from voxsam.weights.file import first_bytes, is_safetensors, open_safetensors, read_pickle

if TYPE_CHECKING:
    from transformers import SamConfig, SamModel

WANTED = "a whole SAM checkpoint (Meta's sam_vit_*.pth, or a folder of transformers' SamModel)"
DECODER_HEADS = 8  # of attention in the mask decoder: SAM's, which no shape shows
RANDOM_SIZES = {"seed": 0, "width": 32, "depth": 2, "heads": 2, "image": 128, "patch": 16, "embedding": 32}
RANDOM_SD = 0.1  # of the weights: large enough for every click to give another mask

_RENAMED = [  # Meta's names -> transformers'; the first pattern that fits an end of the name is taken, in this order
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.0\.", r"\1proj_in."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.1\.", r"\1layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.2\.", r"\1proj_out."),
]
_SHARED = "shared_image_embedding.positional_embedding"  # which the prompt encoder has under a second name


def load_sam(path: Path) -> SamModel:
    """SAM from a file in Meta's layout (.pth, .safetensors) or a folder in transformers', on the CPU, in eval mode.

    Nothing in a file is executed. Raises FileError or CheckpointError.
    """
    if path.is_dir():
        return _from_folder(path)
    if is_safetensors(first_bytes(path, 16, WANTED)):
        contents: Mapping[str, Any] = open_safetensors(path)[1]
    else:
        contents = read_pickle(path, WANTED)
    return sam_from_tensors(contents, str(path))


def sam_from_tensors(contents: Mapping[str, Any], origin: str) -> SamModel:
    """SAM of tensors under Meta's names. Raises CheckpointError for tensors that lack, are left over or do not fit."""
    from transformers import SamModel

    tensors = {str(name): tensor.float() for name, tensor in contents.items() if isinstance(tensor, Tensor)}
    try:
        model = SamModel(config_of(tensors))
    except KeyError as error:
        raise CheckpointError(f"{origin} has no tensor {error.args[0]}", WANTED, "give such a file") from error
    state = {transformers_name(name): tensor for name, tensor in tensors.items()}
    if _SHARED in state:
        state[f"prompt_encoder.{_SHARED.replace('_image', '')}"] = state[_SHARED]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise CheckpointError(f"{origin} does not fit ({reason})", WANTED, "variants of SAM do not fit") from error
    return model.eval()


def transformers_name(name: str) -> str:
    """The name in transformers' SamModel of a tensor in Meta's layout; names that both have stay."""
    for pattern, new in _RENAMED:
        renamed, found = re.subn(pattern, new, name)
        if found:
            return renamed
    return name


def config_of(tensors: Mapping[str, Tensor]) -> SamConfig:
    """The sizes that tensors under Meta's names have. Raises KeyError for one that lacks."""
    from transformers import SamConfig

    _, grid, _, width = tensors["image_encoder.pos_embed"].shape
    patch, embedding = (
        tensors["image_encoder.patch_embed.proj.weight"].shape[-1],
        tensors["image_encoder.neck.0.weight"].shape[0],
    )
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("image_encoder.blocks."))
    rows = [tensors[f"image_encoder.blocks.{n}.attn.rel_pos_h"].shape for n in range(depth)]
    everywhere = [n for n, (length, _) in enumerate(rows) if length == 2 * grid - 1]  # attention over the whole image
    layers = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("mask_decoder.transformer.layers."))
    first = "mask_decoder.transformer.layers.0."
    return SamConfig(
        vision_config={
            "hidden_size": width,
            "output_channels": embedding,
            "num_hidden_layers": depth,
            "num_attention_heads": width // rows[0][1],
            "image_size": grid * patch,
            "patch_size": patch,
            "mlp_dim": tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
            "window_size": (min(length for length, _ in rows) + 1) // 2,
            "global_attn_indexes": everywhere,
            "num_pos_feats": tensors["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape[1],
        },
        prompt_encoder_config={
            "hidden_size": embedding,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        },
        mask_decoder_config={
            "hidden_size": embedding,
            "mlp_dim": tensors[f"{first}mlp.lin1.weight"].shape[0],
            "num_hidden_layers": layers,
            "num_attention_heads": DECODER_HEADS,
            "attention_downsample_rate": embedding
            // tensors[f"{first}cross_attn_token_to_image.q_proj.weight"].shape[0],
            "iou_head_hidden_dim": tensors["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        },
    )


def random_sizes(**sizes: int) -> dict[str, int]:
    """RANDOM_SIZES, changed by `sizes`. Raises InputError for another name, or for sizes that cannot be."""
    chosen = {**RANDOM_SIZES, **sizes}
    unknown = sorted(set(chosen) - set(RANDOM_SIZES))
    if unknown:
        raise InputError(f"the size {unknown[0]} of a random SAM", f"one of {', '.join(RANDOM_SIZES)}", "change it")
    if chosen["width"] % chosen["heads"] or chosen["image"] % chosen["patch"] or chosen["embedding"] % 16:
        expected = "a width that `heads` divides, an image that `patch` divides, an embedding of 16, 32, ..."
        raise InputError(f"a random SAM of {chosen}", expected, "change it")
    return chosen


def random_sam(**sizes: int) -> SamModel:
    """A small SAM of random weights, the same for one seed: it shows what happens, and its masks mean nothing.

    `sizes` are as in `random_sizes`.
    """
    from transformers import SamConfig, SamModel

    chosen = random_sizes(**sizes)
    image = {"image_size": chosen["image"], "patch_size": chosen["patch"]}
    embedding = {"hidden_size": chosen["embedding"]}
    config = SamConfig(
        vision_config={
            **image,
            "hidden_size": chosen["width"],
            "output_channels": chosen["embedding"],
            "num_hidden_layers": chosen["depth"],
            "num_attention_heads": chosen["heads"],
            "num_pos_feats": chosen["embedding"] // 2,
            "window_size": 4,
            "global_attn_indexes": [chosen["depth"] - 1],
        },
        prompt_encoder_config={**image, **embedding},
        mask_decoder_config={**embedding, "mlp_dim": 2 * chosen["embedding"], "iou_head_hidden_dim": 32},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen["seed"])
        model = SamModel(config)
        for parameter in model.parameters():  # transformers starts the encoder as all but zero
            torch.nn.init.normal_(parameter, std=RANDOM_SD)
    return model.eval()


def _from_folder(path: Path) -> SamModel:
    from transformers import SamModel

    try:
        return SamModel.from_pretrained(path, local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} could not be read ({reason})", WANTED, "give such a folder") from error

"""Released 3DSAM-adapter checkpoints: their tensor names and axis order, translated to VoxSAM's.

The released network lays tokens out as (h, w, d); VoxSAM uses (d, h, w) everywhere, so 3D kernels are permuted here,
once. What the released code builds and never uses (three prompt encoders, token-to-image attention, the positional
matrix, mask buffers) is left behind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from voxsam.errors import CheckpointError, InputError
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import VIT_B
from voxsam.preprocess import PAPER, RELEASED, Preprocessing
from voxsam.weights.checkpoint import assemble
from voxsam.weights.file import read_pickle

USED_PROMPT_ENCODER = 3  # of four in feature_dict
Variant = Literal["released", "paper"]

AUTOMATIC = {"crop": 256, "stride": 8}  # of its automatic mode, which upsamples by 2; the file does not say
WANTED = "a checkpoint of the released 3DSAM-adapter code (encoder_dict, feature_dict, decoder_dict)"
DATA_SETS = {"kits": "KiTS21", "lits": "LiTS17", "pancreas": "MSD-Pancreas", "colon": "MSD-Colon"}

_ENCODER = [
    (r"pos_embed", "plane_positions"),
    (r"depth_embed", "depth_positions"),
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embedding.patch_\1"),
    (r"slice_embed\.(weight|bias)", r"patch_embedding.slice_\1"),
    (r"blocks\.(\d+)\.(norm[12])\.(\w+)", r"blocks.\1.\2.\3"),
    (r"blocks\.(\d+)\.attn\.lr", r"blocks.\1.attention.rel_pos_gain"),
    (r"blocks\.(\d+)\.attn\.(.+)", r"blocks.\1.attention.\2"),
    (r"blocks\.(\d+)\.mlp\.lin1\.(\w+)", r"blocks.\1.mlp.0.\2"),
    (r"blocks\.(\d+)\.mlp\.lin2\.(\w+)", r"blocks.\1.mlp.2.\2"),
    (r"blocks\.(\d+)\.adapter\.linear1\.(\w+)", r"blocks.\1.adapter.down.\2"),
    (r"blocks\.(\d+)\.adapter\.linear2\.(\w+)", r"blocks.\1.adapter.up.\2"),
    (r"blocks\.(\d+)\.adapter\.conv\.(\w+)", r"blocks.\1.adapter.conv.\2"),
    (r"neck_3d\.(\d)\.0\.weight", r"necks.\1.reduce.weight"),
    (r"neck_3d\.(\d)\.1\.(\w+)", r"necks.\1.norm1.\2"),
    (r"neck_3d\.(\d)\.2\.weight", r"necks.\1.conv.weight"),
    (r"neck_3d\.(\d)\.3\.(\w+)", r"necks.\1.norm2.\2"),
]
_PROMPT = [
    (r"transformer\.layers\.(\d)\.global_query", r"layers.\1.global_queries"),
    (r"transformer\.layers\.(\d)\.self_attn\.(.+)", r"layers.\1.self_attention.\2"),
    (r"transformer\.layers\.(\d)\.cross_attn_image_to_token\.(.+)", r"layers.\1.image_to_query.\2"),
    (r"transformer\.layers\.(\d)\.mlp\.lin1\.(\w+)", r"layers.\1.mlp.0.\2"),
    (r"transformer\.layers\.(\d)\.mlp\.lin2\.(\w+)", r"layers.\1.mlp.2.\2"),
    (r"transformer\.layers\.(\d)\.(norm\d)\.(\w+)", r"layers.\1.\2.\3"),
]
_DECODER = [
    (r"mlahead\.head2\.0\.weight", "heads.0.conv1.weight"),
    (r"mlahead\.head2\.3\.weight", "heads.0.conv2.weight"),
    (r"mlahead\.head3\.0\.weight", "heads.1.conv1.weight"),
    (r"mlahead\.head3\.3\.weight", "heads.1.conv2.weight"),
    (r"mlahead\.head4\.0\.weight", "heads.2.conv1.weight"),
    (r"mlahead\.head4\.3\.weight", "heads.2.conv2.weight"),
    (r"mlahead\.head5\.0\.weight", "heads.3.conv1.weight"),
    (r"mlahead\.head5\.3\.weight", "heads.3.conv2.weight"),
    (r"cls\.0\.weight", "fuse.weight"),
    (r"cls\.3\.weight", "classify.weight"),
]
_UNUSED = r".*attn_mask|positional_encoding_gaussian_matrix|.*cross_attn_token_to_image\..*"

PARTS = {
    "encoder": ("image_encoder", _ENCODER),
    "prompt": ("prompt_encoder", _PROMPT),
    "decoder": ("mask_decoder", _DECODER),
}


def translate_name(part: str, name: str) -> str | None:
    """VoxSAM's name of a released tensor of `part` (encoder, prompt, decoder); None if it is never used.

    Raises KeyError for a name that the released code does not have.
    """
    prefix, rules = PARTS[part]
    for pattern, new in rules:
        if re.fullmatch(pattern, name):
            return f"{prefix}.{re.sub(pattern, new, name)}"
    if re.fullmatch(_UNUSED, name):
        return None
    raise KeyError(name)


def translate_tensor(name: str, tensor: Tensor) -> Tensor:
    """A released tensor in VoxSAM's shape and axis order, by its VoxSAM name."""
    if name.endswith("slice_weight"):
        return tensor.reshape(len(tensor), -1)
    if name.endswith(("plane_positions", "depth_positions", "global_queries")):
        return tensor[0]
    if name.endswith("reduce.weight"):
        return tensor.flatten(1)
    if tensor.ndim == 5:  # (out, in, h, w, d) -> (out, in, d, h, w)
        return tensor.permute(0, 1, 4, 2, 3).contiguous()
    return tensor


def translate(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Released tensors by part ("encoder", "prompt", "decoder") -> VoxSAM's state dict."""
    state = {}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            new = translate_name(part, name)
            if new is not None:
                state[new] = translate_tensor(new, tensor)
    return state


def import_released(path: Path, profile: str, variant: Variant = "released") -> VoxSAMNetwork:
    """The network of a checkpoint (last.pth.tar, best.pth.tar) that the released code wrote.

    `profile` (kits, lits, pancreas, colon) is the data set it was trained on, which decides axes and intensities; the
    file does not say. `variant` "paper" takes the arithmetic and intensities of the paper's text, not the released
    code's. One without a prompt encoder is of its automatic mode. Nothing in the file is executed. Raises FileError or
    CheckpointError.
    """
    preprocessing = preprocessing_of(profile, variant)
    path = Path(path)
    contents = read_pickle(path, WANTED)
    parts = _parts(path, contents)
    automatic = "prompt" not in parts
    try:
        state = translate(parts)
    except KeyError as error:
        raise CheckpointError(
            f"{path} has a tensor that the released code does not have, {error.args[0]}",
            WANTED,
            "import the original file",
        ) from error
    card = Card(
        name=f"3dsam-adapter-{profile}{'-auto' * automatic}",
        config=VIT_B.in_profile(variant).model_copy(update=AUTOMATIC if automatic else {}),
        preprocessing=preprocessing,
        automatic=automatic,
        description={
            "source": f"imported from {path.name}, a checkpoint of the released 3DSAM-adapter code",
            "data": DATA_SETS[profile],
            "licence": "none stated by the authors of the checkpoint",
        },
        scores=_scores(contents),
    )
    network = assemble(card, state, str(path))
    assert isinstance(network, VoxSAMNetwork)
    return network


def preprocessing_of(profile: str, variant: Variant) -> Preprocessing:
    """The preprocessing of a data set's profile. Raises InputError for an unknown one."""
    table = RELEASED if variant == "released" else PAPER
    if profile not in table:
        raise InputError(f"profile {profile!r}", f"one of {', '.join(table)}", "name the data set the model is for")
    return table[profile]


def looks_like_sam(contents: Mapping[Any, Any]) -> bool:
    """Whether a checkpoint is a SAM file, in Meta's or in Hugging Face's naming."""
    return any(str(name).startswith(("image_encoder.", "vision_encoder.")) for name in contents)


def looks_released(contents: Mapping[Any, Any]) -> bool:
    """Whether a checkpoint has one of the three parts of the released layout."""
    return not {"encoder_dict", "feature_dict", "decoder_dict"}.isdisjoint(contents)


def _parts(path: Path, contents: Mapping[Any, Any]) -> dict[str, Mapping[str, Tensor]]:
    """The parts that are used, checked to be dictionaries of tensors; no "prompt" in a checkpoint of automatic mode."""
    if looks_like_sam(contents):
        raise CheckpointError(f"{path} is a SAM file", WANTED, "import it with --kind sam")
    missing = [key for key in ("encoder_dict", "feature_dict", "decoder_dict") if key not in contents]
    if missing not in ([], ["feature_dict"]):
        raise CheckpointError(f"{path} has no {', '.join(missing)}", WANTED, "give last.pth.tar or best.pth.tar")
    parts = {"encoder": contents["encoder_dict"], "decoder": contents["decoder_dict"]}
    if not missing:
        prompts = contents["feature_dict"]
        if not isinstance(prompts, list) or len(prompts) <= USED_PROMPT_ENCODER:
            raise CheckpointError(f"{path}: feature_dict is no list of four prompt encoders", WANTED, "check the file")
        parts["prompt"] = prompts[USED_PROMPT_ENCODER]
    for part, tensors in parts.items():
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise CheckpointError(f"the {part} part of {path} is no dictionary of tensors", WANTED, "check the file")
    return parts


def _scores(contents: Mapping[Any, Any]) -> dict[str, float]:
    loss = contents.get("best_val_loss")
    return {"best_val_loss": float(loss)} if isinstance(loss, int | float) and math.isfinite(loss) else {}

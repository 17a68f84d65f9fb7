"""Import checkpoints of others as VoxSAM models: the authors' released 3DSAM-adapter, and SAM's own 2D weights.

The released network lays tokens out as (h, w, d); VoxSAM uses (d, h, w) everywhere, so 3D kernels are permuted here,
once. What the released code builds and never uses (three prompt encoders, token-to-image attention, the positional
matrix, mask buffers) is left out.

SAM's weights, in Meta's layout (sam_vit_{b,l,h}_*.pth) or Hugging Face's (SamModel: .safetensors, pytorch_model.bin),
give the frozen part; what VoxSAM adds starts fresh, to be fine-tuned. The size follows from the shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from voxsam.errors import CheckpointError, InputError
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import VIT_B, VIT_H, VIT_L, ModelConfig
from voxsam.network.tuning import ENCODER
from voxsam.preprocess import PAPER, RELEASED, Preprocessing
from voxsam.weights.checkpoint import assemble, check_tensors
from voxsam.weights.file import METADATA_KEY, first_bytes, is_safetensors, open_safetensors, read_pickle

USED_PROMPT_ENCODER = 3  # of four in feature_dict
Variant = Literal["released", "paper"]

# Crops of 32 tokens a side; a file does not say which it was trained on. 256 is that of the automatic mode.
CROPS = {128: {"crop": 128, "stride": 4}, 256: {"crop": 256, "stride": 8}}
AUTOMATIC = CROPS[256]
RELEASED_PARTS = ("encoder_dict", "feature_dict", "decoder_dict")
WANTED = f"a checkpoint of the released 3DSAM-adapter code ({', '.join(RELEASED_PARTS)})"
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


def import_released(path: Path, profile: str, variant: Variant = "released", crop: int | None = None) -> VoxSAMNetwork:
    """The network of a checkpoint (last.pth.tar, best.pth.tar) that the released code wrote.

    `profile` (kits, lits, pancreas, colon) is the data set it was trained on, which determines axes and intensities;
    the file does not say. `variant` "paper" takes the arithmetic and intensities of the paper's text, not the released
    code's. `crop` is the side of the training crops in voxels: 128, or 256 as in the paper for kidney and colon; None:
    256 in automatic mode, else 128. A checkpoint without a prompt encoder is of automatic mode. Nothing in the file is
    executed. Raises FileError, CheckpointError, or InputError for an unknown profile or crop.
    """
    preprocessing = preprocessing_of(profile, variant)
    if crop is not None and crop not in CROPS:
        raise InputError(f"--crop {crop}", "128 or 256 voxels, the released code's", "choose one of them")
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
    sides = CROPS[crop] if crop is not None else AUTOMATIC if automatic else {}
    loss = contents.get("best_val_loss")
    card = Card(
        name=f"3dsam-adapter-{profile}{'-auto' * automatic}",
        config=VIT_B.in_profile(variant).model_copy(update=sides),
        preprocessing=preprocessing,
        automatic=automatic,
        description={
            "source": f"imported from {path.name}, a checkpoint of the released 3DSAM-adapter code",
            "data": DATA_SETS[profile],
            "licence": "none stated by the authors of the checkpoint",
        },
        scores={"best_val_loss": float(loss)} if isinstance(loss, int | float) and math.isfinite(loss) else {},
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


def _parts(path: Path, contents: Mapping[Any, Any]) -> dict[str, Mapping[str, Tensor]]:
    """The parts that are used, checked to be dictionaries of tensors; no "prompt" in a checkpoint of automatic mode."""
    if any(str(name).startswith(("image_encoder.", "vision_encoder.")) for name in contents):
        raise CheckpointError(f"{path} is a SAM file", WANTED, "import it with --kind sam")
    missing = [key for key in RELEASED_PARTS if key not in contents]
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


WANTED_SAM = "a SAM checkpoint (sam_vit_b, sam_vit_l or sam_vit_h; Meta's .pth or Hugging Face's SamModel)"
PREFIXES = ("image_encoder", "vision_encoder")  # Meta's, Hugging Face's
UNTRAINED = "not trained: fine-tune before use"

_HUGGING_FACE = [  # names under vision_encoder. -> names under image_encoder.
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.", r"blocks.\1."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
]
_NECK = {"0": "reduce", "1": "norm1", "2": "conv", "3": "norm2"}  # SAM's 2D neck, used for tokens of slices


def import_sam(path: Path, profile: str, variant: Variant = "released", seed: int = 0, **changes: Any) -> VoxSAMNetwork:
    """A network to fine-tune: SAM's encoder from `path`, the rest fresh (from `seed`), on the CPU, in eval mode.

    `profile` (kits, lits, pancreas, colon) determines axes and intensities, `variant` the arithmetic; `changes` are
    other fields of the ModelConfig, such as tokens="slices", adapter="none" for SAM's own encoder. Raises FileError or
    CheckpointError; nothing in the file is executed.
    """
    preprocessing = preprocessing_of(profile, variant)
    path = Path(path)
    encoder = read_sam(path)
    config = size_of(encoder, str(path)).in_profile(variant).model_copy(update=changes)
    card = Card(
        name=f"sam_{config.size}",
        config=config,
        preprocessing=preprocessing,
        description={
            "training": UNTRAINED,
            "source": f"frozen part from {path.name}, SAM's image encoder; the rest fresh from seed {seed}",
            "licence": "Apache-2.0 (SAM's weights)",
        },
    )
    return start_from_sam(card, encoder, seed, str(path))


def start_from_sam(card: Card, encoder: Mapping[str, Tensor], seed: int, origin: str) -> VoxSAMNetwork:
    """The network of `card` with the tensors `encoder` of SAM's image encoder (Meta's names, without prefix).

    The global random state is unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VoxSAMNetwork(card)
    load_sam(network, encoder, origin)
    return network.eval()


def load_sam(network: VoxSAMNetwork, encoder: Mapping[str, Tensor], origin: str) -> None:
    """Replace the network's frozen tensors by SAM's; what VoxSAM adds is left as it is.

    For tokens of a volume, rel_pos_d starts as (rel_pos_h + rel_pos_w) / 2 (docs/released.md, "Image encoder"), and the
    2D neck is left out; for tokens of slices it is the neck. Raises CheckpointError if names or shapes do not fit.
    """
    slices = network.config.tokens == "slices"
    state = {new: translate_tensor(new, encoder[name]).float() for name in encoder if (new := sam_name(name, origin))}
    if not slices:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{ENCODER}necks.")}
    for block in range(0 if slices else network.config.depth):
        stem = f"image_encoder.blocks.{block}.attention.rel_pos_"
        if f"{stem}h" in state and f"{stem}w" in state:
            state[f"{stem}d"] = (state[f"{stem}h"] + state[f"{stem}w"]) / 2
    fresh = {name: tensor for name, tensor in network.state_dict().items() if not from_sam(name, slices)}
    check_tensors(network, {**fresh, **state}, origin)
    network.load_state_dict(state, strict=False, assign=True)


def is_sam(path: Path) -> bool:
    """Whether a file is not a VoxSAM model, and so may be SAM's. Raises FileError if it cannot be read."""
    if not is_safetensors(first_bytes(path, 16, WANTED_SAM)):
        return True
    return METADATA_KEY not in open_safetensors(path)[0]


def read_sam(path: Path) -> dict[str, Tensor]:
    """`encoder_tensors` of a file. Raises FileError or CheckpointError; nothing in the file is executed."""
    if not is_safetensors(first_bytes(path, 16, WANTED_SAM)):
        return encoder_tensors(read_pickle(path, WANTED_SAM), str(path))
    metadata, tensors = open_safetensors(path)
    if METADATA_KEY in metadata:
        raise CheckpointError(f"{path} is a VoxSAM model already", WANTED_SAM, "use it as it is")
    return encoder_tensors(tensors, str(path))


def encoder_tensors(contents: Mapping[Any, Any], origin: str) -> dict[str, Tensor]:
    """The tensors of SAM's image encoder in a checkpoint, under Meta's names, without prefix.

    Raises CheckpointError if `contents` is not a SAM checkpoint.
    """
    if not set(RELEASED_PARTS).isdisjoint(contents):
        raise CheckpointError(f"{origin} is a 3DSAM-adapter checkpoint", WANTED_SAM, "import it with --kind released")
    found = {}
    for name, tensor in contents.items():
        prefix, _, rest = str(name).partition(".")
        if prefix == "vision_encoder":
            for pattern, new in _HUGGING_FACE:
                rest = re.sub(f"^{pattern}", new, rest)
        if prefix in PREFIXES and isinstance(tensor, Tensor):
            found[rest] = tensor
    if not found:
        raise CheckpointError(f"{origin} has no tensors of {' or '.join(PREFIXES)}", WANTED_SAM, "give such a file")
    return found


def size_of(encoder: Mapping[str, Tensor], origin: str) -> ModelConfig:
    """vit_b, vit_l or vit_h, by width and number of blocks. Raises CheckpointError for anything else."""
    if "pos_embed" not in encoder:
        raise CheckpointError(f"{origin} lacks image_encoder.pos_embed", WANTED_SAM, "variants of SAM do not fit")
    width = encoder["pos_embed"].shape[-1]
    depth = len({name.split(".")[1] for name in encoder if name.startswith("blocks.")})
    for config in (VIT_B, VIT_L, VIT_H):
        if (config.width, config.depth) == (width, depth):
            return config
    raise CheckpointError(
        f"{origin} is an encoder of width {width} with {depth} blocks", WANTED_SAM, "give one of these"
    )


def sam_name(name: str, origin: str) -> str | None:
    """VoxSAM's name of a tensor of SAM's encoder. Raises CheckpointError for one that SAM's encoder does not have."""
    neck = re.fullmatch(r"neck\.([0-3])\.(weight|bias)", name)
    if neck:
        return f"{ENCODER}necks.0.{_NECK[neck[1]]}.{neck[2]}"
    try:
        return translate_name("encoder", name)
    except KeyError as error:
        raise CheckpointError(
            f"{origin} has a tensor that SAM's encoder does not have, {name}", WANTED_SAM, "variants of SAM do not fit"
        ) from error


def from_sam(name: str, slices: bool) -> bool:
    """Whether a tensor must come from the SAM file: the encoder's, except those that VoxSAM adds to it."""
    added = r"patch_embedding\.slice_|depth_positions|.*\.adapter\.|shared_adapter\.|.*\.rel_pos_gain"
    added += "" if slices else r"|necks\."
    return re.match(rf"image_encoder\.(?!{added})", name) is not None

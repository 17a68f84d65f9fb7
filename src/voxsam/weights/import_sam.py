"""SAM's own 2D weights as the frozen part of a VoxSAM network; what VoxSAM adds starts fresh, to be fine-tuned.

Two layouts are read: Meta's sam_vit_{b,l,h}_*.pth, and Hugging Face's SamModel (.safetensors or pytorch_model.bin).
The size is told by the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxsam.errors import CheckpointError
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import VIT_B, VIT_H, VIT_L, ModelConfig
from voxsam.network.tuning import ENCODER
from voxsam.weights.checkpoint import check_tensors
from voxsam.weights.file import METADATA_KEY, first_bytes, is_safetensors, open_safetensors, read_pickle
from voxsam.weights.import_released import Variant, looks_released, preprocessing_of, translate_name, translate_tensor

WANTED = "a SAM checkpoint (sam_vit_b, sam_vit_l or sam_vit_h; Meta's .pth or Hugging Face's SamModel)"
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
_NECK = {"0": "reduce", "1": "norm1", "2": "conv", "3": "norm2"}  # SAM's 2D neck, used where tokens are slices'


def import_sam(path: Path, profile: str, variant: Variant = "released", seed: int = 0, **changes: Any) -> VoxSAMNetwork:
    """A network to fine-tune: SAM's encoder from `path`, the rest fresh (from `seed`), on the CPU, in eval mode.

    `profile` (kits, lits, pancreas, colon) decides axes and intensities, `variant` the arithmetic; `changes` are other
    fields of the ModelConfig, such as tokens="slices", adapter="none": SAM's own encoder. Raises FileError or
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

    The global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VoxSAMNetwork(card)
    load_sam(network, encoder, origin)
    return network.eval()


def load_sam(network: VoxSAMNetwork, encoder: Mapping[str, Tensor], origin: str) -> None:
    """Put SAM's tensors in the place of the network's frozen ones; what VoxSAM adds is left as it is.

    For tokens of a volume, rel_pos_d starts as (rel_pos_h + rel_pos_w) / 2 (docs/released.md, "Image encoder"), and the
    2D neck has no place; for tokens of slices it is the neck. Raises CheckpointError if names or shapes do not fit.
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
    """Whether a file is no VoxSAM model, and so may be SAM's. Raises FileError if it cannot be read."""
    if not is_safetensors(first_bytes(path, 16, WANTED)):
        return True
    return METADATA_KEY not in open_safetensors(path)[0]


def read_sam(path: Path) -> dict[str, Tensor]:
    """`encoder_tensors` of a file. Raises FileError or CheckpointError; nothing in the file is executed."""
    return encoder_tensors(_read(path), str(path))


def encoder_tensors(contents: Mapping[Any, Any], origin: str) -> dict[str, Tensor]:
    """The tensors of SAM's image encoder in a checkpoint, under Meta's names, without prefix.

    Raises CheckpointError if `contents` is no SAM checkpoint.
    """
    if looks_released(contents):
        raise CheckpointError(f"{origin} is a 3DSAM-adapter checkpoint", WANTED, "import it with --kind released")
    found = {}
    for name, tensor in contents.items():
        prefix, _, rest = str(name).partition(".")
        if prefix == "vision_encoder":
            for pattern, new in _HUGGING_FACE:
                rest = re.sub(f"^{pattern}", new, rest)
        if prefix in PREFIXES and isinstance(tensor, Tensor):
            found[rest] = tensor
    if not found:
        raise CheckpointError(f"{origin} has no tensors of {' or '.join(PREFIXES)}", WANTED, "give such a file")
    return found


def size_of(encoder: Mapping[str, Tensor], origin: str) -> ModelConfig:
    """vit_b, vit_l or vit_h, by width and number of blocks. Raises CheckpointError for anything else."""
    if "pos_embed" not in encoder:
        raise CheckpointError(f"{origin} lacks image_encoder.pos_embed", WANTED, "variants of SAM do not fit")
    width = encoder["pos_embed"].shape[-1]
    depth = len({name.split(".")[1] for name in encoder if name.startswith("blocks.")})
    for config in (VIT_B, VIT_L, VIT_H):
        if (config.width, config.depth) == (width, depth):
            return config
    raise CheckpointError(f"{origin} is an encoder of width {width} with {depth} blocks", WANTED, "give one of these")


def _read(path: Path) -> Mapping[Any, Any]:
    if not is_safetensors(first_bytes(path, 16, WANTED)):
        return read_pickle(path, WANTED)
    metadata, tensors = open_safetensors(path)
    if METADATA_KEY in metadata:
        raise CheckpointError(f"{path} is a VoxSAM model already", WANTED, "use it as it is")
    return tensors


def sam_name(name: str, origin: str) -> str | None:
    """VoxSAM's name of a tensor of SAM's encoder. Raises CheckpointError for one that SAM's encoder does not have."""
    neck = re.fullmatch(r"neck\.([0-3])\.(weight|bias)", name)
    if neck:
        return f"{ENCODER}necks.0.{_NECK[neck[1]]}.{neck[2]}"
    try:
        return translate_name("encoder", name)
    except KeyError as error:
        raise CheckpointError(
            f"{origin} has a tensor that SAM's encoder does not have, {name}", WANTED, "variants of SAM do not fit"
        ) from error


def from_sam(name: str, slices: bool) -> bool:
    """Whether a tensor must come from the SAM file: the encoder's, but for what VoxSAM adds to it."""
    added = r"patch_embedding\.slice_|depth_positions|.*\.adapter\.|shared_adapter\.|.*\.rel_pos_gain"
    added += "" if slices else r"|necks\."
    return re.match(rf"image_encoder\.(?!{added})", name) is not None

"""Which tensors fine-tuning changes: the small tuned part, and SAM's frozen rest, which a delta names by hash.

Tuned (paper, Sec. 3.2; docs/released.md, "Image encoder"): in the encoder the slice convolution, the depth table, both
LayerNorms and the adapter of each block, the relative positions along depth, the necks; the whole prompt encoder and
mask decoder. An adapter whose authors leave the LayerNorms unchanged (`AdapterKind.norms`) has them frozen in
training; by name they still count as tuned, so that files made from one SAM file name the same base, whatever the
adapter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from voxsam.network.adapters import adapter_kind
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import ModelConfig

ENCODER = "image_encoder."
_TUNED_IN_ENCODER = re.compile(
    r"image_encoder\.("
    r"patch_embedding\.slice_(weight|bias)|depth_positions|necks\..+|shared_adapter\..+|"
    r"blocks\.\d+\.(norm[12]\..+|adapter\..+|attention\.rel_pos_d))"
)


_NORM = re.compile(r"image_encoder\.blocks\.\d+\.norm[12]\..+")


class Counts(NamedTuple):
    """Sizes of a network: of all parameters and of the tuned ones, overall and in the image encoder."""

    total: int
    tuned: int
    encoder_total: int
    encoder_tuned: int


def is_tuned(name: str) -> bool:
    """Whether the tensor `name` can be tuned; the rest of the network is SAM's, and frozen."""
    return not name.startswith(ENCODER) or _TUNED_IN_ENCODER.fullmatch(name) is not None


def trains(name: str, config: ModelConfig) -> bool:
    """Whether fine-tuning with the adapter of `config` changes the parameter `name`."""
    return is_tuned(name) and (_NORM.fullmatch(name) is None or adapter_kind(config.adapter).norms)


def freeze(network: VoxSAMNetwork) -> VoxSAMNetwork:
    """Enable gradients for the tuned parameters alone; returns the same network."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains(name, network.config))
    return network


def counts(network: Promptable) -> Counts:
    """Count all parameters and the tuned ones (ViT-B: 25,198,976 tuned, of these 15,209,984 in the encoder)."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    encoder = {name: size for name, size in sizes.items() if name.startswith(ENCODER)}
    tuned, encoder_tuned = (
        sum(size for name, size in part.items() if trains(name, network.config)) for part in (sizes, encoder)
    )
    return Counts(sum(sizes.values()), tuned, sum(encoder.values()), encoder_tuned)


def paper_accounting(network: VoxSAMNetwork) -> int:
    """The paper's count of tuned parameters (ViT-B: 25,462,400 = 25.46 M, Table 2).

    The released code declares a token-to-image attention in each layer of a prompt encoder, counts it, and never calls
    it; VoxSAM does not build it. Positional prompts do call it, automatic networks have none: nothing is missing there.
    """
    config = network.config
    if config.prompt_kind == "positional" or network.card.automatic:
        return counts(network).tuned
    return counts(network).tuned + len(config.prompt_levels) * config.prompt_layers * _cross_attention_size(config)


def _cross_attention_size(config: ModelConfig) -> int:
    """Four linear maps with bias between the feature width and an inner width half as large (131,712 for 256)."""
    width, inner = config.feature_width, config.feature_width // 2
    return 3 * (width * inner + inner) + inner * width + width


def frozen_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the frozen tensors among `tensors`; tuned ones do not count.

    Every model made from the same SAM weights thus has the same hash, whatever its tuning, file or stored precision.
    """
    return tensors_sha256({name: tensor for name, tensor in tensors.items() if not is_tuned(name)})


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors sorted by name: a line "name float32 shape", then the values, little-endian float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} float32 {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()

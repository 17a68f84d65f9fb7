"""Faster forms of the network's parts, each equivalent to its reference in network/ (`install`), and devices."""

from __future__ import annotations

import torch
from torch import nn

from voxsam.errors import UnsupportedError
from voxsam.kernels.block import (
    FastAttention,
    FastBlock,
    FastGridLinear,
    FastNeck,
    FastPromptEncoder,
    FastSpatialAdapter,
)
from voxsam.kernels.convolution import FastConvolution, FastInstanceNorm, FastMaskDecoder, FastPlaneConvolution
from voxsam.kernels.linear import Lower, Precision, require_precision
from voxsam.network.adapters import GridLinear, SpatialAdapter
from voxsam.network.attention import WindowAttention
from voxsam.network.block import Block
from voxsam.network.image_encoder import Neck
from voxsam.network.mask_decoder import MaskDecoder
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import PromptEncoder
from voxsam.network.promptable import Promptable

FASTER: dict[type[nn.Module], type[nn.Module]] = {
    Block: FastBlock,
    WindowAttention: FastAttention,
    GridLinear: FastGridLinear,
    SpatialAdapter: FastSpatialAdapter,
    Neck: FastNeck,
    PromptEncoder: FastPromptEncoder,
    MaskDecoder: FastMaskDecoder,
    nn.Conv2d: FastPlaneConvolution,
    nn.Conv3d: FastConvolution,
    nn.InstanceNorm3d: FastInstanceNorm,
}


def install(network: Promptable, precision: Precision = "float32") -> None:
    """Give each part of the network the class of its faster form; its tensors stay where they are.

    It can then be trained, copied, moved and saved as before. With `precision` "bf16" or "int8" it also encodes in that
    precision where no gradient is kept, with an error (docs/performance.md, "Lower precision"): on a CPU only the
    encoder's products are computed so, while its parameters and the decoder stay float32; on a GPU the whole network
    becomes bf16. Call it once the device is final, and again for another precision. Raises UnsupportedError for a
    precision that the machine has no instructions for, or a lower one for a network that is not VoxSAM's own.
    """
    device = next(network.parameters()).device
    require_precision(precision, device)
    if not isinstance(network, VoxSAMNetwork):
        if precision != "float32":
            raise UnsupportedError(f"{precision} for the model {network.card.name}", "float32", "leave --precision out")
        return
    for module in network.modules():
        if type(module) in FASTER and not (isinstance(module, nn.Conv3d) and not _keeps_grid(module)):
            module.__class__ = FASTER[type(module)]  # type: ignore[assignment]
        if isinstance(module, Lower):
            module.precision = precision
    if device.type != "cpu" and precision == "bf16":
        network.bfloat16()


def _keeps_grid(convolution: nn.Conv3d) -> bool:
    """Whether a convolution is 3x3x3 with one voxel of zero padding, as `convolve` is."""
    shape = convolution.kernel_size, convolution.padding, convolution.stride, convolution.dilation
    return shape == ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)) and convolution.padding_mode == "zeros"


def choose_device(name: str) -> torch.device:
    """The device of "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises UnsupportedError for any other name, and for a device that this machine or this PyTorch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    require_device_name(name)
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise _absent(name, "NVIDIA GPU that it can use")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise _absent(name, f"GPU number {number}: it has {torch.cuda.device_count()}, counted from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise _absent(name, "Apple GPU that it can use")
    return torch.device(name)


def keep_float32(device: torch.device) -> None:
    """Make convolutions on an NVIDIA GPU keep float32's 24 bits, from now on in this process; elsewhere do nothing.

    cuDNN's own default is TF32, with 11 bits. Matrix products keep float32 by torch's default.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def require_device_name(name: str) -> None:
    """Raises UnsupportedError for a name that is not a device on any machine."""
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UnsupportedError(f"device {name!r}", "auto, cpu, cuda or mps", "choose one of them")


def _absent(name: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"device {name!r}: this machine, with PyTorch {torch.__version__}, has no {what}",
        "a device that is there",
        "take --device cpu, or install a PyTorch built for the device",
    )

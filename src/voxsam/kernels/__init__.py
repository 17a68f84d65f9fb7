"""Faster forms of parts of the network, installed on one by `install`: each equal to its part in network/."""

from __future__ import annotations

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
from voxsam.kernels.convolution import FastConvolution, FastMaskDecoder, FastPlaneConvolution
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
}


def install(network: Promptable, precision: Precision = "float32") -> None:
    """Give each part of the network the class of its faster form; its tensors stay where they are.

    It may then be trained, copied, moved and saved as before. With `precision` "bf16" or "int8" it also encodes in that
    precision where no gradient is kept, with an error (docs/performance.md, "Lower precision"): on a CPU the encoder's
    products are made so, its parameters and the decoder stay float32; on a GPU the whole network becomes bf16. Call it
    when the device is final, again for another precision. Raises UnsupportedError for a precision that the machine has
    no instructions for, or a network other than VoxSAM's, which stays as it is in float32.
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
    """Whether it is a 3x3x3 convolution with zeros around, as `convolve` is."""
    shape = convolution.kernel_size, convolution.padding, convolution.stride, convolution.dilation
    return shape == ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)) and convolution.padding_mode == "zeros"

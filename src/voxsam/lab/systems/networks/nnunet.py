"""nnU-Net's own networks from its authors' dynamic-network-architectures: plain, and with a residual encoder.

Isensee et al., Nature Methods 2021; ResEnc U-Net: MICCAI 2024. Their plan, how often each axis is halved and with which
kernels, follows from the crop as in nnU-Net, or is given.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from voxsam.errors import UnsupportedError
from voxsam.lab.systems.networks.parts import CLASSES, NetworkKind, Options, Size, require_crop, require_library

LIBRARY = "dynamic_network_architectures"
REMEDY = "pip install --no-deps dynamic-network-architectures"  # its dependencies end in torchvision
MAX_HALVINGS = 5
LEAST_SIDE = 4  # voxels of the deepest map
Step = tuple[PositiveInt, PositiveInt, PositiveInt]


class PlanOptions(Options):
    """What both networks of nnU-Net are planned with."""

    width: PositiveInt = Field(32, description="channels at full resolution; they double at each level")
    widest: PositiveInt = Field(320, description="most channels of a level")
    strides: tuple[Step, ...] | None = Field(None, description="steps between levels, each (D, H, W); else by the crop")
    kernels: tuple[Step, ...] | None = Field(None, description="kernel of each level, each (D, H, W); else 3 x 3 x 3")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strides is not None and self.kernels is not None and len(self.kernels) != len(self.strides) + 1:
            raise ValueError("kernels: one more than strides")
        return self


class NnUNetOptions(PlanOptions):
    """The plan of the paper's figure (spacing 2.5/0.8/0.8 mm, crop 40 x 224 x 224) has 30,703,498 parameters."""

    convolutions: PositiveInt = Field(2, description="convolutions of each level, in encoder and decoder")


def planned_strides(size: Size) -> list[Size]:
    """The steps between levels for crops of one spacing on all axes: an axis is halved as long as 4 voxels are left.

    At most five times, as nnU-Net's planner does it. A side that cannot be halved evenly keeps its voxels.
    """
    sides, strides = list(size), []
    for _ in range(MAX_HALVINGS):
        step = [2 if n % 2 == 0 and n // 2 >= LEAST_SIDE else 1 for n in sides]
        if step == [1, 1, 1]:
            break
        sides = [n // s for n, s in zip(sides, step, strict=True)]
        strides.append((step[0], step[1], step[2]))
    return strides


def plan(size: Size, channels: int, options: PlanOptions, system: str) -> dict[str, Any]:
    """The arguments that both networks have in common.

    Raises UnsupportedError without the library, or for a crop that the plan does not divide.
    """
    require_library(LIBRARY, system, REMEDY)
    strides = planned_strides(size) if options.strides is None else list(options.strides)
    levels = len(strides) + 1
    kernels = [(3, 3, 3)] * levels if options.kernels is None else list(options.kernels)
    if len(kernels) != levels:
        raise UnsupportedError(f"{len(kernels)} kernels for {system}", f"{levels}, one for each level", "change them")
    step = [1, 1, 1]
    for stride in strides:
        step = [a * b for a, b in zip(step, stride, strict=True)]
    require_crop(size, (step[0], step[1], step[2]), system)
    return {
        "input_channels": channels,
        "num_classes": CLASSES,
        "n_stages": levels,
        "features_per_stage": [min(options.width * 2**level, options.widest) for level in range(levels)],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [[1, 1, 1], *(list(stride) for stride in strides)],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


def prepared(network: nn.Module) -> nn.Module:
    """The same network for the common loop and a model file.

    The heads of all levels but the finest are fixed: only deep supervision would train them. Of modules that have
    several names one is kept, as a model file wants.
    """
    for head in network.decoder.seg_layers[:-1]:  # type: ignore[union-attr, index]
        head.requires_grad_(False)
    del network.decoder.encoder  # type: ignore[union-attr]
    for block in network.modules():
        if "all_modules" in block._modules:
            for alias in [name for name in block._modules if name != "all_modules"]:
                delattr(block, alias)
    return network


def nnunet_network(size: Size, channels: int, options: NnUNetOptions) -> nn.Module:
    """nnU-Net's plain convolutional U-Net. Raises UnsupportedError as `plan` does."""
    fields = plan(size, channels, options, "nnunet-network")
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    count = options.convolutions
    network = PlainConvUNet(**fields, n_conv_per_stage=count, n_conv_per_stage_decoder=count)
    return prepared(network)


class ResEncOptions(PlanOptions):
    """With six levels (a crop of 128^3) and the defaults: 102,349,770 parameters."""

    blocks: tuple[PositiveInt, ...] = Field((1, 3, 4, 6, 6, 6), description="residual blocks of the encoder's levels")
    convolutions: PositiveInt = Field(1, description="convolutions of each level of the decoder")


def resenc_unet(size: Size, channels: int, options: ResEncOptions) -> nn.Module:
    """ResEnc U-Net; of `blocks` as many count as there are levels. Raises UnsupportedError as for nnU-Net's network."""
    fields = plan(size, channels, options, "resenc-unet")
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    levels = fields["n_stages"]
    blocks = [*options.blocks, *[options.blocks[-1]] * levels][:levels]
    network = ResidualEncoderUNet(
        **fields, n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[options.convolutions] * (levels - 1)
    )
    return prepared(network)


NETWORKS = {
    "nnunet-network": NetworkKind(NnUNetOptions, nnunet_network),
    "resenc-unet": NetworkKind(ResEncOptions, resenc_unet),
}

"""Networks that libraries provide.

From dynamic-network-architectures, by nnU-Net's authors: nnU-Net's own network (Isensee et al., Nature Methods 2021),
also with a residual encoder (MICCAI 2024). How often each axis is halved, and with which kernels, follows from the crop
as in nnU-Net, or is given. From MONAI: UNETR, Swin-UNETR (with its self-supervised weights), SegResNet and MedNeXt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from voxsam.errors import CheckpointError, UnsupportedError
from voxsam.lab.systems.networks import (
    CLASSES,
    Four,
    NetworkKind,
    Options,
    Size,
    Three,
    cube,
    require_crop,
    require_library,
)
from voxsam.weights.file import read_pickle

LIBRARY = "dynamic_network_architectures"
REMEDY = "pip install --no-deps dynamic-network-architectures"  # its dependencies would pull in torchvision
MAX_HALVINGS = 5
LEAST_SIDE = 4  # voxels of the deepest map


class PlanOptions(Options):
    """The options that both nnU-Net networks share."""

    width: PositiveInt = Field(32, description="channels at full resolution; they double at each level")
    widest: PositiveInt = Field(320, description="most channels of a level")
    strides: tuple[Three, ...] | None = Field(
        None, description="steps between levels, each (D, H, W); else by the crop"
    )
    kernels: tuple[Three, ...] | None = Field(None, description="kernel of each level, each (D, H, W); else 3 x 3 x 3")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strides is not None and self.kernels is not None and len(self.kernels) != len(self.strides) + 1:
            raise ValueError("kernels: one more than strides")
        return self


class NnUNetOptions(PlanOptions):
    """The plan of the paper's figure (spacing 2.5/0.8/0.8 mm, crop 40 x 224 x 224) has 30,703,498 parameters."""

    convolutions: PositiveInt = Field(2, description="convolutions of each level, in encoder and decoder")


def planned_strides(size: Size) -> list[Size]:
    """The strides between levels for isotropic crops: an axis is halved as long as 4 voxels remain.

    At most five times, as in nnU-Net's planner. An odd side is not halved.
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
    """The constructor arguments that both networks have in common.

    Raises UnsupportedError without the library, or for a crop that the strides do not divide.
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
    """Prepare a network for the common loop and for a model file; changed in place.

    The heads of all levels but the finest are frozen: only deep supervision would train them. Modules with several
    names keep only one, as a model file requires.
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
    """The defaults have 102,349,770 parameters with six levels (a crop of 128^3)."""

    blocks: tuple[PositiveInt, ...] = Field((1, 3, 4, 6, 6, 6), description="residual blocks of the encoder's levels")
    convolutions: PositiveInt = Field(1, description="convolutions of each level of the decoder")


def resenc_unet(size: Size, channels: int, options: ResEncOptions) -> nn.Module:
    """ResEnc U-Net; `blocks` is cut, or its last number repeated, to fit. Raises UnsupportedError as `plan` does."""
    fields = plan(size, channels, options, "resenc-unet")
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    levels = fields["n_stages"]
    blocks = [*options.blocks, *[options.blocks[-1]] * levels][:levels]
    network = ResidualEncoderUNet(
        **fields, n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[options.convolutions] * (levels - 1)
    )
    return prepared(network)


UNETR_PATCH = 16  # side of a token's cube, voxels


class UNETROptions(Options):
    """Hatamizadeh et al., WACV 2022. The defaults are MONAI's and the paper's: 92,943,586 parameters at 64 x 160^2."""

    width: PositiveInt = Field(16, description="channels of the decoder at full resolution")
    hidden: PositiveInt = Field(768, description="width of the transformer")
    mlp: PositiveInt = Field(3072, description="hidden width of the transformer's MLPs")
    heads: PositiveInt = Field(12, description="heads of the transformer's attention")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError("heads must divide hidden")
        return self


def unetr(size: Size, channels: int, options: UNETROptions) -> nn.Module:
    """UNETR. Raises UnsupportedError for a crop whose sides are not multiples of 16, or without einops."""
    from monai.networks.nets import UNETR

    require_crop(size, cube(UNETR_PATCH), "unetr")
    require_library("einops", "unetr", "pip install einops")
    network = UNETR(
        in_channels=channels,
        out_channels=CLASSES,
        img_size=size,
        feature_size=options.width,
        hidden_size=options.hidden,
        mlp_dim=options.mlp,
        num_heads=options.heads,
    )
    for block in network.vit.blocks:
        block.norm_cross_attn.requires_grad_(False)  # type: ignore[union-attr]  # MONAI's, unused by UNETR
    return network


SWIN_STEP = 32  # voxels of the crop for each token of the deepest map
SWIN_WEIGHTS = "MONAI's model_swinvit.pt: a self-supervised Swin transformer"


class SwinUNETROptions(Options):
    """Hatamizadeh et al., BrainLes 2021. The defaults are the original's: 62,186,708 parameters for any crop."""

    once: ClassVar[tuple[str, ...]] = ("weights",)

    width: PositiveInt = Field(48, multiple_of=12, description="channels of the first stage; they double at each stage")
    depths: Four = Field((2, 2, 2, 2), description="blocks in each of the four stages")
    heads: Four = Field((3, 6, 12, 24), description="heads of the attention in each stage")
    window: PositiveInt = Field(7, description="side of the attention windows, tokens")
    recompute: bool = Field(False, description="keep the inputs of blocks only: less memory, more time")
    weights: str | None = Field(None, description="file of self-supervised weights to begin with: model_swinvit.pt")


def swin_unetr(size: Size, channels: int, options: SwinUNETROptions) -> nn.Module:
    """Swin-UNETR. Raises UnsupportedError for a crop whose sides are not multiples of 32, or all 32, or without einops;
    FileError or CheckpointError for weights that do not fit its transformer.
    """
    from monai.networks.nets import SwinUNETR

    require_crop(size, cube(SWIN_STEP), "swin-unetr", several=True)
    require_library("einops", "swin-unetr", "pip install einops")
    network = SwinUNETR(
        in_channels=channels,
        out_channels=CLASSES,
        feature_size=options.width,
        depths=options.depths,
        num_heads=options.heads,
        window_size=options.window,
        use_checkpoint=options.recompute,
    )
    if options.weights is not None:
        load_self_supervised(network.swinViT, Path(options.weights))
    return network


def load_self_supervised(transformer: nn.Module, path: Path) -> None:
    """Load the transformer's tensors from MONAI's file; those of its pretraining tasks are left out.

    The file is a dictionary with "state_dict", whose names begin with "module." and whose MLPs are called fc1 and fc2.
    Raises FileError if it cannot be read, CheckpointError if it is of another kind or lacks a tensor of this shape.
    """
    state = read_pickle(path, SWIN_WEIGHTS).get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no state_dict", SWIN_WEIGHTS, "give the file as it was downloaded")
    tensors = {}
    for name, own in transformer.named_parameters():
        theirs = "module." + name.replace("mlp.linear", "mlp.fc")
        tensor = state.get(theirs)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} lacks the tensor {theirs}", SWIN_WEIGHTS, "give the file as it was downloaded"
            )
        if tensor.shape != own.shape:
            given, expected = (" x ".join(map(str, shape)) for shape in (tensor.shape, own.shape))
            remedy = "leave width, depths, heads, window and the number of channels as they were trained"
            raise CheckpointError(f"{path}: {theirs} has shape {given}", expected, remedy)
        tensors[name] = tensor
    transformer.load_state_dict(tensors, strict=False)  # buffers are computed


class SegResNetOptions(Options):
    """Myronenko, winner of BraTS 2018. The defaults have 18,796,002 parameters for any crop."""

    width: PositiveInt = Field(32, multiple_of=8, description="channels at full resolution; they double at each level")
    blocks_down: tuple[PositiveInt, ...] = Field(
        (1, 2, 2, 4), min_length=2, description="residual blocks of the encoder at each level"
    )
    blocks_up: tuple[NonNegativeInt, ...] = Field((1, 1, 1), description="of the decoder, from the deepest level up")


def segresnet(size: Size, channels: int, options: SegResNetOptions) -> nn.Module:
    """SegResNet. Raises UnsupportedError for a crop that its levels cannot halve."""
    from monai.networks.nets import SegResNet

    step = 2 ** (len(options.blocks_down) - 1)
    require_crop(size, cube(step), "segresnet")
    return SegResNet(
        in_channels=channels,
        out_channels=CLASSES,
        init_filters=options.width,
        blocks_down=options.blocks_down,
        blocks_up=options.blocks_up,
    )


MEDNEXT_STEP = 16  # voxels of the crop for each voxel of the deepest map

# MedNeXt's variants in its paper: the expansion ratio and the number of blocks at each level, from the finest to the
# deepest; the decoder mirrors the encoder.
EXPANSION = {"S": (2, 2, 2, 2, 2), "B": (2, 3, 4, 4, 4), "M": (2, 3, 4, 4, 4), "L": (3, 4, 8, 8, 8)}
BLOCKS = {"S": (2, 2, 2, 2, 2), "B": (2, 2, 2, 2, 2), "M": (3, 4, 4, 4, 4), "L": (3, 4, 8, 8, 8)}


class MedNeXtOptions(Options):
    """Roy et al., MICCAI 2023. The defaults have 5,550,914 parameters for any crop; M 17,533,506, L 61,726,754."""

    variant: Literal["S", "B", "M", "L"] = Field("S", description="S, B, M or L: how deep, and how far blocks expand")
    width: PositiveInt = Field(32, description="channels at full resolution; they double at each level")
    kernel: Literal[3, 5, 7] = Field(3, description="side of the depth-wise convolutions: 3 or 5 in the paper")


def mednext(size: Size, channels: int, options: MedNeXtOptions) -> nn.Module:
    """MedNeXt without deep supervision. Raises UnsupportedError if the sides are not multiples of 16, or all are 16."""
    from monai.networks.nets import MedNeXt

    require_crop(size, cube(MEDNEXT_STEP), "mednext", several=True)
    ratios, blocks = EXPANSION[options.variant], BLOCKS[options.variant]
    return MedNeXt(
        in_channels=channels,
        out_channels=CLASSES,
        init_filters=options.width,
        kernel_size=options.kernel,
        encoder_expansion_ratio=ratios[:4],
        bottleneck_expansion_ratio=ratios[4],
        decoder_expansion_ratio=ratios[3::-1],
        blocks_down=blocks[:4],
        blocks_bottleneck=blocks[4],
        blocks_up=blocks[3::-1],
        use_residual_connection=True,
    )


NETWORKS = {
    "nnunet-network": NetworkKind(NnUNetOptions, nnunet_network),
    "resenc-unet": NetworkKind(ResEncOptions, resenc_unet),
    "unetr": NetworkKind(UNETROptions, unetr),
    "swin-unetr": NetworkKind(SwinUNETROptions, swin_unetr),
    "segresnet": NetworkKind(SegResNetOptions, segresnet),
    "mednext": NetworkKind(MedNeXtOptions, mednext),
}

"""MedNeXt (Roy et al., MICCAI 2023): MONAI's, a ConvNeXt of encoder and decoder with expanding blocks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from voxsam.lab.systems.networks.parts import CLASSES, Options, Size, cube, require_crop

STEP = 16  # voxels of the crop for each voxel of the deepest map

# The paper's variants: how many times wider blocks are inside, and how many there are, from the finest level to the
# deepest; the decoder mirrors the encoder.
EXPANSION = {"S": (2, 2, 2, 2, 2), "B": (2, 3, 4, 4, 4), "M": (2, 3, 4, 4, 4), "L": (3, 4, 8, 8, 8)}
BLOCKS = {"S": (2, 2, 2, 2, 2), "B": (2, 2, 2, 2, 2), "M": (3, 4, 4, 4, 4), "L": (3, 4, 8, 8, 8)}


class MedNeXtOptions(Options):
    """With the defaults: 5,550,914 parameters for any crop; M 17,533,506, L 61,726,754."""

    variant: Literal["S", "B", "M", "L"] = Field("S", description="S, B, M or L: how deep, and how far blocks expand")
    width: PositiveInt = Field(32, description="channels at full resolution; they double at each level")
    kernel: Literal[3, 5, 7] = Field(3, description="side of the depth-wise convolutions: 3 or 5 in the paper")


def build(size: Size, channels: int, options: MedNeXtOptions) -> nn.Module:
    """MedNeXt without deep supervision. Raises UnsupportedError for a crop whose sides are no multiples of 16."""
    from monai.networks.nets import MedNeXt

    require_crop(size, cube(STEP), "mednext", several=True)
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


OPTIONS = MedNeXtOptions

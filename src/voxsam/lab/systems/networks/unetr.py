"""UNETR (Hatamizadeh et al., WACV 2022): MONAI's, a vision transformer with a convolutional decoder."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from voxsam.lab.systems.networks.parts import CLASSES, Options, Size, cube, require_crop, require_library

PATCH = 16  # side of the cube of voxels that one token sees


class UNETROptions(Options):
    """The defaults are MONAI's and the paper's: 92,943,586 parameters for a crop of 64 x 160 x 160."""

    width: PositiveInt = Field(16, description="channels of the decoder at full resolution")
    hidden: PositiveInt = Field(768, description="width of the transformer")
    mlp: PositiveInt = Field(3072, description="hidden width of the transformer's MLPs")
    heads: PositiveInt = Field(12, description="heads of the transformer's attention")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError("heads must divide hidden")
        return self


def build(size: Size, channels: int, options: UNETROptions) -> nn.Module:
    """UNETR. Raises UnsupportedError for a crop whose sides are no multiples of 16, or without einops."""
    from monai.networks.nets import UNETR

    require_crop(size, cube(PATCH), "unetr")
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
        block.norm_cross_attn.requires_grad_(False)  # type: ignore[union-attr]  # MONAI's, for what UNETR has not
    return network


OPTIONS = UNETROptions

"""ResEnc U-Net (Isensee et al., MICCAI 2024): nnU-Net's network with a residual encoder, from its authors' library."""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import nn

from voxsam.lab.systems.networks.nnunet import PlanOptions, plan, prepared
from voxsam.lab.systems.networks.parts import Options, Size


class ResEncOptions(PlanOptions):
    """With six levels (a crop of 128^3) and the defaults: 102,349,770 parameters."""

    blocks: tuple[PositiveInt, ...] = Field((1, 3, 4, 6, 6, 6), description="residual blocks of the encoder's levels")
    convolutions: PositiveInt = Field(1, description="convolutions of each level of the decoder")


def build(size: Size, channels: int, options: ResEncOptions) -> nn.Module:
    """ResEnc U-Net; of `blocks` as many count as there are levels. Raises UnsupportedError as for nnU-Net's network."""
    fields = plan(size, channels, options, "resenc-unet")
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    levels = fields["n_stages"]
    blocks = [*options.blocks, *[options.blocks[-1]] * levels][:levels]
    network = ResidualEncoderUNet(
        **fields, n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[options.convolutions] * (levels - 1)
    )
    return prepared(network)


OPTIONS: type[Options] = ResEncOptions

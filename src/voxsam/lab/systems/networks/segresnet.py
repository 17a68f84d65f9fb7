"""SegResNet (Myronenko, BraTS 2018 winner): MONAI's, a residual encoder-decoder with group normalisation."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from voxsam.lab.systems.networks.parts import CLASSES, Options, Size, cube, require_crop


class SegResNetOptions(Options):
    """With the defaults: 18,796,002 parameters for any crop."""

    width: PositiveInt = Field(32, multiple_of=8, description="channels at full resolution; they double at each level")
    blocks_down: tuple[PositiveInt, ...] = Field(
        (1, 2, 2, 4), min_length=2, description="residual blocks of the encoder at each level"
    )
    blocks_up: tuple[NonNegativeInt, ...] = Field((1, 1, 1), description="of the decoder, from the deepest level up")


def build(size: Size, channels: int, options: SegResNetOptions) -> nn.Module:
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


OPTIONS = SegResNetOptions

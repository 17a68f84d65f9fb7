"""Networks that see nothing but a crop: segmentation networks without clicks, and a U-Net with click channels.

B batch, C channels, D H W crop, N points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from voxsam.errors import UnsupportedError
from voxsam.lab.systems.networks import Size, cube, network_kind, read_options, storable
from voxsam.network.card import Card
from voxsam.network.prompt_encoder import NEGATIVE, POSITIVE
from voxsam.network.promptable import BlockProgress, Features, Promptable

WIDTHS = (8, 16, 32, 64, 128)  # of the U-Net: channels at 1, 1/2, 1/4, 1/8, 1/16 of the crop's resolution
BALL = 2.0  # voxels: s.d. of the Gaussian that marks a click


class CropNetwork(Promptable):
    """Nothing can be computed before the clicks are known, and a click outside a crop says nothing about it."""

    far_clicks = False

    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """The crops themselves: all is done when decoding."""
        return (crops_B1DHW,)

    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """(B, N, 0): what a click looks like is not used."""
        return points_BN3.new_zeros((*points_BN3.shape[:2], 0))

    def static(self, features: Features, crops_B1DHW: Tensor) -> Tensor:
        """The crops themselves."""
        return crops_B1DHW


class AutomaticNetwork(CropNetwork):
    """One of voxsam.lab.systems.networks, by the `system` of its card, for crops of exactly the configuration's side.

    It is built with the card's options; `card` afterwards holds them without those that count when training begins
    only (a file of weights). `size` (D, H, W) is for crops that are no cubes. Raises InputError for unknown options,
    UnsupportedError for a crop that does not fit, or a library that is not installed.
    """

    clicks = False
    any_crop = False  # tables of positions belong to the crop of training

    def __init__(self, card: Card, size: Size | None = None) -> None:
        kind = network_kind(card.system)
        options = read_options(kind.options, card.options, card.system)
        kept = {name: value for name, value in card.options.items() if name not in options.once}
        super().__init__(card.model_copy(update={"options": kept}))
        self.network = storable(kind.build(size or cube(self.config.crop), self.config.channels, options))

    def decode(self, features: Features, crops_B1DHW: Tensor, points: Tensor | None = None, **_: Any) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. Clicks do not count."""
        return self.network(crops_B1DHW)


class ClickUNet(CropNetwork):
    """MONAI's DynUNet, nnU-Net's building plan without residuals, over the crop and two channels of clicks.

    What VoxSAM has to beat with the same scans, clicks, loss and minutes: the usual design of interactive segmentation
    (Xu et al., Deep Interactive Object Selection, CVPR 2016), in which every click costs a whole pass of the network.
    Of the card's configuration it uses `crop` and `polarity`. Raises UnsupportedError for a crop that cannot be halved
    four times.
    """

    system = "click-unet"

    def __init__(self, card: Card) -> None:
        from monai.networks.nets import DynUNet  # here: MONAI's networks take a second to import

        super().__init__(card)
        if self.config.crop < 32 or self.config.crop % 16:
            raise UnsupportedError(
                f"a crop of {self.config.crop} voxels for {self.system}", "a multiple of 16, 32 or more", "change it"
            )
        levels = len(WIDTHS)
        self.unet = DynUNet(
            spatial_dims=3,
            in_channels=3,
            out_channels=2,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=WIDTHS,
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        )
        for alias in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(self.unet, alias)  # the same tensors again under other names, which a model file cannot hold

    def decode(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. Only `points` and `labels` count."""
        size = crops_B1DHW.shape[2:]
        if points is None:
            drawn = crops_B1DHW.new_zeros((len(crops_B1DHW), 2, *size))
        else:
            kinds = torch.full(points.shape[:2], POSITIVE, device=points.device) if labels is None else labels
            drawn = torch.stack([draw_clicks(points, kinds == kind, size) for kind in (POSITIVE, NEGATIVE)], 1)
        return self.unet(torch.cat([crops_B1DHW, drawn.to(crops_B1DHW.dtype)], 1))


def draw_clicks(points_BN3: Tensor, chosen_BN: Tensor, size: torch.Size) -> Tensor:
    """(B, D, H, W): at each voxel the highest of the Gaussians (1 in the middle) about the chosen points."""
    along = [
        torch.exp(-((torch.arange(n, device=points_BN3.device) - points_BN3[..., axis, None]) ** 2) / (2 * BALL**2))
        for axis, n in enumerate(size)
    ]  # a Gaussian is the product of its axes
    out = points_BN3.new_zeros((len(points_BN3), *size))
    for click in range(points_BN3.shape[1]):
        d, h, w = (values[:, click] * chosen_BN[:, click, None] for values in along)
        out = torch.maximum(out, d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :])
    return out

"""The networks of Table 1, and more: crops in, two logits per voxel out.

`FILES` maps systems to files; a file's NETWORKS tells how to build them, and is imported only when one is needed.
AutomaticNetwork wraps any of them as a Promptable; ClickUNet is a U-Net with click channels.

B batch, C channels, D H W crop, N points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from torch import Tensor, nn

from voxsam.errors import InputError, UnsupportedError
from voxsam.network.card import Card
from voxsam.network.prompt_encoder import NEGATIVE, POSITIVE
from voxsam.network.promptable import BlockProgress, Features, Promptable

Size = tuple[int, int, int]  # D, H, W
Three = tuple[PositiveInt, PositiveInt, PositiveInt]  # D, H, W, as an option
Four = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # one for each level, as an option
CLASSES = 2  # background, tumour
FILES = {
    "nnunet-network": "of_libraries",
    "resenc-unet": "of_libraries",
    "transbts": "transbts",
    "nnformer": "nnformer",
    "swin-unetr": "of_libraries",
    "unetr": "of_libraries",
    "unetrpp": "unetrpp",
    "ux-net": "ux_net",
    "segresnet": "of_libraries",
    "mednext": "of_libraries",
}


class Options(BaseModel):
    """What a network is built with beyond its crop and channels; each field's description is its line of help."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    once: ClassVar[tuple[str, ...]] = ()  # options used only when training begins, and not kept in the model file

    @classmethod
    def lines(cls) -> dict[str, str]:
        """The names of the options, each with a line of help and its default."""
        return {
            name: f"{field.description} (default: {field.default})".replace("default: None", "default: none")
            for name, field in cls.model_fields.items()
        }

    @classmethod
    def read(cls, given: Mapping[str, Any], system: str) -> Self:
        """Parse the options of a card. Raises InputError for an unknown option or an invalid value."""
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "combination"
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields) or "none"
                raise InputError(f"the option {name} of {system}", f"one of: {known}", "change `options`") from error
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(f"the option {name} of {system}: {first['input']}", message, "change `options`") from error


class NetworkKind(NamedTuple):
    """A network's options, and the function that builds it for a crop size (D, H, W) and a number of channels."""

    options: type[Options]
    build: Callable[[Size, int, Any], nn.Module]


def require_crop(size: Size, multiples: Size, system: str, several: bool = False) -> None:
    """Raise UnsupportedError unless `multiples` divide the sides; with `several`, the sides must not all equal them.

    This is for networks that normalise their deepest map over its voxels: a single voxel would become zero.
    """
    if any(side % multiple for side, multiple in zip(size, multiples, strict=True)) or (several and size == multiples):
        given, unit = (" x ".join(map(str, sides)) for sides in (size, multiples))
        more = " and more than that" if several else ""
        raise UnsupportedError(f"a crop of {given} voxels for {system}", f"multiples of {unit}{more}", "change it")


def require_library(module: str, system: str, remedy: str) -> None:
    """Raise UnsupportedError if the library of a system's network is not installed."""
    if find_spec(module) is None:
        raise UnsupportedError(f"the system {system} without the library {module}", "it installed", remedy)


def cube(side: int) -> Size:
    """The same length along all three axes."""
    return side, side, side


def divided(size: Size, by: Size) -> Size:
    """The grid that remains of `size` after strides of `by`, which divide it."""
    return size[0] // by[0], size[1] // by[1], size[2] // by[2]


def halved(size: Size) -> Size:
    """The grid after a convolution of stride 2, which rounds odd sides up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2, (size[2] + 1) // 2


def storable(network: nn.Module) -> nn.Module:
    """Leave only floating-point tensors in the network's state, as a model file requires; changed in place.

    Index tables are computed when it is built and need not be stored; BatchNorm's counters become floats.
    """
    for module in network.modules():
        for name, tensor in list(module.named_buffers(recurse=False)):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and name == "num_batches_tracked":
                module.num_batches_tracked = tensor.float()
            elif not tensor.is_floating_point():
                module.register_buffer(name, tensor, persistent=False)
    return network


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        x_BDHWC = x_BCDHW.movedim(1, -1)
        return F.layer_norm(x_BDHWC, self.weight.shape, self.weight, self.bias, eps=1e-6).movedim(-1, 1)


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """Map x to a tensor of the same shape, which the branch must keep."""
        return x + self.branch(x)


def network_kind(system: str) -> NetworkKind:
    """The options and builder of a system's network."""
    return import_module(f"{__name__}.{FILES[system]}").NETWORKS[system]


WIDTHS = (8, 16, 32, 64, 128)  # channels of the U-Net at 1, 1/2, 1/4, 1/8, 1/16 of the crop's resolution
BALL = 2.0  # voxels: s.d. of the Gaussian that marks a click


class CropNetwork(Promptable):
    """A network that computes nothing before the clicks are known and ignores clicks outside its crop."""

    far_clicks = False

    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """The crops themselves: all work is done in `decode`."""
        return (crops_B1DHW,)

    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """(B, N, 0): prompt features are not used."""
        return points_BN3.new_zeros((*points_BN3.shape[:2], 0))

    def static(self, features: Features, crops_B1DHW: Tensor) -> Tensor:
        """The crops themselves."""
        return crops_B1DHW


class AutomaticNetwork(CropNetwork):
    """The network for the `system` of a card, for crops of exactly the configuration's side.

    It is built with the card's options; its own `card` drops those that are used only when training begins (a file of
    weights). `size` (D, H, W) is for crops that are not cubes. Raises InputError for unknown options, UnsupportedError
    for a crop that does not fit, or a library that is not installed.
    """

    clicks = False
    any_crop = False  # tables of positions belong to the crop of training

    def __init__(self, card: Card, size: Size | None = None) -> None:
        kind = network_kind(card.system)
        options = kind.options.read(card.options, card.system)
        kept = {name: value for name, value in card.options.items() if name not in options.once}
        super().__init__(card.model_copy(update={"options": kept}))
        self.network = storable(kind.build(size or cube(self.config.crop), self.config.channels, options))

    def decode(self, features: Features, crops_B1DHW: Tensor, points: Tensor | None = None, **_: Any) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. Clicks are ignored."""
        return self.network(crops_B1DHW)


class ClickUNet(CropNetwork):
    """MONAI's DynUNet, nnU-Net's architecture without residuals, over the crop and two click channels.

    The baseline for VoxSAM with the same scans, clicks, loss and minutes: the usual design of interactive segmentation
    (Xu et al., Deep Interactive Object Selection, CVPR 2016), in which every click takes a full pass of the network.
    Of the card's configuration it uses `crop` and `polarity`. Raises UnsupportedError for a crop that is not a multiple
    of 16 voxels, 32 or more.
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
            delattr(self.unet, alias)  # the same tensors under second names, which a model file cannot hold

    def decode(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. Besides the crop, only `points` and `labels` are used."""
        size = crops_B1DHW.shape[2:]
        if points is None:
            drawn = crops_B1DHW.new_zeros((len(crops_B1DHW), 2, *size))
        else:
            kinds = torch.full(points.shape[:2], POSITIVE, device=points.device) if labels is None else labels
            drawn = torch.stack([draw_clicks(points, kinds == kind, size) for kind in (POSITIVE, NEGATIVE)], 1)
        return self.unet(torch.cat([crops_B1DHW, drawn.to(crops_B1DHW.dtype)], 1))


def draw_clicks(points_BN3: Tensor, chosen_BN: Tensor, size: torch.Size) -> Tensor:
    """(B, D, H, W): the maximum at each voxel of Gaussians (peak 1) centred on the chosen points."""
    along = [
        torch.exp(-((torch.arange(n, device=points_BN3.device) - points_BN3[..., axis, None]) ** 2) / (2 * BALL**2))
        for axis, n in enumerate(size)
    ]  # a Gaussian is the product of its axes
    out = points_BN3.new_zeros((len(points_BN3), *size))
    for click in range(points_BN3.shape[1]):
        d, h, w = (values[:, click] * chosen_BN[:, click, None] for values in along)
        out = torch.maximum(out, d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :])
    return out

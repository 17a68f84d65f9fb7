"""A plain segmentation network in a model file: a crop in, two logits per voxel out, and no clicks.

B batch, C channels, D H W crop.
"""

from __future__ import annotations

from torch import Tensor

from voxsam.lab.systems.networks import file_of
from voxsam.lab.systems.networks.parts import Size, cube, read_options, storable
from voxsam.network.card import Card
from voxsam.network.conditioning import Conditioning
from voxsam.network.promptable import BlockProgress, Features, Promptable


class PlainNetwork(Promptable):
    """One of voxsam.lab.systems.networks, by the `system` of its card, for crops of exactly the configuration's side.

    It is built with the card's options; `card` afterwards holds them without those that count when training begins
    only (a file of weights). `size` (D, H, W) is for crops that are no cubes. Raises InputError for unknown options,
    UnsupportedError for a crop that does not fit, or a library that is not installed.
    """

    clicks = False
    far_clicks = False
    any_crop = False  # tables of positions belong to the crop of training

    def __init__(self, card: Card, size: Size | None = None) -> None:
        file = file_of(card.system)
        options = read_options(file.OPTIONS, card.options, card.system)
        kept = {name: value for name, value in card.options.items() if name not in options.once}
        super().__init__(card.model_copy(update={"options": kept}))
        self.network = storable(file.build(size or cube(self.config.crop), self.config.channels, options))

    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """The crops themselves: all is done when decoding."""
        return (crops_B1DHW,)

    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """(B, N, 0): a click's look is not used."""
        return points_BN3.new_zeros((*points_BN3.shape[:2], 0))

    def static(self, features: Features, crops_B1DHW: Tensor) -> Tensor:
        """The crops themselves."""
        return crops_B1DHW

    def decode(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        prompt_features: Tensor | None = None,
        labels: Tensor | None = None,
        static: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. Clicks do not count."""
        return self.network(crops_B1DHW)

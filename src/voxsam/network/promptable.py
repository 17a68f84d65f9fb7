"""Promptable: the interface of every network that a session clicks and a recipe trains, such as VoxSAMNetwork."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from voxsam.network.card import Card
from voxsam.network.conditioning import Conditioning
from voxsam.network.sizes import ModelConfig

Features = tuple[Tensor, ...]
Static = Tensor | tuple[Tensor, ...]
BlockProgress = Callable[[int, int], None]  # blocks done, and blocks in all


class Promptable(nn.Module, ABC):
    """One crop and clicks in, two logits per voxel out; what no click changes is computed once per crop.

    `card` says what the network is and how its crops are made; of `config`, other code reads `crop` and `polarity`.
    B batch, D H W crop, N points, C width of a feature map.
    """

    clicks = True  # whether it takes clicks at all; if not, its recipe says `prompts: none`
    far_clicks = True  # whether clicks outside a crop say what to find in it, by the features under them
    any_crop = True  # whether crops may have sizes other than the configuration's that fit its strides
    goes_on = False  # whether `decode` uses a previous mask

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.config: ModelConfig = card.config

    @abstractmethod
    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """(B, 1, D, H, W) float, normalised -> the features that decoding and sampling need, the deepest last.

        A slow network calls `progress` now and then. It belongs to this call alone, so that threads that share a
        network are each told about their own crops.
        """

    @abstractmethod
    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """(B, N, C) prompt features at the points (d, h, w in crop voxels); 0 outside the crop."""

    @abstractmethod
    def static(self, features: Features, crops_B1DHW: Tensor) -> Static:
        """The part of decoding that no click changes; pass it to `decode` to click again in the same crop."""

    def prompted(self, features: Features) -> Features:
        """The features that `sample` and `decode` need if there is a static part; these alone are enough."""
        return features[-1:]

    @abstractmethod
    def decode(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        prompt_features: Tensor | None = None,
        labels: Tensor | None = None,
        static: Static | None = None,
        conditioning: Conditioning | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. `labels` (B, N): 1 positive, 0 negative, -1 padding.

        `previous` (B, 1, D, H, W): the logits, tumour minus background, of a mask to start from; a network that cannot
        use it ignores it.
        """

    def forward(self, crops_B1DHW: Tensor, points_BN3: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """encode, then decode."""
        return self.decode(self.encode(crops_B1DHW), crops_B1DHW, points_BN3, labels=labels)

"""VoxSAMNetwork: image encoder, prompt encoder and mask decoder, composed.

B batch, D H W crop, N points, C width of a feature map.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from voxsam.errors import UnsupportedError
from voxsam.network.card import Card
from voxsam.network.conditioning import Conditioning, condition
from voxsam.network.image_encoder import ImageEncoder
from voxsam.network.mask_decoder import MaskDecoder
from voxsam.network.prompt_encoder import PositionalPromptEncoder, PromptEncoder, sample_features
from voxsam.network.promptable import BlockProgress, Features, Promptable, Static
from voxsam.network.refinement import Details, RefinementHead
from voxsam.network.sizes import LEVELS


class VoxSAMNetwork(Promptable):
    """One crop and clicks in, two logits per voxel out. Encode once, prompt many.

    `card` says what the network is and how its crops are made; `config` holds its sizes. Where clicks change several
    levels (`config.prompt_levels`), each has a prompt encoder: `prompt_encoder` is that of level 4, `prompt_encoder_1`
    that of level 1. With an `automatic` card there is none, and it takes no clicks (paper, Sec. 4.3).
    """

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        config = card.config
        encoder = PositionalPromptEncoder if config.prompt_kind == "positional" else PromptEncoder
        self.far_clicks = config.prompt_kind == "sampler"
        self.image_encoder = ImageEncoder(config)
        for level in config.prompt_levels:
            self.add_module(_prompt_encoder(level), None if card.automatic else encoder(config))
        self.mask_decoder = MaskDecoder(config)
        self.refinement = RefinementHead(config) if config.click_maps else None
        self.goes_on = self.refinement is not None

    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """(B, 1, D, H, W) float, normalised -> four (B, C, D/T, H/T, W/T), level 4 last, T = config.stride."""
        return self.image_encoder(crops_B1DHW, progress)

    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """(B, N, C) prompt features at the points (d, h, w in crop voxels); 0 outside the crop.

        The features of several prompted levels are concatenated in C; with positional prompts, C is 0.
        """
        if self.config.prompt_kind == "positional":
            return points_BN3.new_zeros((*points_BN3.shape[:2], 0))
        crop_shape = tuple(n * self.config.stride for n in features[-1].shape[2:])
        prompt_features = [sample_features(level, points_BN3, crop_shape) for level in self.prompted(features)]  # type: ignore[arg-type]
        return torch.cat(prompt_features, -1)

    def prompted(self, features: Features) -> Features:
        """The levels that clicks change; `features` are all levels, or these alone."""
        levels = self.config.prompt_levels
        return features if len(features) == len(levels) else tuple(features[level - LEVELS - 1] for level in levels)

    def static(self, features: Features, crops_B1DHW: Tensor) -> Static:
        """The part of decoding that no click changes; pass it to `decode` to click again in the same crop."""
        static = self.mask_decoder.static(features, crops_B1DHW)
        return static if self.refinement is None else (static, *self.refinement.details(crops_B1DHW))

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
        looks: Tensor | None = None,
    ) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour. With `static`, `features` may be the prompted levels alone.

        Give `points` (B, N, 3) = (d, h, w) in crop voxels, or `prompt_features` (B, N, C) sampled before, in this or
        another crop; with neither (automatic mode) the prompt encoder is skipped. With both, the features count, and
        the points say where a model with `config.marks` marks them (outside the crop: nowhere). `labels` (B, N) are 1
        positive, 0 negative, -1 padding; by default all are positive. With `conditioning` the prediction agrees with
        the points. With `config.click_maps` the refinement head sees the points and `previous` (B, 1, D, H, W), the
        logits, tumour minus background, of a mask to start from.
        `looks` is the old name of `prompt_features`, accepted for one release.
        """
        if looks is not None:
            warnings.warn("decode(looks=) is now decode(prompt_features=)", DeprecationWarning, stacklevel=2)
            prompt_features = looks if prompt_features is None else prompt_features
        _, fused, logits = self.decode_stages(
            features,
            crops_B1DHW,
            points,
            prompt_features=prompt_features,
            labels=labels,
            static=static,
            previous=previous,
        )
        if conditioning is None or points is None:
            return logits
        if labels is None:
            labels = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
        return condition(logits, fused, points, labels, conditioning)

    def decode_stages(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        prompt_features: Tensor | None = None,
        labels: Tensor | None = None,
        static: Static | None = None,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mask decoder's logits, its fused features (B, m, F, F, F), and the refined logits; no head: the same."""
        if points is not None and prompt_features is None:
            prompt_features = self.sample(features, points)
        if static is None:
            static = self.static(features, crops_B1DHW)
        static, *details = (static,) if isinstance(static, Tensor) else static
        prompted = self.prompted(features)
        if prompt_features is not None:
            prompted = self._prompt(prompted, prompt_features, labels, points)
        fused = self.mask_decoder.fused(static, prompted)
        coarse = self.mask_decoder(fused, tuple(crops_B1DHW.shape[2:]))
        if self.refinement is None:
            return coarse, fused, coarse
        if points is None:
            points, labels = crops_B1DHW.new_zeros((len(crops_B1DHW), 0, 3)), None
        refined = self.refinement(Details(*details), coarse, fused, prompted[-1], points, labels, previous)
        return coarse, fused, refined

    def _prompt(
        self, levels: Features, prompt_features: Tensor, labels: Tensor | None, points: Tensor | None
    ) -> Features:
        """The prompted levels, each changed by its own prompt encoder and the features under the clicks."""
        assert not self.card.automatic, "clicks for a network without a prompt encoder"
        if points is None and not self.far_clicks:
            raise UnsupportedError(
                f"prompt features without points for the model {self.card.name}",
                "points: to this model a click is its place",
                "give `points`",
            )
        encoders = [self.get_submodule(_prompt_encoder(level)) for level in self.config.prompt_levels]
        parts = prompt_features.chunk(len(levels), -1)
        return tuple(
            encoder(level, part, labels, points) for encoder, level, part in zip(encoders, levels, parts, strict=True)
        )


def _prompt_encoder(level: int) -> str:
    """The name of a level's prompt encoder."""
    return "prompt_encoder" if level == LEVELS else f"prompt_encoder_{level}"

"""VoxSAMNetwork: image encoder, prompt encoder and mask decoder, composed.

B batch, D H W crop, N points, C width of a feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxsam.model.card import Card
from voxsam.model.conditioning import Conditioning, condition
from voxsam.model.image_encoder import ImageEncoder
from voxsam.model.linear import Precision, require_precision
from voxsam.model.mask_decoder import MaskDecoder
from voxsam.model.prompt_encoder import PromptEncoder, sample_features
from voxsam.model.promptable import BlockProgress, Features, Promptable


class VoxSAMNetwork(Promptable):
    """One crop and clicks in, two logits per voxel out. Encode once, prompt many.

    `card` says what the network is and how it wants its crops; `config` are its sizes. That of a card that is
    `automatic` has no prompt encoder, and takes no clicks (paper, Sec. 4.3).
    """

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        config = card.config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = None if card.automatic else PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    def encode(self, crops_B1DHW: Tensor, progress: BlockProgress | None = None) -> Features:
        """(B, 1, D, H, W) float, normalised -> four (B, C, D/T, H/T, W/T), level 4 last, T = config.stride."""
        return self.image_encoder(crops_B1DHW, progress)

    def use_precision(self, precision: Precision) -> None:
        """Encode in bf16 or int8 from now on, with an error (docs/performance.md, "Lower precision").

        On a CPU the encoder's products are made so; its parameters, and the decoder, stay float32. On a GPU the whole
        network becomes bf16. Raises UnsupportedError where the machine has no instructions for it.
        """
        device = next(self.parameters()).device
        require_precision(precision, device)
        if device.type == "cpu":
            self.image_encoder.precision = precision
        elif precision == "bf16":
            self.to(torch.bfloat16)

    def sample(self, features: Features, points_BN3: Tensor) -> Tensor:
        """(B, N, C): what the voxels under the points (d, h, w in crop voxels) look like; 0 outside the crop."""
        crop_shape = tuple(n * self.config.stride for n in features[-1].shape[2:])
        return sample_features(features[-1], points_BN3, crop_shape)  # type: ignore[arg-type]

    def static(self, features: Features, crops_B1DHW: Tensor) -> Tensor:
        """The part of decoding that no click changes; pass it to `decode` to click again in the same crop."""
        return self.mask_decoder.static(features, crops_B1DHW)

    def decode(
        self,
        features: Features,
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        looks: Tensor | None = None,
        labels: Tensor | None = None,
        static: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """(B, 2, D, H, W) logits: background, tumour.

        `points` (B, N, 3) = (d, h, w) in crop voxels, or `looks` (B, N, C) sampled before, here or in another crop;
        neither: automatic mode, the prompt encoder is left out. With both, the looks count, and the points say where a
        model with `config.marks` marks them (outside the crop: nowhere). `labels` (B, N): 1 positive, 0 negative, -1
        padding; left out, all are positive. With `conditioning` the answer is then made to agree with the points.
        """
        deepest, prompts = features[-1], self.prompt_encoder
        assert prompts is not None or (points is None and looks is None), "clicks for a network without prompt encoder"
        if points is not None and prompts is not None:
            if looks is None:
                looks = self.sample(features, points)
            deepest = prompts.mark(deepest, points, labels, tuple(crops_B1DHW.shape[2:]))
        if looks is not None and prompts is not None:
            deepest = prompts(deepest, looks, labels)
        if static is None:
            static = self.static(features, crops_B1DHW)
        fused = self.mask_decoder.fused(static, deepest)
        logits = self.mask_decoder(fused, tuple(crops_B1DHW.shape[2:]))
        if conditioning is None or points is None:
            return logits
        if labels is None:
            labels = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
        return condition(logits, fused, points, labels, conditioning)

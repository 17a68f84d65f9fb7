"""EncodedCrops: the crops of one scan in a model, encoded once and decoded often, within a limit of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.interactive.crops import require_numbers
from voxsam.network.promptable import Features, Promptable
from voxsam.preprocess import Window, read_crops
from voxsam.volume import Volume

KEPT_BYTES = 1 << 30  # beyond it the least recently used crop goes first, but the last one always stays
AFTER_BLOCKS = 2  # stages that progress counts after the encoder's blocks: the necks, the static part of the decoder

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Encoded:
    """What is kept of an encoded crop: the features that clicks change, and the part of decoding that they do not."""

    features: Features
    static: Tensor
    crop: Tensor  # (1, K, D, H, W), K images

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (*self.features, self.static, self.crop))


class EncodedCrops:
    """The crops of a scan that were encoded lately, by the first voxel of their window: `kept`, the latest last.

    `images` are the scan's channels, most often one.
    """

    def __init__(self, model: Promptable, images: Sequence[Volume], progress: Progress) -> None:
        self.model, self.images, self.progress = model, images, progress
        self.kept: OrderedDict[tuple[int, int, int], Encoded] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory that they take together."""
        return sum(encoded.nbytes for encoded in self.kept.values())

    def forget(self) -> None:
        """Free them all; a crop that is needed again is encoded again."""
        self.kept.clear()

    def get(self, window: Window) -> Encoded:
        """The window's crop, encoded now unless it was before; under the caller's gradient mode."""
        if window.start in self.kept:
            self.kept.move_to_end(window.start)
            return self.kept[window.start]
        self.kept[window.start] = encoded = self._encode(window)
        while len(self.kept) > 1 and self.nbytes > KEPT_BYTES:
            self.kept.popitem(last=False)
        self.progress("encoding", 1.0)
        return encoded

    def look(self, window: Window, point: NDArray[np.float64]) -> Tensor:
        """(1, 1, C) what the voxel under `point` (3,), a model grid index, looks like in the window's crop."""
        encoded = self.get(window)
        where = torch.tensor(point - window.start, dtype=torch.float32, device=encoded.crop.device)
        return self.model.sample(encoded.features, where[None, None])

    def decode(
        self, window: Window, at: NDArray[np.float64], prompt_features: Tensor, labels: Tensor | None
    ) -> NDArray[np.float32]:
        """(window.shape) probabilities for clicks at model grid indices `at` (N, 3) with `prompt_features` (1, N, C).

        Raises CheckpointError if the model answers with NaN.
        """
        encoded = self.get(window)
        points = torch.tensor(at - window.start, dtype=torch.float32, device=encoded.crop.device)[None]
        logits = self.model.decode(
            encoded.features,
            encoded.crop,
            points,
            prompt_features=prompt_features,
            labels=labels,
            static=encoded.static,
            conditioning=self.model.card.conditioning,
        )
        background, tumour = logits[0].float()
        probability = torch.sigmoid(tumour - background).cpu().numpy()  # softmax over two classes
        require_numbers(probability, self.model.card.name)
        return probability

    def _encode(self, window: Window) -> Encoded:
        self.progress("encoding", 0.0)
        parameter = next(self.model.parameters())
        crop = torch.from_numpy(read_crops(self.images, window, self.model.card.preprocessing))
        crop = crop[None].to(parameter.device, parameter.dtype)
        features = self.model.encode(crop, self._report_block)
        return Encoded(self.model.prompted(features), self.model.static(features, crop), crop)

    def _report_block(self, done: int, blocks: int) -> None:
        self.progress("encoding", done / (blocks + AFTER_BLOCKS))

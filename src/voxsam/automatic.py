"""Whole scans without clicks: a sliding window over the lattice, for models trained without the prompt encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from voxsam.crops import THRESHOLD, require_numbers
from voxsam.errors import UnsupportedError
from voxsam.model.promptable import Promptable
from voxsam.preprocess import Window, images_of, paste, read_crops
from voxsam.volume import Volume

OVERLAP = 0.7  # of neighbouring windows, averaged with equal weight (paper, Table 4)


def segment_automatically(
    model: Promptable,
    volume: Volume | Sequence[Volume],
    *,
    overlap: float = OVERLAP,
    progress: Callable[[str, float], None] | None = None,
) -> Volume:
    """float32 probabilities of being tumour on the scan's grid; above 0.5 is the mask.

    Several volumes are the channels of a model of several (as for a Session). The windows have the side of the model's
    crop. Raises UnsupportedError for a model that was trained with clicks.
    """
    if not model.card.automatic:
        raise UnsupportedError(
            f"automatic segmentation with the model {model.card.name}",
            "a model trained without clicks",
            "click the tumour (--click I,J,K), or choose another model with --model",
        )
    images = images_of(volume, model.card.preprocessing, model.card.name)
    grid = images[0].grid
    lattice = model.card.preprocessing.lattice(grid)
    whole = Window(lattice, (0, 0, 0), lattice.shape)
    scan = torch.from_numpy(read_crops(images, whole, model.card.preprocessing))[None]
    side = model.config.crop
    parameter = next(model.parameters())
    done = 0

    def predict(crops: Tensor) -> Tensor:
        nonlocal done
        logits = model(crops.to(parameter.device, parameter.dtype)).float()
        done += 1
        if progress is not None:
            progress("windows", min(1.0, done / _count(lattice.shape, side, overlap)))
        return logits.softmax(1)[:, 1:].cpu()

    with torch.inference_mode():
        probability = sliding_window_inference(scan, (side,) * 3, 1, predict, overlap, mode="constant")
    assert isinstance(probability, Tensor)
    require_numbers(probability.numpy(), model.card.name)
    out = np.zeros(grid.shape, dtype=np.float32)
    box, values = paste(probability[0, 0].numpy(), whole, grid)
    out[box] = values
    return Volume(out, grid, "", images[0].header)


def mask_of(probabilities: Volume) -> Volume:
    """uint8 0/1 where the probability is above 0.5."""
    return probabilities.with_array((probabilities.array > THRESHOLD).astype(np.uint8), "SEG")


def _count(shape: tuple[int, ...], side: int, overlap: float) -> int:
    step = max(1, int(side * (1 - overlap)))
    return int(np.prod([np.ceil(max(0, n - side) / step) + 1 for n in shape]))

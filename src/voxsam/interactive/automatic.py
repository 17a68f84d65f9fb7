"""Whole scans without clicks: a sliding window over the model grid, for models trained without the prompt encoder.

In three steps, so that a cohort can have three scans in them at once: `prepare` reads the scan into the model grid;
`predict` is the network; `mask_on_scan` and `probabilities_on_scan` go back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor

from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.crops import THRESHOLD, around_tumour, require_numbers
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Window, images_of, paste, read_crops
from voxsam.volume import Volume

OVERLAP = 0.7  # of neighbouring windows, averaged with equal weight (paper, Table 4)
WINDOWS_ON_GPU = 4  # that go through the network together; a CPU is as fast with one, and needs less memory

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as an automatic model sees it: its own grid, and (1, K, D, H, W) normalised on the whole model grid."""

    scan: Grid
    whole: Window
    images: Tensor
    header: dict[str, Any]


def segment_automatically(
    model: Promptable,
    volume: Volume | Sequence[Volume],
    *,
    overlap: float = OVERLAP,
    progress: Progress | None = None,
) -> Volume:
    """float32 probabilities of being tumour on the scan's grid; above 0.5 is the mask.

    Several volumes are the channels of a model of several (as for a Session). The windows have the side of the model's
    crop. Raises UnsupportedError for a model that was trained with clicks.
    """
    prepared = prepare(model, volume)
    return probabilities_on_scan(prepared, predict(model, prepared, overlap=overlap, progress=progress))


def prepare(model: Promptable, volume: Volume | Sequence[Volume]) -> Prepared:
    """The scan resampled to the model's model grid and normalised: done once, whatever windows are cut from it.

    Raises UnsupportedError for a model that was trained with clicks, or for another number of images than it takes.
    """
    if not model.card.automatic:
        raise UnsupportedError(
            f"automatic segmentation with the model {model.card.name}",
            "a model trained without clicks",
            "click the tumour (--click I,J,K), or choose another model with --model",
        )
    preprocessing = model.card.preprocessing
    images = images_of(volume, preprocessing, model.card.name)
    model_grid = preprocessing.model_grid(images[0].grid)
    whole = Window(model_grid, (0, 0, 0), model_grid.shape)
    array = torch.from_numpy(read_crops(images, whole, preprocessing))[None]
    if next(model.parameters()).device.type == "cuda":
        array = array.pin_memory()  # here, where a cohort reads ahead: the way to the GPU is then waited for by nobody
    return Prepared(images[0].grid, whole, array, images[0].header)


def predict(
    model: Promptable, prepared: Prepared, *, overlap: float = OVERLAP, progress: Progress | None = None
) -> NDArray[np.float32]:
    """(D, H, W) probabilities on the model grid: the mean of all windows that hold a voxel.

    Raises CheckpointError if the model answers with NaN.
    """
    side, count = model.config.crop, 0
    windows = _count(prepared.whole.shape, side, overlap)
    answer = _Answers(model)

    def answered(crops: Tensor) -> Tensor:
        nonlocal count
        count += len(crops)
        found = answer(crops)
        if progress is not None:
            progress("windows", min(1.0, count / windows))
        return found

    together = WINDOWS_ON_GPU if answer.device.type == "cuda" else 1
    images = prepared.images.to(answer.device, non_blocking=True)  # windows are cut where they are needed
    with torch.inference_mode():
        found = sliding_window_inference(
            images, (side,) * 3, together, answered, overlap, mode="constant", device=torch.device("cpu")
        )
    assert isinstance(found, Tensor)
    probability = found[0, 0].numpy()
    require_numbers(probability, model.card.name)
    return probability


def probabilities_on_scan(prepared: Prepared, probability: NDArray[np.float32]) -> Volume:
    """float32 on the scan's grid, every voxel."""
    out = np.zeros(prepared.scan.shape, dtype=np.float32)
    box, values = paste(probability, prepared.whole, prepared.scan)
    out[box] = values
    return Volume(out, prepared.scan, "", prepared.header)


def mask_on_scan(prepared: Prepared, probability: NDArray[np.float32]) -> Volume:
    """uint8 0/1 on the scan's grid: `mask_of` the probabilities; only the box of the tumour is interpolated."""
    tumour = around_tumour((prepared.whole, probability))
    out = np.zeros(prepared.scan.shape, dtype=np.uint8)
    if tumour is not None:
        box, values = paste(tumour[1], tumour[0], prepared.scan)
        out[box] = values > THRESHOLD
    return Volume(out, prepared.scan, "SEG", prepared.header)


def mask_of(probabilities: Volume) -> Volume:
    """uint8 0/1 where the probability is above 0.5."""
    return probabilities.with_array((probabilities.array > THRESHOLD).astype(np.uint8), "SEG")


class _Answers:
    """The network's answer to windows; of windows that are one value throughout (air), only the first is computed.

    Same window, same answer: this is exact. Windows with anything else in them share nothing (docs/performance.md).
    """

    def __init__(self, model: Promptable) -> None:
        parameter = next(model.parameters())
        self.model, self.device, self.dtype = model, parameter.device, parameter.dtype
        self._flat: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, crops_BKDHW: Tensor) -> Tensor:
        """(B, 1, D, H, W) probabilities on the CPU."""
        values = [_one_value(crop) for crop in crops_BKDHW]
        new = [n for n, value in enumerate(values) if value is None or value not in self._flat]
        found = dict(zip(new, self._compute(crops_BKDHW[new]), strict=True)) if new else {}
        self._flat |= {value: found[n] for n, value in enumerate(values) if value is not None and n in found}
        return torch.stack([found[n] if n in found else self._flat[v] for n, v in enumerate(values)])  # type: ignore[index]

    def _compute(self, crops_BKDHW: Tensor) -> Tensor:
        logits = self.model(crops_BKDHW.to(self.device, self.dtype)).float()
        return logits.softmax(1)[:, 1:].cpu()


def _one_value(crop_KDHW: Tensor) -> tuple[float, ...] | None:
    """The value of each image in a window that has no other; None if it has."""
    flat = crop_KDHW.flatten(1)
    low, high = flat.aminmax(dim=1)
    return tuple(low.tolist()) if torch.equal(low, high) else None


def _count(shape: tuple[int, ...], side: int, overlap: float) -> int:
    step = max(1, int(side * (1 - overlap)))
    return int(np.prod([np.ceil(max(0, n - side) / step) + 1 for n in shape]))

"""Whole scans without clicks: a sliding window over the model grid, for models trained without the prompt encoder.

There are two steps, so that a cohort can work on several scans at once: `prepare` resamples the scan to the model grid,
`predict` runs the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from voxsam.errors import UnsupportedError
from voxsam.interactive.crops import ReportProgress, require_numbers
from voxsam.interactive.images import images_for
from voxsam.interactive.predictor import Prediction
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Window, read_crops
from voxsam.volume import Volume

OVERLAP = 0.7  # of neighbouring windows, averaged with equal weight (paper, Table 4)
WINDOWS_TOGETHER = {"cuda": 4}  # in a batch; a CPU is as fast with one at a time, and needs less memory


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as an automatic model sees it: (K, D, H, W) normalised on the whole model grid."""

    empty: Prediction  # for the scan: its grid, header and remarks
    whole: Window
    array: Tensor


def segment_automatically(
    model: Promptable,
    volume: Volume | Sequence[Volume],
    *,
    overlap: float = OVERLAP,
    progress: ReportProgress | None = None,
) -> Prediction:
    """Segment the tumour in a whole scan.

    Several volumes are the channels of a multi-channel model (as for a Session). The windows have the side of the
    model's crop. Raises UnsupportedError for a model that was trained with clicks.
    """
    return predict(model, prepare(model, volume), overlap=overlap, progress=progress)


def prepare(model: Promptable, volume: Volume | Sequence[Volume]) -> Prepared:
    """Resample the scan to the model grid and normalise it, once for all windows.

    Raises UnsupportedError for a model that was trained with clicks, or for a wrong number of images.
    """
    if not model.card.automatic:
        raise UnsupportedError(
            f"automatic segmentation with the model {model.card.name}",
            "a model trained without clicks",
            "click the tumour (--click I,J,K), or choose another model with --model",
        )
    preprocessing = model.card.preprocessing
    images, notes = images_for(model, (volume,) if isinstance(volume, Volume) else volume)
    model_grid = preprocessing.model_grid(images[0].grid)
    whole = Window(model_grid, (0, 0, 0), model_grid.shape)
    array = torch.from_numpy(read_crops(images, whole, preprocessing))
    if next(model.parameters()).device.type == "cuda":
        array = array.pin_memory()  # here, where a cohort reads ahead, so that nothing waits for the copy to the GPU
    return Prepared(Prediction(images[0].grid, images[0].header, notes=tuple(notes)), whole, array)


def predict(
    model: Promptable, prepared: Prepared, *, overlap: float = OVERLAP, progress: ReportProgress | None = None
) -> Prediction:
    """Run the network in all windows, and average at every voxel of the model grid those that hold it.

    Raises CheckpointError if the model's prediction is NaN.
    """
    side, windows = model.config.crop, _Windows(model)
    # A scan shorter than a window is centred in it, as in MONAI's sliding_window_inference.
    short = [max(0, side - n) for n in prepared.whole.shape]
    before = [n // 2 for n in short]
    padding = [n for a, b in zip(before[::-1], short[::-1], strict=True) for n in (a, b - a)]
    images = torch.nn.functional.pad(prepared.array, padding).to(windows.device, non_blocking=True)
    starts = list(product(*(_starts(n, side, overlap) for n in images.shape[1:])))
    total, count = torch.zeros(images.shape[1:]), torch.zeros(images.shape[1:])
    together = WINDOWS_TOGETHER.get(windows.device.type, 1)
    for first in range(0, len(starts), together):
        boxes = [tuple(slice(s, s + side) for s in start) for start in starts[first : first + together]]
        with torch.inference_mode():
            found = windows.probabilities(torch.stack([images[(slice(None), *box)] for box in boxes]))
        for box, probability in zip(boxes, found, strict=True):
            total[box] += probability
            count[box] += 1
        if progress is not None:
            progress("windows", min(1.0, (first + together) / len(starts)))
    inside = tuple(slice(a, a + n) for a, n in zip(before, prepared.whole.shape, strict=True))
    mean = total.div_(count)[inside].numpy()
    require_numbers(mean, model.card.name)
    return replace(prepared.empty, pieces=((prepared.whole, mean),))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows start along an axis: evenly spaced, the last one moved back to end with the scan."""
    step = max(1, int(side * (1 - overlap)))
    return [min(n * step, length - side) for n in range(int(np.ceil((length - side) / step)) + 1)]


class _Windows:
    """The network's predictions for windows; of constant windows (air), only the first of each value is computed.

    This is exact: the same window has the same prediction. Other windows share nothing (docs/performance.md).
    """

    def __init__(self, model: Promptable) -> None:
        parameter = next(model.parameters())
        self.model, self.device, self.dtype = model, parameter.device, parameter.dtype
        self._flat: dict[tuple[float, ...], Tensor] = {}

    def probabilities(self, crops_BKDHW: Tensor) -> Tensor:
        """(B, D, H, W) tumour probabilities, on the CPU."""
        values = [_one_value(crop) for crop in crops_BKDHW]
        new = [n for n, value in enumerate(values) if value is None or value not in self._flat]
        found = dict(zip(new, self._compute(crops_BKDHW[new]), strict=True)) if new else {}
        self._flat |= {value: found[n] for n, value in enumerate(values) if value is not None and n in found}
        return torch.stack([found[n] if n in found else self._flat[v] for n, v in enumerate(values)])  # type: ignore[index]

    def _compute(self, crops_BKDHW: Tensor) -> Tensor:
        logits = self.model(crops_BKDHW.to(self.device, self.dtype)).float()
        return logits.softmax(1)[:, 1].cpu()


def _one_value(crop_KDHW: Tensor) -> tuple[float, ...] | None:
    """The value of each image in a window where all images are constant; None elsewhere."""
    flat = crop_KDHW.flatten(1)
    low, high = flat.aminmax(dim=1)
    return tuple(low.tolist()) if torch.equal(low, high) else None

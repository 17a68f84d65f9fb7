"""The simulated user of a training step: where the model is wrong, the next click goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from voxsam.network.prompt_encoder import NEGATIVE, PADDING, POSITIVE

DEEPEST = 0.5  # probability of the voxel deepest in the wrong region; else any voxel of it


def corrections(
    mask_BDHW: Tensor, truth_BDHW: Tensor, rngs: Sequence[np.random.Generator], negatives: bool = True
) -> tuple[Tensor, Tensor]:
    """(B, 1, 3) points and (B, 1) labels: a click in the largest connected region where a mask is wrong.

    Positive where tumour was missed, negative where there is none; without `negatives` only the former. Padding where
    nothing is wrong. Each crop has its own generator, so that its clicks do not depend on its batch.
    """
    masks, truths = mask_BDHW.bool().cpu().numpy(), truth_BDHW.bool().cpu().numpy()
    found = [_correct(mask, truth, rng, negatives) for mask, truth, rng in zip(masks, truths, rngs, strict=True)]
    points = torch.tensor(np.array([point for point, _ in found]), dtype=torch.float32)[:, None]
    labels = torch.tensor([[label] for _, label in found])
    return points.to(mask_BDHW.device), labels.to(mask_BDHW.device)


def _correct(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], rng: np.random.Generator, negatives: bool
) -> tuple[NDArray[np.int_], int]:
    largest, label = np.zeros((0, 3), dtype=int), PADDING
    kinds = [(truth & ~mask, POSITIVE), (mask & ~truth, NEGATIVE)] if negatives else [(truth & ~mask, POSITIVE)]
    for wrong, kind in kinds:
        parts, count = ndimage.label(wrong)  # type: ignore[misc]
        if count:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            if sizes.max() > len(largest):
                largest, label = np.argwhere(parts == sizes.argmax()), kind
    if not len(largest):
        return np.zeros(3, dtype=int), PADDING
    if rng.random() >= DEEPEST:
        return largest[rng.integers(len(largest))], label
    low, high = largest.min(0), largest.max(0)
    region = np.zeros(high - low + 3, dtype=bool)
    region[tuple((largest - low + 1).T)] = True
    depth = np.asarray(ndimage.distance_transform_edt(region))
    return np.array(np.unravel_index(depth.argmax(), region.shape)) + low - 1, label

"""The first points of a training sample, in each of the ways to prompt."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Prompts = Literal["clicks", "paper", "released", "none"]
Points = tuple[NDArray[np.float32], NDArray[np.int64]]  # (N, 3) crop voxels; (N,) 1, or -1 for padding

IN_TUMOUR, IN_BACKGROUND = 40, 10  # points of a step (paper, Sec. 3.3)
RELEASED_IN_TUMOUR, RELEASED_ANYWHERE = 10, 20  # docs/released.md, "Training"
MAX_CLICKS = 10
SEVERAL = 0.3  # probability of more than one click


def draw_points(
    prompts: Prompts, label: NDArray[np.bool_], beside: bool, centred: bool, rng: np.random.Generator
) -> Points:
    """Points on the label (D, H, W) of a crop; `beside`: a crop about a voxel that is no tumour.

    "clicks": one click in the tumour, or where there is none in a crop `beside` it, at times up to ten; the first in
    the middle, as in a session's first crop, where the crop is `centred` on it. "paper": 40 points in the tumour, or 10
    in the background of a crop that has none (Sec. 3.3). "released": 10 in the tumour, if there is any, and 20 anywhere
    (docs/released.md, "Training"). "none": no points at all.
    """
    if prompts == "none":
        return np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    if prompts == "clicks":
        return _clicks(label, beside, centred, rng)
    if prompts == "paper":
        tumour = bool(label.any())
        return some_voxels(label if tumour else ~label, IN_TUMOUR if tumour else IN_BACKGROUND, rng, IN_TUMOUR)
    inner, marks = some_voxels(label, RELEASED_IN_TUMOUR, rng, RELEASED_IN_TUMOUR)
    outer = rng.integers(0, label.shape[0], (RELEASED_ANYWHERE, 3)).astype(np.float32)
    return np.concatenate([inner, outer]), np.concatenate([marks, np.ones(RELEASED_ANYWHERE, np.int64)])


def some_voxels(region: NDArray[np.bool_], count: int, rng: np.random.Generator, length: int) -> Points:
    """`count` voxels of a region, drawn with replacement, as points and labels padded to `length`."""
    points, labels = np.zeros((length, 3), np.float32), np.full(length, -1, np.int64)
    voxels = np.argwhere(region)
    if len(voxels):
        points[:count], labels[:count] = voxels[rng.integers(len(voxels), size=count)], 1
    return points, labels


def _clicks(label: NDArray[np.bool_], beside: bool, centred: bool, rng: np.random.Generator) -> Points:
    several = not beside and rng.random() < SEVERAL
    count = int(rng.integers(2, MAX_CLICKS + 1)) if several else 1
    points, labels = some_voxels(label, count, rng, MAX_CLICKS)
    if beside or centred:
        middle = np.array(label.shape) // 2
        voxels = np.argwhere(label != beside)
        points[0] = voxels[np.abs(voxels - middle).sum(1).argmin()] if len(voxels) else middle
        labels[0] = 1
    return points, labels

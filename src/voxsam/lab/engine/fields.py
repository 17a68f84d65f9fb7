"""Smooth random fields: what makes a painted border irregular and a painted lesion's inside uneven."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_NODES = 48  # on an axis; finer noise than that is white noise's affair
SPLINE_SD = 0.4795**1.5  # s.d. of a cubic B-spline through white noise, averaged over places, in three dimensions


def smooth_noise(
    shape: Sequence[int], spacing_mm: Sequence[float], correlation_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(shape) float32 noise of mean 0 and s.d. 1 that changes over about `correlation_mm`: a spline on coarse nodes.

    The nodes begin at a random place, so that no voxel of a crop is more likely than another to be a maximum.
    """
    matrices = [_spline(n, s / correlation_mm, rng.random()) for n, s in zip(shape, spacing_mm, strict=True)]
    field = rng.standard_normal([m.shape[1] for m in matrices]).astype(np.float32)
    for matrix in matrices:  # each product puts its axis last: after three they are in order again
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field / np.float32(SPLINE_SD)


def _spline(count: int, step: float, offset: float) -> NDArray[np.float32]:
    """(count, nodes) weights of the uniform cubic B-spline at places `step` nodes apart."""
    step = min(step, (MAX_NODES - 4) / max(1, count))
    at = offset + step * np.arange(count)
    first, t = np.floor(at).astype(int), at % 1
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    matrix = np.zeros((count, int(first[-1]) + 4), dtype=np.float32)
    matrix[np.arange(count)[:, None], first[:, None] + np.arange(4)] = weights
    return matrix

"""Typed wrappers of scipy.ndimage for the engine: smoothing, morphology, connected parts, affine resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def smoothed(image: NDArray, deviation: ArrayLike) -> Image:
    """Smooth with a Gaussian of this s.d. in voxels (one, or one for each axis), truncated at 2.5 s.d.; float32."""
    out = np.empty(image.shape, dtype=np.float32)
    scipy.ndimage.gaussian_filter(image, deviation, truncate=2.5, output=out)  # type: ignore[arg-type]
    return out


def dilated(mask: Mask, times: int = 1, within: Mask | None = None) -> Mask:
    """Dilate a mask by face neighbours, `times` times, restricted to `within`."""
    return np.asarray(scipy.ndimage.binary_dilation(mask, iterations=times, mask=within), dtype=bool)


def eroded(mask: Mask, times: int = 1, beyond: bool = False) -> Mask:
    """Erode a mask by face neighbours, `times` times; `beyond`: the outside of the array counts as mask."""
    return np.asarray(scipy.ndimage.binary_erosion(mask, iterations=times, border_value=int(beyond)), dtype=bool)


def parts_of(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Face-connected parts, numbered from 1, and the number of voxels of each; 0 for the background."""
    numbered = np.empty(mask.shape, dtype=np.int32)
    scipy.ndimage.label(mask, output=numbered)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    return numbered, sizes


def largest_part(mask: Mask) -> Mask:
    """The connected part with the most voxels; empty if the mask is."""
    numbered, sizes = parts_of(mask)
    return numbered == sizes.argmax() if sizes.any() else np.zeros_like(mask)


def sampled(
    array: NDArray, matrix: NDArray[np.float64], offset: ArrayLike, shape: Sequence[int], *, nearest: bool = False
) -> Image:
    """Sample the array at matrix @ index + offset, linearly or `nearest`; beyond the array its edge is repeated."""
    out = np.empty(tuple(shape), dtype=np.float32)
    order = 0 if nearest else 1
    scipy.ndimage.affine_transform(array, matrix, offset, tuple(shape), out, order, mode="nearest")  # type: ignore[arg-type]
    return out

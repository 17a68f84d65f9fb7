"""scipy.ndimage as the engine uses it, with types: smoothing, morphology, connected parts, resampling by a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def smoothed(image: NDArray, deviation: ArrayLike) -> Image:
    """float32, by a Gaussian of that s.d. in voxels, one or one for each axis, cut at 2.5 s.d."""
    out = np.empty(image.shape, dtype=np.float32)
    scipy.ndimage.gaussian_filter(image, deviation, truncate=2.5, output=out)  # type: ignore[arg-type]
    return out


def dilated(mask: Mask, times: int = 1, within: Mask | None = None) -> Mask:
    """With the voxels that share a face with it, so many times, where `within` allows."""
    return np.asarray(scipy.ndimage.binary_dilation(mask, iterations=times, mask=within), dtype=bool)


def eroded(mask: Mask, times: int = 1, beyond: bool = False) -> Mask:
    """Without the voxels that share a face with others, so many times; `beyond`: outside the array all is mask."""
    return np.asarray(scipy.ndimage.binary_erosion(mask, iterations=times, border_value=int(beyond)), dtype=bool)


def parts_of(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Connected parts (by faces), numbered from 1, and how many voxels each number has; that of 0 counts as none."""
    numbered = np.empty(mask.shape, dtype=np.int32)
    scipy.ndimage.label(mask, output=numbered)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    return numbered, sizes


def largest_part(mask: Mask) -> Mask:
    """The connected part with the most voxels; empty if the mask is."""
    numbered, sizes = parts_of(mask)
    return numbered == sizes.argmax() if sizes.any() else np.zeros_like(mask)


def box_of(mask: Mask, margin: int = 0) -> tuple[slice, slice, slice]:
    """The box of a mask that is not empty, with `margin` voxels more on each side where the array has them."""
    i, j, k = scipy.ndimage.find_objects(mask.astype(np.uint8))[0]
    d, h, w = (slice(max(0, part.start - margin), part.stop + margin) for part in (i, j, k))
    return d, h, w


def sampled(
    array: NDArray, matrix: NDArray[np.float64], offset: ArrayLike, shape: Sequence[int], *, nearest: bool = False
) -> Image:
    """(shape) float32: the array at matrix @ index + offset, linear or of the nearest voxel; beyond it its edge."""
    out = np.empty(tuple(shape), dtype=np.float32)
    order = 0 if nearest else 1
    scipy.ndimage.affine_transform(array, matrix, offset, tuple(shape), out, order, mode="nearest")  # type: ignore[arg-type]
    return out

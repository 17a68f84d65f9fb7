"""Regions of a real scan that a person might click: connected to a voxel, with a border of their own.

A stable extremal region (after Matas et al., BMVC 2002) around a seed: the voxels brighter (or darker) than a threshold
that are connected to it by more than a thin bridge, at a threshold where the region hardly grows.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from voxsam.lab.engine.voxels import Image, Mask, dilated, eroded, parts_of, smoothed

TOLERANCES_HU = 12.0 * 1.45 ** np.arange(6)  # between the seed and the threshold
SMALLEST, LARGEST = 40, 30_000  # voxels
GROWTH = 0.6  # of the log size from one tolerance to the next: a region that grows faster has no border of its own
AT_BORDER = 0.02  # fraction of the crop's outermost voxels that a region may take
WINDOW_HU = (-250.0, 250.0)  # intensities beyond are not distinguished: lung from air, bone from bone


def stable_region(image: Image, seed: tuple[int, int, int], blur: float, rng: np.random.Generator) -> Mask | None:
    """A stable region (D, H, W) around a voxel of an image smoothed by `blur` voxels; None if there is none."""
    smooth = smoothed(image.clip(*WINDOW_HU), blur)
    above = smooth - smooth[seed] if rng.random() < 0.6 else smooth[seed] - smooth
    bridge = int(rng.integers(1, 3))
    before, stable = None, []
    for tolerance in TOLERANCES_HU:
        region = _joined(above >= -tolerance, seed, bridge)
        size = int(region.sum())
        if size > LARGEST:
            break
        if before is not None and before.sum() >= SMALLEST and np.log(size / before.sum()) <= GROWTH:
            stable.append(region)
        before = region
    if not stable:
        return None
    region = np.asarray(scipy.ndimage.binary_fill_holes(stable[int(rng.integers(len(stable)))]), dtype=bool)
    border = np.ones(region.shape, dtype=bool)
    border[1:-1, 1:-1, 1:-1] = False
    return region if region[border].mean() <= AT_BORDER else None


def _joined(mask: Mask, seed: tuple[int, int, int], bridge: int) -> Mask:
    """The part of a mask connected to a voxel by bridges wider than `bridge` voxels on either side; may be empty."""
    parts, _ = parts_of(eroded(mask, bridge, beyond=True))
    near = parts[tuple(slice(max(0, s - bridge), s + bridge + 1) for s in seed)]
    if not near.any():
        return np.zeros_like(mask)
    return dilated(parts == near[near > 0][0], bridge + 1, within=mask)

"""The scores of a mask against its ground truth: Dice, NSD, HD95, volume error, lesion-wise detection.

Distances are in mm on the scan's own grid. For the scores of empty masks see `score` and docs/evaluation.md.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from voxsam.boxes import bounding_box
from voxsam.errors import GeometryError, InputError
from voxsam.report.metrics import dice

TOLERANCE_MM = 5.0  # of the NSD (paper, appendix)
DETECTED_IOU = 0.1  # least IoU of a lesion with the predicted components that touch it
NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """The scores of one mask. HD95 is infinite if only one of mask and truth is empty; nan means an empty truth."""

    dice: float  # 0..1
    nsd: float  # 0..1, normalised surface distance (surface Dice at a tolerance)
    hd95_mm: float
    truth_ml: float
    mask_ml: float
    volume_error: float  # (mask - truth) / truth
    lesions: int  # in the truth
    lesions_found: int
    false_lesions: int  # components of the mask that touch no lesion
    nsd_voxels: float = math.nan  # NSD that counts surface voxels instead of area; nan: not asked for

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, in order."""
        return tuple(field.name for field in fields(cls))


def score(
    mask: ArrayLike,
    truth: ArrayLike,
    spacing_mm: NDArray[np.float64],
    tolerance_mm: float = TOLERANCE_MM,
    voxel_nsd: bool = False,
) -> Scores:
    """Score a mask (i, j, k) against a ground truth of the same shape; non-zero voxels count, `spacing_mm` is (3,).

    Both empty: Dice and NSD 1, HD95 0. One empty: Dice and NSD 0, HD95 infinite. An empty truth has no volume error,
    unless the mask is empty too: then it is 0. `voxel_nsd` adds the NSD by voxels. Raises GeometryError if the shapes
    differ, InputError for a tolerance that is negative, infinite or NaN.
    """
    inside, wanted = np.asarray(mask) != 0, np.asarray(truth) != 0
    if inside.shape != wanted.shape:
        raise GeometryError(
            f"masks of shapes {inside.shape} and {wanted.shape}", "two masks on one grid", "resample one onto the other"
        )
    if not tolerance_mm >= 0 or math.isinf(tolerance_mm):
        raise InputError(f"a tolerance of {tolerance_mm} mm", "millimetres from 0 on", "the paper takes 5")
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    box = bounding_box(inside | wanted)
    inside, wanted = inside[box], wanted[box]
    nsd, hd95_mm = _surface_scores(inside, wanted, spacing_mm, tolerance_mm)
    in_mask, in_truth = int(np.count_nonzero(inside)), int(np.count_nonzero(wanted))
    error = (in_mask - in_truth) / in_truth if in_truth else (math.nan if in_mask else 0.0)
    volumes = (in_truth * voxel_ml, in_mask * voxel_ml, error)
    by_voxels = _nsd_by_voxels(inside, wanted, spacing_mm, tolerance_mm) if voxel_nsd else math.nan
    return Scores(float(dice(inside, wanted)), nsd, hd95_mm, *volumes, *_detection(inside, wanted), by_voxels)


def components(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """The connected components (26 neighbours) of a mask, numbered from 1 in array order, and their count."""
    numbered = np.empty(mask.shape, dtype=np.int32)
    count = scipy.ndimage.label(mask, structure=NEIGHBOURS_26, output=numbered)
    return numbered, int(count)  # type: ignore[arg-type]


def _surface_scores(
    mask: Mask, truth: Mask, spacing_mm: NDArray[np.float64], tolerance_mm: float
) -> tuple[float, float]:
    """NSD at the tolerance and HD95 in mm, both weighted by the area of the surface elements."""
    if not mask.any() or not truth.any():  # surface-distance 0.1 fails on empty masks with numpy 2
        return (1.0, 0.0) if mask.any() == truth.any() else (0.0, math.inf)
    import surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it uses a deprecated name of scipy.ndimage
        distances = surface_distance.compute_surface_distances(truth, mask, [float(s) for s in spacing_mm])
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return float(nsd), float(surface_distance.compute_robust_hausdorff(distances, 95))


def _nsd_by_voxels(mask: Mask, truth: Mask, spacing_mm: NDArray[np.float64], tolerance_mm: float) -> float:
    """NSD as in MONAI: of the voxels of both surfaces, the fraction within the tolerance of the other surface."""
    if not mask.any() or not truth.any():
        return float(mask.any() == truth.any())
    import torch
    from monai.metrics.surface_dice import compute_surface_dice

    found, wanted = (torch.from_numpy(np.pad(one, 1))[None, None].float() for one in (mask, truth))
    spacing = [float(s) for s in spacing_mm]
    return float(compute_surface_dice(found, wanted, [tolerance_mm], include_background=True, spacing=spacing))


def _detection(mask: Mask, truth: Mask) -> tuple[int, int, int]:
    """The numbers of lesions in the truth, of lesions found, and of mask components that touch no lesion."""
    lesions, count = components(truth)
    predicted, predicted_count = components(mask)
    pairs = lesions.astype(np.int64) * (predicted_count + 1) + predicted
    shared = np.bincount(pairs.ravel(), minlength=(count + 1) * (predicted_count + 1))
    shared = shared.reshape(count + 1, predicted_count + 1)  # voxels of lesion l in component p; 0 is background
    lesion_sizes, predicted_sizes = shared.sum(axis=1), shared.sum(axis=0)
    common = shared[1:, 1:]
    union = lesion_sizes[1:] + ((common > 0) * predicted_sizes[1:]).sum(axis=1) - common.sum(axis=1)
    found = np.count_nonzero(common.sum(axis=1) >= DETECTED_IOU * union) if count else 0
    return count, int(found), int(np.count_nonzero(~common.any(axis=0)))

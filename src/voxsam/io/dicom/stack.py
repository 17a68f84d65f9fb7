"""How the slices of a DICOM series lie: sorted along their normal, on one regular grid, or refused with the reason.

The affine is exact: ImageOrientationPatient and PixelSpacing in the plane, the mean step of ImagePositionPatient
between slices (DICOM PS3.3 C.7.6.2.1.1), LPS turned into RAS.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.io.dicom.files import Slice

SAME_POSITION_MM = 1e-3
POSITION_TOLERANCE_MM = 0.11  # positions with one decimal, and as much again in the ends that the step comes from ...
ROUNDING = 0.3  # ... but never more than this part of the slice spacing
POSITION_TOLERANCE = 0.05  # of the slice spacing: the mask is then off by a twentieth of a voxel at most
DIRECTION_TOLERANCE = 1e-3  # between the unit vectors of two slices: a drift of 0.05 degrees
ANGLE_TOLERANCE = 4e-3  # from unit length and from a right angle: cosines written with three decimals
TILT_REMARK_DEGREES = 0.5  # what lies below is rounding; real gantry tilts are 5 to 30 degrees
MAX_TILT_DEGREES = 60


def stacked(slices: list[Slice], name: str) -> tuple[list[Slice], Grid, list[str]]:
    """The slices sorted along their normal, their grid, and remarks. Raises GeometryError if they form none."""
    orientations = np.stack([s.numbers("ImageOrientationPatient", 6) for s in slices])
    spacings = np.stack([s.numbers("PixelSpacing", 2) for s in slices])  # between rows (j), between columns (i)
    positions = np.stack([s.numbers("ImagePositionPatient", 3) for s in slices])
    along_i, along_j = _directions(orientations, name)
    between_rows, between_columns = spacings[0]
    if spacings.min() <= 0 or not np.allclose(spacings, spacings[0], rtol=1e-4, atol=0):
        low, high = spacings.min(), spacings.max()
        given = (
            f"{name} has pixel spacings of {low:.4g} to {high:.4g} mm that are not positive or differ between slices"
        )
        raise GeometryError(given, "the same positive PixelSpacing in all slices", "export the original series")
    normal = np.cross(along_i, along_j)
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    step, remarks = _check_stack(slices, positions, normal, name)
    steps = np.stack([along_i * between_columns, along_j * between_rows, step], axis=1)
    shape = (*slices[0].size, len(slices))
    return slices, Grid.from_lps(shape, steps, positions[0]), remarks


def _directions(orientations: NDArray[np.float64], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) unit vectors along which column (i) and row (j) numbers grow, LPS; the same for all slices."""
    if np.abs(orientations - orientations[0]).max() > DIRECTION_TOLERANCE:
        raise GeometryError(
            f"the slices of {name} have different orientations", "parallel slices", "remove localizers and other planes"
        )
    along_i, along_j = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(along_i), np.linalg.norm(along_j)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(along_i @ along_j)) > ANGLE_TOLERANCE:
        given = f"ImageOrientationPatient of {name} is not two perpendicular unit vectors"
        raise GeometryError(given, "a valid orientation", "export the original series")
    # of all turns of the plane, the one nearest to both: rounded cosines are made perpendicular
    u, _, vt = np.linalg.svd(np.stack([along_i, along_j]), full_matrices=False)
    along_i, along_j = u @ vt
    return along_i, along_j


def _check_stack(
    slices: list[Slice], positions: NDArray[np.float64], normal: NDArray[np.float64], name: str
) -> tuple[NDArray[np.float64], list[str]]:
    """(3,) the step between slices, LPS mm, and remarks. Raises GeometryError unless `positions` (n, 3) follow it."""
    heights = positions @ normal
    gaps = np.diff(heights)
    if gaps.min() < SAME_POSITION_MM:
        k, count = int(gaps.argmin()), int((gaps < SAME_POSITION_MM).sum())
        raise GeometryError(
            f"{name} has duplicate slices: {slices[k].name} and {slices[k + 1].name} lie at the same position, "
            f"{heights[k]:.2f} mm along the normal ({count} such pairs)",
            "one slice at each position",
            "keep one time point, echo or reconstruction",
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off_line = positions - positions[0] - np.arange(len(slices))[:, None] * step
    height = float(step @ normal)
    tolerance = max(POSITION_TOLERANCE * height, min(POSITION_TOLERANCE_MM, ROUNDING * height))
    if np.abs(off_line @ normal).max() > tolerance:
        raise _uneven(gaps, heights, name)
    sideways = np.linalg.norm(step - height * normal)
    tilt = float(np.degrees(np.arctan2(sideways, height)))
    if tilt > MAX_TILT_DEGREES or np.abs(off_line).max() > tolerance:
        shift = float(np.abs(off_line).max())
        raise GeometryError(
            f"the slices of {name} are not stacked in a line: one is shifted by {shift:.3g} mm in its plane "
            f"(the others lean by {tilt:.1f} degrees)",
            "slices that follow one direction",
            "remove the images of another acquisition",
        )
    if tilt <= TILT_REMARK_DEGREES:
        return step, []
    remark = f"the slices of {name} lean by {tilt:.1f} degrees (gantry tilt): each is shifted by {sideways:.3g} mm"
    return step, [f"{remark}; read as the sheared grid that this is, distances across slices are less exact"]


def _uneven(gaps: NDArray[np.float64], heights: NDArray[np.float64], name: str) -> GeometryError:
    """The error for slices that are not evenly spaced: some missing, or no common distance."""
    usual = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    missing = np.rint(gaps / usual) - 1
    k = int(gaps.argmax())
    between = f"between {heights[k]:.2f} and {heights[k + 1]:.2f} mm along the normal"
    if missing.sum() > 0 and np.abs(gaps / usual - missing - 1).max() < 0.1 * (missing.max() + 1):
        given = f"{name} has {missing.sum():.0f} missing slice(s), the largest gap {between}"
        return GeometryError(given, f"a slice every {usual:.4g} mm", "copy or export the whole series again")
    given = f"{name} has uneven slice spacing ({gaps.min():.4g} to {gaps.max():.4g} mm, the largest gap {between})"
    return GeometryError(given, "one slice spacing", "resample it to even slices first and give the NIfTI")

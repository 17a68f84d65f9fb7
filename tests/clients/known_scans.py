"""Scans with their tumours, reoriented to other axes, for tests with other programs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxsam.io import read_volume
from voxsam.phantoms import make_phantom
from voxsam.prompts import spread
from voxsam.volume import Volume

CASE = "STS_003"


class KnownScan(NamedTuple):
    """A scan, its tumour, an index in it, and a lower bound of the Dice of a click there with voxsam-tiny."""

    scan: Volume
    tumour: NDArray[np.bool_]
    click: tuple[int, int, int]
    least_dice: float


def real_scan(shared_data: Path, axes: str) -> KnownScan:
    """A CT reoriented to `axes`, such as "PRI": no voxel moves in the patient."""
    folder = shared_data / "sarcoma_ct"
    scan = turned(read_volume(folder / "imagesTr" / f"{CASE}_0000.nii.gz"), axes)
    tumour = turned(read_volume(folder / "labelsTr" / f"{CASE}.nii.gz", labels=True), axes).array > 0
    return _known(scan, tumour, 0.5)


def generated_scan(axes: str) -> KnownScan:
    """A phantom of 120 x 96 x 120 mm, reoriented to `axes`."""
    phantom = make_phantom(0, (80, 64, 40), (1.5, 1.5, 3.0), "LPS")
    return _known(turned(phantom.scan, axes), turned(phantom.label, axes).array > 0, 0.3)


def _known(scan: Volume, tumour: NDArray[np.bool_], least_dice: float) -> KnownScan:
    i, j, k = (int(n) for n in spread(tumour, scan.grid.spacing_mm, 1)[0])
    return KnownScan(scan, tumour, (i, j, k), least_dice)


def turned(volume: Volume, axes: str) -> Volume:
    """The same voxels on `grid.reorient(axes)`."""
    order, flips = volume.grid.permutation_to(axes)
    array = np.flip(volume.array.transpose(order), tuple(axis for axis in range(3) if flips[axis]))
    return Volume(np.ascontiguousarray(array), volume.grid.reorient(axes), volume.modality)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())

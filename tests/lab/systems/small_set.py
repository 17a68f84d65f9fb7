"""Prepared data sets for tests of systems that train on or open one: a few small phantoms, and easy cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from voxsam.geometry import Grid
from voxsam.io import write_mask, write_volume
from voxsam.lab.data.cases import Case, find_cases
from voxsam.lab.data.layouts import write_phantoms
from voxsam.lab.data.prepare import Options, prepare
from voxsam.volume import Volume

SHAPE, SPACING_MM = (40, 36, 24), (3.0, 3.5, 5.0)


def small_set(folder: Path, seeds: range) -> tuple[Path, list[Case]]:
    """The prepared folder, and the cases that it was made from, by name."""
    raw = folder / "raw"
    write_phantoms(raw, seeds, (SHAPE, SPACING_MM))
    prepare(raw, folder / "prepared", Options(workers=1, spacing_mm=(5.0, 4.0, 4.0)))
    return folder / "prepared", find_cases(raw)


def easy_set(folder: Path, count: int = 3) -> tuple[Path, list[Case]]:
    """As `small_set`: noise with one bright box, longer on one axis than on another and never in the middle.

    The files' axes differ from case to case.
    """
    raw = folder / "raw"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for number in range(count):
        rng, upright = np.random.default_rng(number), Grid.from_spacing((24, 20, 16), (2.0, 2.5, 4.0))
        start = rng.integers((1, 1, 1), (12, 11, 9))
        inside = np.zeros(upright.shape, np.uint8)
        inside[tuple(slice(a, a + n) for a, n in zip(start, (10, 7, 5), strict=True))] = 1
        voxels = (rng.normal(0, 40, upright.shape) + 300.0 * inside).astype(np.int16)
        grid = upright.reorient(("LPS", "RAS", "SAL")[number % 3])
        axes, flips = upright.permutation_to(grid.axes)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        scan, label = (array.transpose(axes)[steps] for array in (voxels, inside))
        write_volume(Volume(scan, grid, "CT"), raw / "imagesTr" / f"easy_{number}_0000.nii.gz")
        write_mask(Volume(label, grid, "SEG"), raw / "labelsTr" / f"easy_{number}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    prepare(raw, folder / "prepared", Options(workers=1, spacing_mm=(4.0, 2.5, 2.0)))
    return folder / "prepared", find_cases(raw)

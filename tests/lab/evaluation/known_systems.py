"""Systems whose masks are known in advance, and cases on disk, for the tests of the protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxsam.geometry import Grid
from voxsam.io import write_mask, write_volume
from voxsam.lab.data.cases import Case, find_cases
from voxsam.prompts import Point
from voxsam.volume import Volume

GRID = Grid.from_spacing((20, 18, 12), (1, 2, 3), (4, 5, 6)).reorient("LPS")
LESION = (slice(3, 12), slice(4, 10), slice(2, 8))  # 9 x 6 x 6 voxels
SMALL = (slice(15, 18), slice(12, 15), slice(9, 11))


class Painter:
    """In order, every positive click fills a box of voxels around it, and every negative one clears it."""

    name, takes_clicks, takes_negative, parameters = "painter", True, True, 2_000_000

    def __init__(self, reach: int = 2) -> None:
        self.reach = reach

    def open(self, volume: Volume) -> Painting:
        return Painting(volume, self.reach)


class Painting:
    def __init__(self, volume: Volume, reach: int) -> None:
        self.volume, self.reach = volume, reach

    def segment(self, points: Sequence[Point]) -> Volume:
        mask = np.zeros(self.volume.grid.shape, np.uint8)
        for point in points:
            at = np.rint(self.volume.grid.world_to_index(point.world_mm)).astype(int)
            mask[tuple(slice(max(0, i - self.reach), i + self.reach + 1) for i in at)] = point.positive
        return Volume(mask, self.volume.grid, "SEG")


class Threshold:
    """An automatic system: whatever is brighter than 500."""

    name, takes_clicks, takes_negative, parameters = "threshold", False, False, None

    def open(self, volume: Volume) -> Threshold:
        self.volume = volume
        return self

    def segment(self, points: Sequence[Point]) -> Volume:
        assert not points
        return self.volume.with_array((self.volume.array > 500).astype(np.uint8), "SEG")


def write_cases(folder: Path, **labels: Sequence[tuple[slice, ...]]) -> list[Case]:
    """Write a case for each keyword: noise with bright lesions, the first lesion labelled 1, the next 2, ..."""
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"split": {"test": list(labels)[-1:]}}))
    for name, boxes in labels.items():
        voxels = np.random.default_rng(list(name.encode())).integers(-100, 100, GRID.shape).astype(np.int16)
        label = np.zeros(GRID.shape, np.uint8)
        for value, place in enumerate(boxes, 1):
            voxels[place], label[place] = 1000, value
        write_volume(Volume(voxels, GRID, "CT"), folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(Volume(label, GRID, "SEG"), folder / "labelsTr" / f"{name}.nii.gz")
    return find_cases(folder)

"""What needs no training: region growing and a 3D random walker from the same clicks, beside every learned system.

Both see a cube about the first click at one spacing: unbounded, either would fill the body.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import UnsupportedError
from voxsam.lab.evaluation.systems import Images
from voxsam.preprocess import Window, paste
from voxsam.prompts import Point
from voxsam.resample import resample
from voxsam.volume import Volume

SIDE, SPACING_MM = 72, 2.0  # of the cube: 144 mm


class Classical(ABC):
    """A system of the lesion board: opens a scan, and segments from clicks without knowing anything of other scans."""

    takes_clicks = True
    parameters: int | None = 0
    name: str
    takes_negative: bool

    def open(self, volume: Images) -> OpenedClassical:
        """Raises UnsupportedError for several channels."""
        if not isinstance(volume, Volume):
            raise UnsupportedError(f"{len(volume)} channels for {self.name}", "one", "give the first alone")
        return OpenedClassical(self, volume)

    @abstractmethod
    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(D, H, W) the mask in a cube for clicks (N, 3) that lie in it; at least one is positive."""


class OpenedClassical:
    """A scan opened with a classical system."""

    def __init__(self, system: Classical, volume: Volume) -> None:
        self.system, self.volume = system, volume

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask on the scan's grid; clicks beyond the cube about the first one are left out."""
        grid = self.volume.grid.reorient("SAR").respace((SPACING_MM,) * 3)
        places = grid.world_to_index([point.world_mm for point in points])
        window = Window.around(grid, places[0], (SIDE,) * 3)
        at = np.rint(places - window.start).astype(np.intp)
        inside = ((at >= 0) & (at < SIDE)).all(1)
        positive = np.array([point.positive for point in points])
        cube = resample(self.volume, window.grid, "area")
        mask = self.system.grow(cube, at[inside], positive[inside])
        box, values = paste(mask.astype(np.float32), window, self.volume.grid)
        out = np.zeros(self.volume.grid.shape, np.uint8)
        out[box] = values > 0.5
        return Volume(out, self.volume.grid, "SEG", self.volume.header)


class RegionGrowing(Classical):
    """ITK's confidence-connected region growing: what is joined to the clicks and within 2.5 s.d. of the region."""

    name, takes_negative = "region-growing", False
    multiplier, iterations, radius = 2.5, 4, 1

    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The region about all clicks, its holes closed."""
        import SimpleITK as sitk

        smooth = sitk.CurvatureFlow(sitk.GetImageFromArray(cube), timeStep=0.06, numberOfIterations=5)
        seeds = [(int(w), int(h), int(d)) for d, h, w in at[positive]]
        grown = sitk.ConfidenceConnected(smooth, seeds, self.iterations, self.multiplier, self.radius, 1)
        return sitk.GetArrayFromImage(sitk.BinaryFillhole(grown)) > 0


class RandomWalker(Classical):
    """Grady, Random Walks for Image Segmentation (2006): clicks against negative ones and the faces of the cube."""

    name, takes_negative = "random-walker", True
    beta = 130.0

    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where a walker from a voxel more probably comes first to a positive click."""
        from skimage.segmentation import random_walker

        seeds = np.zeros(cube.shape, np.uint8)
        for axis in range(3):
            np.moveaxis(seeds, axis, 0)[[0, -1]] = 2
        for place, kind in zip(at, positive, strict=True):
            seeds[tuple(slice(max(0, p - 1), p + 2) for p in place)] = 1 if kind else 2
        image = cube.clip(*np.percentile(cube, (1, 99)))
        return random_walker(image, seeds, beta=self.beta, mode="cg_j", tol=1e-3, prob_tol=0.05) == 1


CLASSICAL: dict[str, Callable[[], Classical]] = {system.name: system for system in (RegionGrowing, RandomWalker)}

"""Baselines without training, which get the same clicks: region growing and a 3D random walker.

Both see only a cube around the first click, at a fixed spacing: unbounded, either would fill the body.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import UnsupportedError
from voxsam.lab.evaluation.systems import Images, Opened, OpenedScan, System, pasted_mask
from voxsam.lab.systems.compared import About, Job, Untrained, register
from voxsam.preprocess import Window
from voxsam.prompts import Point
from voxsam.resample import resample
from voxsam.volume import Volume

SIDE, SPACING_MM = 72, 2.0  # of the cube: 144 mm
CUBE = f"it sees a cube of {SIDE * SPACING_MM:.0f} mm about the first click, at {SPACING_MM:g} mm"


class Classical(Untrained):
    """A baseline that segments from clicks, without having learned from other scans: a row and its system in one."""

    takes_clicks = True
    takes_negative: bool
    parameters: int | None = 0

    def load(self, job: Job) -> System:
        """The system as it is."""
        return self

    def open(self, volume: Images) -> Opened:
        """Open a scan. Raises UnsupportedError for several channels."""
        if not isinstance(volume, Volume):
            raise UnsupportedError(f"{len(volume)} channels for {self.name}", "one", "give the first alone")
        return OpenedScan(partial(self._segment, volume))

    def _segment(self, volume: Volume, points: Sequence[Point]) -> Volume:
        """The mask on the scan's grid; clicks outside the cube around the first one are left out."""
        grid = volume.grid.reorient("SAR").respace((SPACING_MM,) * 3)
        places = grid.world_to_index([point.world_mm for point in points])
        window = Window.around(grid, places[0], (SIDE,) * 3)
        at = np.rint(places - window.start).astype(np.intp)
        inside = ((at >= 0) & (at < SIDE)).all(1)
        positive = np.array([point.positive for point in points])
        mask = self.grow(resample(volume, window.grid, "area"), at[inside], positive[inside])
        return pasted_mask(mask.astype(np.float32), window, volume)

    @abstractmethod
    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask (D, H, W) in a cube for clicks (N, 3) inside it, at least one of them positive."""


@register("region-growing")
class RegionGrowing(Classical):
    """ITK's confidence-connected region growing: what is connected to the clicks and within 2.5 s.d. of the region."""

    name, takes_negative = "region-growing", False
    about = About(
        title="Region growing",
        paper="ITK's ConfidenceConnectedImageFilter, ITK Software Guide",
        source="https://itk.org",
        licence="Apache-2.0",
        library="SimpleITK",
        differences=CUBE,
        trained=False,
        note=f"not trained; {CUBE}",
    )
    multiplier, iterations, radius = 2.5, 4, 1

    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The region grown from the positive clicks, its holes filled."""
        import SimpleITK as sitk

        smooth = sitk.CurvatureFlow(sitk.GetImageFromArray(cube), timeStep=0.06, numberOfIterations=5)
        seeds = [(int(w), int(h), int(d)) for d, h, w in at[positive]]
        grown = sitk.ConfidenceConnected(smooth, seeds, self.iterations, self.multiplier, self.radius, 1)
        return sitk.GetArrayFromImage(sitk.BinaryFillhole(grown)) > 0


@register("random-walker")
class RandomWalker(Classical):
    """Grady, Random Walks for Image Segmentation (2006): positive clicks against negative ones and the cube's faces."""

    name, takes_negative = "random-walker", True
    about = About(
        title="Random walker",
        paper="Grady, Random Walks for Image Segmentation, IEEE TPAMI 2006",
        source="https://scikit-image.org",
        licence="BSD-3-Clause",
        library="scikit-image",
        differences=f"{CUBE}; the cube's faces count as negative clicks",
        trained=False,
        note=f"not trained; {CUBE}",
    )
    beta = 130.0

    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The voxels from which a random walker more probably reaches a positive click first."""
        from skimage.segmentation import random_walker

        seeds = np.zeros(cube.shape, np.uint8)
        for axis in range(3):
            np.moveaxis(seeds, axis, 0)[[0, -1]] = 2
        for place, kind in zip(at, positive, strict=True):
            seeds[tuple(slice(max(0, p - 1), p + 2) for p in place)] = 1 if kind else 2
        image = cube.clip(*np.percentile(cube, (1, 99)))
        return random_walker(image, seeds, beta=self.beta, mode="cg_j", tol=1e-3, prob_tol=0.05) == 1


CLASSICAL: dict[str, Callable[[], Classical]] = {system.name: system for system in (RegionGrowing, RandomWalker)}

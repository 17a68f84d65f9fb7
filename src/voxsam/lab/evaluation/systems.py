"""The systems under evaluation: anything that opens a scan and returns a mask for clicks; here VoxSAM's own models.

Also two baselines without training, which get the same clicks: region growing and a 3D random walker. Both see only a
cube around the first click, at a fixed spacing: unbounded, either would fill the body.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import PromptError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.network.promptable import Promptable
from voxsam.network.tuning import counts
from voxsam.preprocess import Window, paste
from voxsam.prompts import Point
from voxsam.resample import resample
from voxsam.volume import Volume

Images = Volume | Sequence[Volume]  # a scan, or its channels


class Opened(Protocol):
    """A scan opened with a system."""

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask on the scan's grid for exactly these clicks: each call passes all clicks so far."""
        ...


@runtime_checkable
class OpenedPerSlice(Opened, Protocol):
    """A scan opened with a 2D system, which is clicked in every axial slice with tumour, and so told which these are.

    `segment` fills the slices that have clicks; all others stay empty.
    """

    def show_truth(self, truth: Volume) -> None:
        """Take the ground truth on the scan's grid, before the first click, for a system that chooses as an oracle."""
        ...


class System(Protocol):
    """A method under evaluation; if it has a `card`, the cases are looked up in its list of training cases."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def takes_clicks(self) -> bool:
        """Whether it takes clicks; if not, `segment` is called without points."""
        ...

    @property
    def takes_negative(self) -> bool:
        """Whether it takes negative clicks, which mean "this is not the tumour"."""
        ...

    @property
    def parameters(self) -> int | None:
        """Its number of parameters, for the tables; None if unknown."""
        ...

    def open(self, volume: Images) -> Opened:
        """Prepare a scan; a case of several channels is passed as all of them, on one grid."""
        ...


def taken_by(model: Promptable, images: Images) -> Images:
    """The images a model takes: a single-channel model gets the first of several channels, as in training."""
    several = not isinstance(images, Volume) and model.card.preprocessing.channels == 1
    return images[0] if several else images  # type: ignore[index]


class SessionSystem:
    """A VoxSAM model, used as in a session; `follow=False` keeps to one crop, as released.

    Raises UnsupportedError for a model that takes no clicks.
    """

    takes_clicks = True

    def __init__(self, model: Promptable, follow: bool = True) -> None:
        if model.card.automatic:
            raise UnsupportedError(
                f"clicks for the model {model.card.name}", "no clicks: it was trained without", "add --auto"
            )
        self.model, self.follow = model, follow
        self.name, self.takes_negative = model.card.name, model.config.polarity
        self.parameters: int | None = counts(model).total
        self.card = model.card

    def open(self, volume: Images) -> Opened:
        """A predictor whose encoded crops serve all trials."""
        predictor = Predictor(self.model, follow=self.follow)
        return _OpenedClicked(predictor.set_image(taken_by(self.model, volume)))


class _OpenedClicked:
    """Predicts with the first click, then with all others at once: masks do not depend on which counts are scored."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._first: Prediction | None = None

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask. Without following, clicks that do not fit into one crop with the first are left out."""
        first = self._first
        if first is None or first.prompts != tuple(points[:1]):
            first = self._first = self.predictor.predict(points[:1])
        found, taken = first, list(points[:1])
        if self.predictor.follow and len(points) > 1:
            return self.predictor.predict(points, first).mask
        for point in points[1:]:
            try:
                found = self.predictor.predict([*taken, point], first)
            except PromptError:
                continue
            taken.append(point)
        return found.mask


class AutomaticSystem:
    """A VoxSAM model trained without clicks, applied by sliding window (paper: overlap 0.7, constant weights).

    Raises UnsupportedError for a model that takes clicks.
    """

    takes_clicks = takes_negative = False

    def __init__(self, model: Promptable) -> None:
        if not model.card.automatic:
            raise UnsupportedError(
                f"--auto with the model {model.card.name}",
                "a model trained without clicks",
                "leave out --auto, or choose another model with --model",
            )
        self.model, self.name = model, model.card.name
        self.parameters: int | None = counts(model).total
        self.card = model.card

    def open(self, volume: Images) -> Opened:
        """The scan, kept until `segment`."""
        return _OpenedAutomatic(self.model, taken_by(self.model, volume))


class _OpenedAutomatic:
    def __init__(self, model: Promptable, volume: Images) -> None:
        self.model, self.volume = model, volume

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask of the whole scan; `points` must be empty."""
        from voxsam.interactive.automatic import segment_automatically  # here: MONAI takes seconds to import

        assert not points
        return segment_automatically(self.model, self.volume).mask


def turned(volume: Volume, axes: str) -> Volume:
    """The same voxels, permuted and flipped so that the indices increase along `axes`, e.g. "SPL"."""
    permutation, flips = volume.grid.permutation_to(axes)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return replace(volume, array=volume.array.transpose(permutation)[steps], grid=volume.grid.reorient(axes))


def turned_back(mask: Volume, grid: Grid) -> Volume:
    """Bring a mask back to `grid` from a grid that `turned` made of it."""
    return Volume(turned(mask, grid.axes).array, grid, "SEG")


SIDE, SPACING_MM = 72, 2.0  # of the cube: 144 mm


class Classical(ABC):
    """A baseline of the lesion board: segments from clicks, without having learned from other scans."""

    takes_clicks = True
    parameters: int | None = 0
    name: str
    takes_negative: bool

    def open(self, volume: Images) -> OpenedClassical:
        """Open a scan. Raises UnsupportedError for several channels."""
        if not isinstance(volume, Volume):
            raise UnsupportedError(f"{len(volume)} channels for {self.name}", "one", "give the first alone")
        return OpenedClassical(self, volume)

    @abstractmethod
    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask (D, H, W) in a cube for clicks (N, 3) inside it, at least one of them positive."""


class OpenedClassical:
    """A scan opened with a classical system."""

    def __init__(self, system: Classical, volume: Volume) -> None:
        self.system, self.volume = system, volume

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask on the scan's grid; clicks outside the cube around the first one are left out."""
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
    """ITK's confidence-connected region growing: what is connected to the clicks and within 2.5 s.d. of the region."""

    name, takes_negative = "region-growing", False
    multiplier, iterations, radius = 2.5, 4, 1

    def grow(self, cube: NDArray[np.float32], at: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The region grown from the positive clicks, its holes filled."""
        import SimpleITK as sitk

        smooth = sitk.CurvatureFlow(sitk.GetImageFromArray(cube), timeStep=0.06, numberOfIterations=5)
        seeds = [(int(w), int(h), int(d)) for d, h, w in at[positive]]
        grown = sitk.ConfidenceConnected(smooth, seeds, self.iterations, self.multiplier, self.radius, 1)
        return sitk.GetArrayFromImage(sitk.BinaryFillhole(grown)) > 0


class RandomWalker(Classical):
    """Grady, Random Walks for Image Segmentation (2006): positive clicks against negative ones and the cube's faces."""

    name, takes_negative = "random-walker", True
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

"""The systems under evaluation: anything that opens a scan and returns a mask for clicks; here VoxSAM's own models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from voxsam.volume import Volume

Images = Volume | Sequence[Volume]  # a scan, or its channels


class Opened(Protocol):
    """A scan opened with a system."""

    def segment(self, points: Sequence[Point], /) -> Volume:
        """The mask on the scan's grid for exactly these clicks: each call passes all clicks so far."""
        ...


@dataclass(frozen=True)
class OpenedScan:
    """A scan opened with a system that keeps nothing between calls of its function `segment`."""

    segment: Callable[[Sequence[Point]], Volume]


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
        """The scan, kept until it is segmented."""
        return OpenedScan(partial(self._segment, taken_by(self.model, volume)))

    def _segment(self, volume: Images, points: Sequence[Point]) -> Volume:
        from voxsam.interactive.automatic import segment_automatically  # here: MONAI takes seconds to import

        assert not points
        return segment_automatically(self.model, volume).mask


def pasted_mask(crop: NDArray[np.float32], window: Window, scan: Volume) -> Volume:
    """The mask on a scan's grid where a crop's probabilities (D, H, W), resampled to it, are above 0.5."""
    box, values = paste(crop, window, scan.grid)
    mask = np.zeros(scan.grid.shape, np.uint8)
    mask[box] = values > 0.5
    return Volume(mask, scan.grid, "SEG", scan.header)


def turned_back(mask: Volume, grid: Grid) -> Volume:
    """Bring a mask back to `grid` from one that `reorient` made of it."""
    return Volume(mask.reorient(grid.axes).array, grid, "SEG")

"""A model whose answer is known in advance, and scans to click in; for the tests of Session."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

CROP = 16
FAR = 0.4  # normalised intensity of what is surely inside (+) or surely outside (-)
ALL_AXES = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)  # all 48 ways to lay three axes
]


class KnownModel(nn.Module):
    """What a Session asks of a network; its probability at a voxel is 0.5 + the normalised intensity there.

    A click looks like the intensity under it. Negative clicks leave their trace: they are counted, and at each voxel
    that looks just like a negative click the probability is 0.
    """

    far_clicks = True
    goes_on = False

    def __init__(self, axes: str = "SAR", spacing=(1.0, 1.0, 1.0), crop: int = CROP, polarity: bool = True) -> None:
        super().__init__()
        preprocessing = Preprocessing(axes=axes, spacing_mm=spacing, clip=(-1, 1), mean=0, sd=1)
        self.card = SimpleNamespace(
            name="known",
            preprocessing=preprocessing,
            automatic=False,
            conditioning=None,
            calibration=None,
            classes=None,
            trained_on={},
        )
        self.config = SimpleNamespace(crop=crop, polarity=polarity, stride=4)
        self.weight = nn.Parameter(torch.ones(()))
        self.encoded = self.decoded = 0
        self.prompt_features = self.labels = None

    def encode(self, crops, progress=None):
        assert crops.shape == (1, 1, *(self.config.crop,) * 3)
        self.encoded += 1
        if progress is not None:
            progress(1, 2)
            progress(2, 2)
        return (crops * 3 * self.weight, crops * self.weight)

    def static(self, features, crops):
        assert len(features) == 2
        return crops * 0

    def prompted(self, features):
        return features[-1:]

    def sample(self, features, points):
        assert points.shape == (1, 1, 3)
        d, h, w = torch.round(points[0, 0]).long().clamp(0, self.config.crop - 1).tolist()
        return features[-1][:, :, d, h, w][:, None]

    def decode(
        self,
        features,
        crops,
        points=None,
        *,
        prompt_features=None,
        labels=None,
        static=None,
        conditioning=None,
        previous=None,
    ):
        assert conditioning is None and previous is None
        assert points.shape == (1, prompt_features.shape[1], 3) and prompt_features.shape[2] == 1
        self.decoded += 1
        self.prompt_features, self.labels = (
            prompt_features[0, :, 0].tolist(),
            None if labels is None else labels[0].tolist(),
        )
        probability = (0.5 + features[-1] + static).clamp(1e-4, 1 - 1e-4)
        if labels is not None:
            for look in prompt_features[0, labels[0] == 0, 0]:
                probability = torch.where((features[-1] - look).abs() < 1e-3, 1e-4, probability)
        return torch.cat([torch.zeros_like(probability), torch.logit(probability)], 1)


def block_scan(grid: Grid, *boxes: tuple, values: tuple[float, ...] = ()) -> Volume:
    """A scan that is inside in some boxes of voxels ((i0, i1), (j0, j1), (k0, k1)) and outside everywhere else."""
    array = np.full(grid.shape, -FAR, np.float32)
    for box, value in itertools.zip_longest(boxes, values, fillvalue=FAR):
        array[tuple(slice(*ends) for ends in box)] = value
    return Volume(array, grid, "CT", {"kept": 1})


def upright(*shape: int) -> Grid:
    return Grid.from_spacing(shape, (1, 1, 1), (-3, 8, 20))


def oblique(shape=(14, 12, 10), spacing=(1.0, 1.0, 1.0)) -> Grid:
    """A 3-4-5 turn about z of axes that are stored (z, x, y)."""
    affine = np.array([[0, 0.8, -0.6, 10], [0, 0.6, 0.8, -20], [1, 0, 0, 30], [0, 0, 0, 1.0]])
    affine[:3, :3] *= spacing
    return Grid(shape, affine)


def world_of(grid: Grid) -> np.ndarray:
    return grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def window_box(session: Session) -> np.ndarray:
    """Which voxels of the scan lie in one of the windows that the clicks chose."""
    inside = np.zeros(session.volume.grid.shape, bool)
    at = session.model_grid.world_to_index(world_of(session.volume.grid)).round(6)
    for window in session.prediction.windows:
        inside |= ((at >= window.start) & (at <= np.add(window.start, window.shape) - 1)).all(-1)
    return inside


def two_blocks() -> tuple[KnownModel, Session]:
    volume = block_scan(upright(40, 40, 40), ((10, 13),) * 3, ((24, 28),) * 3)
    model = KnownModel()
    return model, Session(model, volume)

"""Models whose prediction is known in advance, and scans to click in."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.network.card import Card
from voxsam.network.conditioning import condition
from voxsam.network.prompt_encoder import sample_features
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import TINY
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

CROP, STRIDE = 16, 4
FAR = 0.4  # normalised intensity of what is surely inside (+) or surely outside (-)
ALL_AXES = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)  # all 48 ways to lay three axes
]


def known_card(crop: int = CROP, polarity: bool = True, **preprocessing: object) -> Card:
    update = {
        "crop": crop,
        "stride": STRIDE,
        "polarity": polarity,
        "marks": polarity,
        "feature_width": 8,
        "prompt_heads": 4,
    }
    return Card(
        name="known",
        config=TINY.model_copy(update=update),
        preprocessing=Preprocessing.model_validate(preprocessing),
        description={"licence": "CC0-1.0"},
    )


class KnownModel(Promptable):
    """Its probability at a voxel is 0.5 + the normalised intensity there.

    A click's prompt feature is the intensity under it. Negative clicks are counted, and at each voxel with exactly the
    feature of a negative click the probability is 0.
    """

    def __init__(
        self, axes: str = "SAR", spacing=(1.0, 1.0, 1.0), crop: int = CROP, polarity: bool = True, card=None
    ) -> None:
        super().__init__(card or known_card(crop, polarity, axes=axes, spacing_mm=spacing, clip=(-1, 1), mean=0, sd=1))
        self.weight = nn.Parameter(torch.ones(()))
        self.encoded = self.decoded = 0
        self.prompt_features = self.labels = None

    def describe(self, **update: object) -> None:
        """Change fields of its card."""
        self.card = self.card.model_copy(update=update)

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
        assert points.shape == (1, prompt_features.shape[1], 3)
        self.decoded += 1
        self.prompt_features, self.labels = (
            prompt_features[0, :, 0].tolist(),
            None if labels is None else labels[0].tolist(),
        )
        fused, tumour = self.answer(features, static, prompt_features, labels, previous)
        logits = torch.cat([torch.zeros_like(tumour), tumour], 1)
        return logits if conditioning is None else condition(logits, fused, points, labels, conditioning)

    def answer(self, features, static, prompt_features, labels, previous):
        """Features for conditioning, and a logit for each voxel."""
        assert previous is None and prompt_features.shape[2] == 1
        probability = (0.5 + features[-1] + static).clamp(1e-4, 1 - 1e-4)
        if labels is not None:
            for look in prompt_features[0, labels[0] == 0, 0]:
                probability = torch.where((features[-1] - look).abs() < 1e-3, 1e-4, probability)
        return features[-1], torch.logit(probability)


class LikeClicks(KnownModel):
    """A voxel is tumour if it is like what was clicked, and near it; the model takes a previous mask.

    Its one feature is the mean of 4 x 4 x 4 voxels. It can be exported: see tests/web.
    """

    goes_on = True

    def encode(self, crops, progress=None):
        return (F.avg_pool3d(crops, STRIDE) * self.weight,)

    def static(self, features, crops):
        return crops * self.weight

    def sample(self, features, points):
        return sample_features(features[-1], points, (self.config.crop,) * 3)

    def answer(self, features, static, prompt_features, labels, previous):
        positive = labels[..., None].float()
        clicked = (prompt_features * positive).sum(1) / positive.sum(1)
        tumour = 3 - 5 * (static - clicked[:, :, None, None, None]).abs()
        return features[-1], tumour if previous is None else tumour + 0.25 * previous.clamp(-2, 2)


class OneSided(LikeClicks):
    """It sees more tumour in the half of its crop with the higher w."""

    def answer(self, features, static, prompt_features, labels, previous):
        fused, tumour = super().answer(features, static, prompt_features, labels, previous)
        return fused, tumour + torch.linspace(-1, 1, CROP)


def block_scan(grid: Grid, *boxes: tuple, values: tuple[float, ...] = ()) -> Volume:
    """A scan with the intensity of inside in some boxes ((i0, i1), (j0, j1), (k0, k1)) and of outside elsewhere."""
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


def both_clicked() -> Session:
    """Both blocks, an object each; the second is the current one."""
    _, session = two_blocks()
    session.click((11, 11, 11))
    session.new_object()
    session.click((25, 25, 25))
    return session

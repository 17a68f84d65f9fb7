"""Small variants of the networks, with options that train in seconds on one core; cards and phantoms for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import voxsam.lab.systems  # noqa: F401
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.cases import Labelled
from voxsam.lab.data.sampling import Sampler
from voxsam.lab.systems.networks import AutomaticNetwork, Size
from voxsam.network.card import Card
from voxsam.phantoms import make_phantom
from voxsam.preprocess import Preprocessing
from voxsam.testing import stub_network

CROP = 32
SIDES = {"swin-unetr": 64}  # of the crop, where 32 is too small
USE = Preprocessing(spacing_mm=(4, 5, 6), clip=(-120, 200), mean=35, sd=40, interpolation="area")
TINY: dict[str, dict] = {
    "nnunet-network": {"width": 8, "widest": 64},
    "resenc-unet": {"width": 8, "widest": 64, "blocks": [1, 2, 2, 2]},
    "transbts": {"width": 8, "embedding": 64, "mlp": 128, "heads": 4, "layers": 2, "deep_blocks": 1},
    "nnformer": {"width": 24, "heads": [2, 4, 8, 16], "windows": [4, 4, 4, 2], "patch": [4, 4, 4]},
    "swin-unetr": {"width": 12, "window": 4, "depths": [1, 1, 1, 1]},
    "unetr": {"width": 8, "hidden": 96, "mlp": 192, "heads": 4},
    "unetrpp": {"widths": [16, 32, 64, 128], "depths": [1] * 4, "projected": [32] * 4, "width": 8},
    "ux-net": {"widths": [8, 16, 32, 64], "hidden": 128, "depths": [1, 1, 1, 1]},
    "segresnet": {"width": 8, "blocks_down": [1, 1, 1, 2]},
    "mednext": {"width": 8},
}


def card(system: str, crop: int | None = None, **options: object) -> Card:
    """An automatic card of that system, with the small options overridden by `options`."""
    config = stub_network().config.model_copy(update={"crop": crop or SIDES.get(system, CROP)})
    options = {**TINY[system], **options}
    return Card(name=system, system=system, options=options, config=config, preprocessing=USE, automatic=True)


def network(system: str, crop: int | None = None, size: Size | None = None, **options: object) -> AutomaticNetwork:
    """The small network of that system, always with the same weights."""
    torch.manual_seed(0)
    return AutomaticNetwork(card(system, crop, **options), size)


def phantom_crop(size: Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(1, 1, D, H, W) normalised crop on a tumour of a phantom, tiled where it is not a cube; and its mask."""
    phantom = make_phantom(seed, (40, 34, 30), (4, 5, 6), "PLS")
    case = Labelled.make(phantom.scan, phantom.label)
    fine = USE.model_copy(update={"spacing_mm": (2.0, 2.5, 3.0)})
    sample = Sampler(fine, min(size), Augmentation(), "none").draw(case, np.random.default_rng(0))
    times = [1, 1, *(n // min(size) for n in size)]
    return torch.as_tensor(sample["crop"])[None].repeat(times), torch.as_tensor(sample["label"])[None].repeat(times)

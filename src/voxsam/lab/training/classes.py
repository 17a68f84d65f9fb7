"""What a trained model knows of its classes: the features under each structure of its training cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from voxsam.interactive.confidence import features_under
from voxsam.lab.data.cases import Labelled
from voxsam.lab.data.sampling import Sampler, validation_samples
from voxsam.network.classes import Classes
from voxsam.weights.checkpoint import load_model, save_model

CROPS = 4  # of each structure


def write_classes(path: Path, names: Mapping[int, str], cases: Sequence[Labelled], sampler: Sampler, seed: int) -> None:
    """Note in a model file how its classes are told apart. `cases` are the training cases, one for each structure.

    A structure is seen as a click shows it: crops about voxels of it, the features of the encoder's last level under
    its label in them. A class without a structure is left out; of fewer than two nothing is noted.
    """
    model = load_model(path, "cpu")
    found: dict[int, list[np.ndarray]] = {}
    for turn in range(CROPS):
        for case, sample in zip(cases, validation_samples(sampler, cases, seed + turn), strict=True):
            if case.target is None:
                continue
            with torch.inference_mode():
                features = model.encode(torch.from_numpy(sample["crop"][None]))
            under = features_under(features[-1][0].float().numpy(), sample["label"][0])
            found.setdefault(case.target, []).append(under)
    if len(found) > 1:
        labels = sorted(found)
        classes = Classes.fit([names[n] for n in labels], labels, [np.stack(found[n]) for n in labels])
        model.card = model.card.model_copy(update={"classes": classes})
        save_model(model, path)

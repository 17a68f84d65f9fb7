"""How a trained model tells its classes apart: the features under each structure of its training cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from voxsam.lab.data.sampling import SampleStream, validation_samples
from voxsam.lab.data.store import find_description
from voxsam.lab.training.keep import BEST
from voxsam.network.classes import Classes, features_under
from voxsam.network.promptable import Promptable
from voxsam.weights.checkpoint import load_model, save_model

CROPS = 4  # per structure


def note_classes(data: Path | None, run: Path, stream: SampleStream, seed: int) -> None:
    """Record in the models of a run how to tell the classes of its store `data` apart, if it has any."""
    description = None if data is None else find_description(data)
    for name in ("model", BEST) if description is not None and description.classes else ():
        path = run / f"{name}.safetensors"
        if path.is_file():
            model = load_model(path, "cpu")
            if classes := _classes(model, description.classes, stream, seed):  # type: ignore[union-attr]
                model.card = model.card.model_copy(update={"classes": classes})
                save_model(model, path)


def _classes(model: Promptable, names: Mapping[int, str], stream: SampleStream, seed: int) -> Classes | None:
    """Fit the classes to the encoder's last features under each structure's label, in crops around its voxels.

    A class without a structure is left out; None if fewer than two remain.
    """
    found: dict[int, list[np.ndarray]] = {}
    for turn in range(CROPS):
        samples = validation_samples(stream.sampler, stream.scans, seed + turn)
        for case, sample in zip(stream.scans, samples, strict=True):
            if case.target is None:
                continue
            with torch.inference_mode():
                features = model.encode(torch.from_numpy(sample["crop"][None]))
            under = features_under(features[-1][0].float().numpy(), sample["label"][0])
            found.setdefault(case.target, []).append(under)
    labels = sorted(found)
    return Classes.fit([names[n] for n in labels], labels, [np.stack(found[n]) for n in labels]) if labels[1:] else None

"""A trained nnU-Net as the evaluation's system: its own predictor on a scan in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxsam.lab.evaluation.systems import Images
from voxsam.lab.systems.turned import turned, turned_back
from voxsam.prompts import Point
from voxsam.volume import Volume

AXES = "SAR"  # of the array that nnU-Net gets from a file turned to RAS


class NnUNetSystem:
    """It works by itself; `predictor` is nnunetv2's nnUNetPredictor, ready."""

    takes_clicks = takes_negative = False

    def __init__(self, predictor: Any, name: str, parameters: int | None) -> None:
        self.predictor, self.name, self.parameters = predictor, name, parameters

    def open(self, volume: Images) -> OpenedNnUNet:
        """The scan with all its channels, kept until `segment`."""
        return OpenedNnUNet(self.predictor, (volume,) if isinstance(volume, Volume) else tuple(volume))


class OpenedNnUNet:
    """A scan, and the predictor that will be asked once."""

    def __init__(self, predictor: Any, images: Sequence[Volume]) -> None:
        self.predictor, self.images = predictor, images

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask of the whole scan; there are no points."""
        assert not points
        channels = [turned(image, AXES) for image in self.images]
        array = np.stack([np.asarray(channel.array, dtype=np.float32) for channel in channels])
        grid = channels[0].grid
        with redirect_stdout(io.StringIO()):  # nnU-Net prints what it does
            labels = self.predictor.predict_single_npy_array(array, {"spacing": grid.spacing_mm.tolist()})
        return turned_back(Volume((np.asarray(labels) == 1).astype(np.uint8), grid, "SEG"), self.images[0].grid)


def load_predictor(model: Path, device: torch.device, mirroring: bool) -> Any:
    """nnU-Net's predictor with the final weights of fold 0 of a trained model's folder."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(
            use_mirroring=mirroring,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
        predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    return predictor

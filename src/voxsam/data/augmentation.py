"""How training crops are varied: zoom, turns, flips and intensities, by MONAI's transforms."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from monai.transforms import (  # type: ignore[attr-defined]
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

Share = Annotated[float, Field(ge=0, le=1)]


class Augmentation(BaseModel):
    """Ranges and probabilities. Lengths in mm, intensities in the scan's unit (HU), angles in degrees.

    A crop is drawn around a voxel of the tumour, or with probability `background` beside it (the target is then empty).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    zoom: tuple[float, float] = (0.8, 1.25)  # of the extent that is seen, on each axis
    zoom_probability: Share = 0.8
    rotate: NonNegativeFloat = 15.0  # degrees about each axis, drawn together with the zoom
    flip: Share = 0.5  # on each axis
    turn: Share = 0.5  # by quarter turns in the plane of the last two axes
    shift: NonNegativeFloat = 25.0  # of all intensities, either way
    shift_probability: Share = 0.8
    scale: NonNegativeFloat = 0.15  # of contrast about the data set's mean, either way
    noise: NonNegativeFloat = 10.0  # largest s.d. of added noise
    margin_mm: tuple[float, float] | None = (5.0, 60.0)  # left of a scan around its tumour, drawn for each side
    uncut: Share = 0.0  # probability that a scan is seen without such margins
    surroundings: Share = 0.0  # probability that beyond a scan's borders the tissue of another one is seen
    off_centre: Share = 0.25  # probability that the crop is centred beside its tumour voxel
    off_centre_mm: NonNegativeFloat = 40.0
    background: Share = 0.06

    def reach(self, side: int) -> int:
        """Voxels to read on each axis, so that a zoomed crop of `side` voxels is filled; as odd or even as `side`."""
        wide = int(np.ceil(side * max(1.0, self.zoom[1])))
        return wide + (wide - side) % 2

    def transform(self, side: int) -> Compose:
        """(1, R, R, R) "image" in the scan's unit less its mean and "label" of whole numbers -> both (1, side, ...)."""
        keys = ("image", "label")
        angle = float(np.deg2rad(self.rotate))
        wider = (self.zoom[0] - 1, self.zoom[1] - 1)  # MONAI adds 1 and scales the grid it samples
        return Compose(
            [
                RandAffined(
                    keys,
                    spatial_size=(side,) * 3,
                    prob=self.zoom_probability,
                    rotate_range=[(-angle, angle)] * 3,
                    scale_range=[wider] * 3,
                    mode=("bilinear", "nearest"),
                    padding_mode=("border", "zeros"),
                ),
                *(RandFlipd(keys, prob=self.flip, spatial_axis=axis) for axis in range(3)),
                RandRotate90d(keys, prob=self.turn, spatial_axes=(1, 2)),
                RandShiftIntensityd("image", offsets=self.shift, prob=self.shift_probability),
                RandScaleIntensityd("image", factors=self.scale, prob=0.5),
                RandGaussianNoised("image", prob=0.5, std=self.noise),
            ]
        )


def apply(transform: Compose, image: NDArray, label: NDArray, seed: int) -> tuple[NDArray, NDArray]:
    """Both (R, R, R) arrays transformed alike, the same for the same seed."""
    transform.set_random_state(seed)
    data: Any = transform({"image": image[None], "label": label[None]})
    return np.asarray(data["image"][0]), np.asarray(data["label"][0])


AUGMENTATIONS = {
    # docs/released.md, "Training"
    "released": Augmentation(
        zoom=(0.8, 1.18), rotate=0, shift=20, shift_probability=0.5, scale=0, noise=0, background=1 / 3
    ),
    "paper": Augmentation(zoom=(0.91, 1.11), zoom_probability=0.3, rotate=0, shift=0, scale=0, noise=0, background=0.5),
}

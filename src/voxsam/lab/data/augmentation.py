"""Augmentation of training crops with MONAI's transforms: zoom, rotation, flips and intensities.

MONAI is imported where it is used: that takes seconds, and every recipe holds an Augmentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    from monai.transforms import Compose, RandShiftIntensity  # type: ignore[attr-defined]


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"{ends[0]:g} to {ends[1]:g} is no range")
    return ends


Fraction = Annotated[float, Field(ge=0, le=1)]
Factors = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]
Lengths = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_ordered)]

KEYS = ("image", "label")


class Augmentation(BaseModel):
    """Ranges and probabilities. Lengths in mm, angles in degrees, intensities in HU (other modalities: s.d. / 40).

    A crop is drawn around a voxel of the tumour, or with probability `background` around one outside it (the target of
    a click is then empty).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    zoom: Factors = (0.8, 1.25)  # of the visible extent, on each axis
    zoom_probability: Fraction = 0.8
    magnify: Factors | None = None  # instead of zoom: magnification, the same on all axes
    rotate: NonNegativeFloat = 15.0  # degrees about each axis, drawn together with the zoom
    flip: Fraction = 0.5  # on each axis
    turn: Fraction = 0.5  # quarter turns in the plane of the last two axes
    shift: NonNegativeFloat = 25.0  # of all intensities, up or down
    shift_probability: Fraction = 0.8
    offset: NonNegativeFloat = 0.0  # of normalised intensities, up or down, with `shift_probability`
    scale: NonNegativeFloat = 0.15  # of contrast about the data set's mean, up or down
    noise: NonNegativeFloat = 10.0  # largest s.d. of added noise
    margin_mm: Lengths | None = (5.0, 60.0)  # how much of the scan is kept around its tumour, drawn for each side
    uncut: Fraction = 0.0  # probability that a scan is not cut to such margins
    body: bool = False  # scans are cut to the body's box, and crops moved into it where they fit
    surroundings: Fraction = 0.0  # probability that another scan's tissue continues a scan beyond its borders
    off_centre: Fraction = 0.25  # probability that the crop is not centred on its tumour voxel
    off_centre_mm: NonNegativeFloat = 40.0
    wander: Annotated[float, Field(ge=1)] = 1.0  # the crop lies anywhere in one this many times as wide
    background: Fraction = 0.06

    @property
    def centred(self) -> bool:
        """Whether the voxel that a crop is drawn around is at its centre, unless `off_centre` moves it."""
        return self.wander == 1 and not self.body

    def room(self, side: int) -> int:
        """Voxels on each axis of the larger crop from which the final one of `side` voxels is drawn."""
        return round(side * self.wander)

    def reach(self, side: int) -> int:
        """Voxels to read on each axis to fill a zoomed crop of `side` voxels; of the same parity as `side`."""
        widest = self.zoom[1] if self.magnify is None else 1 / self.magnify[0]
        wide = int(np.ceil(self.room(side) * max(1.0, widest)))
        return wide + (wide - side) % 2

    def transform(self, side: int) -> Compose:
        """The transform of "image" (C, R, R, R), less its mean, and integer "label" (1, R, R, R) to (side,) * 3.

        Zoom on each axis and rotation are one step; with `wander` a random crop follows. With `magnify` it is the
        released chain: one zoom for all axes, a central crop, and in that a random crop.
        """
        from monai.transforms import (  # type: ignore[attr-defined]
            CenterSpatialCropd,
            Compose,
            RandAffined,
            RandFlipd,
            RandGaussianNoised,
            RandRotate90d,
            RandScaleIntensityd,
            RandShiftIntensityd,
            RandSpatialCropd,
            RandZoomd,
        )

        room, cropped = self.room(side), RandSpatialCropd(KEYS, (side,) * 3, random_size=False)
        zoomed: list[Any]
        if self.magnify is None:
            angle = float(np.deg2rad(self.rotate))
            affine = RandAffined(
                KEYS,
                spatial_size=(room,) * 3,
                prob=self.zoom_probability,
                rotate_range=[(-angle, angle)] * 3,
                scale_range=[(self.zoom[0] - 1, self.zoom[1] - 1)] * 3,  # MONAI adds 1 and scales the grid it samples
                mode=("bilinear", "nearest"),
                padding_mode=("border", "zeros"),
            )
            zoomed = [affine, cropped] if room > side else [affine]
        else:
            low, high = self.magnify
            modes = ("trilinear", "nearest")
            zoom = RandZoomd(KEYS, self.zoom_probability, min_zoom=low, max_zoom=high, mode=modes, keep_size=False)
            zoomed = [zoom, CenterSpatialCropd(KEYS, (room,) * 3), cropped]
        return Compose(
            [
                *zoomed,
                *(RandFlipd(KEYS, prob=self.flip, spatial_axis=axis) for axis in range(3)),
                RandRotate90d(KEYS, prob=self.turn, spatial_axes=(1, 2)),
                RandShiftIntensityd("image", offsets=self.shift, prob=self.shift_probability, channel_wise=True),
                RandScaleIntensityd("image", factors=self.scale, prob=0.5, channel_wise=True),
                RandGaussianNoised("image", prob=0.5, std=self.noise),
            ]
        )

    def shifter(self) -> RandShiftIntensity:
        """The shift of normalised intensities."""
        from monai.transforms import RandShiftIntensity  # type: ignore[attr-defined]

        return RandShiftIntensity(offsets=self.offset, prob=self.shift_probability, channel_wise=True)


def apply(transform: Compose, image: NDArray, label: NDArray, seed: int) -> tuple[NDArray, NDArray]:
    """Transform `image` (C, R, R, R) and `label` (R, R, R) together; the same seed gives the same result."""
    transform.set_random_state(seed)
    data: Any = transform({"image": image, "label": label[None]})
    return np.asarray(data["image"]), np.asarray(data["label"][0])


_PROFILE: dict[str, Any] = {
    **{"rotate": 0, "flip": 0.5, "turn": 0.5, "scale": 0, "noise": 0, "shift_probability": 0.5},
    **{"margin_mm": None, "body": True, "off_centre": 0, "wander": 1.2},
}
AUGMENTATIONS = {  # docs/released.md, "Training"; paper, Table 4
    "released": Augmentation(
        **_PROFILE, magnify=(0.85, 1.25), zoom_probability=0.8, shift=20, offset=0, background=1 / 3
    ),
    "paper": Augmentation(**_PROFILE, magnify=(0.9, 1.1), zoom_probability=0.3, shift=0, offset=0.1, background=0.5),
}

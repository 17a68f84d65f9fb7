"""The data engine's settings, the geometry of a crop in a scan, and the augmentation of its intensities."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from voxsam.boxes import bounding_box
from voxsam.lab.engine.voxels import Image, Mask, smoothed
from voxsam.preprocess import Preprocessing

Fraction = Annotated[float, Field(ge=0, le=1)]
SOURCES = ("painted", "nodules", "regions", "organs", "sarcomas", "mr")
Frame = NDArray[np.float64]  # (3, 3) the axes of a crop: maps a step in its voxels to mm of the scan

TURN_DEGREES = 20.0
CURVE_HU = (-1024.0, -300.0, -110.0, -20.0, 30.0, 80.0, 150.0, 300.0, 1200.0)  # nodes of a random intensity curve
CUT_MM = (5.0, 60.0)
FACTOR = 4.0  # a target's length at any spacing stays within this factor of `voxels_across`, up and down


class EngineSettings(BaseModel):
    """Shares of the samples by their target (they need not add up to 1), and augmentation.

    A lesion's diameter sets the spacing, so that it is a certain number of voxels across, drawn around `voxels_across`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    painted: NonNegativeFloat = 0.62  # lesions painted into backgrounds
    nodules: NonNegativeFloat = 0.15  # real nodules of nodules_lidc in lungs with room
    regions: NonNegativeFloat = 0.08  # stable regions of real scans
    organs: NonNegativeFloat = 0.15  # labels of organs_ct
    sarcomas: NonNegativeFloat = 0.0  # sarcoma_ct
    mr: NonNegativeFloat = 0.0  # lesions of sarcoma_mr and lesions_other, standardised to the model's mean and s.d.
    diameter_mm: tuple[PositiveFloat, PositiveFloat] = (6.0, 150.0)  # of painted lesions, log-uniform
    spacing_mm: tuple[PositiveFloat, PositiveFloat] = (1.0, 4.0)
    voxels_across: PositiveFloat = 24.0  # median length of the target in voxels
    voxels_spread: NonNegativeFloat = 0.35  # s.d. of its logarithm
    any_scale: Fraction = 0.0  # of the crops: any spacing, as in a first look, when the size is not known yet
    neighbours: Fraction = 0.45  # of the painted crops: other similar lesions that are not clicked
    turned: Fraction = 0.5  # of the crops: rotated by up to 20 degrees about each axis
    stretch: NonNegativeFloat = 0.12  # s.d. of the logarithm of each axis's own zoom
    off_centre: Fraction = 0.5  # of the crops: the click lies anywhere in it, as a second click does
    cut: Fraction = 0.15  # of the crops: the scan ends at random margins around the lesion
    contrast: Fraction = 0.25  # of the crops: a random curve, sometimes inverting, maps all intensities, as in MR
    shift_hu: NonNegativeFloat = 25.0
    noise_hu: NonNegativeFloat = 15.0  # largest s.d. of added noise
    blur: Fraction = 0.2  # of the crops: blurred along an axis, as by thick slices

    def shares(self) -> dict[str, float]:
        """The share of each source, normalised to a sum of 1."""
        given = {source: float(getattr(self, source)) for source in SOURCES}
        total = sum(given.values()) or 1.0
        return {source: value / total for source, value in given.items()}


def draw_spacing(diameter_mm: float, use: EngineSettings, rng: np.random.Generator) -> float:
    """A spacing within the range at which a target is about `voxels_across` long, or sometimes any spacing."""
    if use.any_scale and rng.random() < use.any_scale:
        spacing = np.exp(rng.uniform(*np.log(use.spacing_mm)))
        ends = diameter_mm / (use.voxels_across * FACTOR), diameter_mm * FACTOR / use.voxels_across
        return float(np.clip(np.clip(spacing, *ends), *use.spacing_mm))
    across = use.voxels_across * np.exp(use.voxels_spread * rng.standard_normal())
    return float(np.clip(diameter_mm / across, *use.spacing_mm))


def draw_frame(spacing_mm: float, use: EngineSettings, rng: np.random.Generator) -> Frame:
    """A crop's axes: rotated a little, flipped, sometimes with rows and columns swapped, each with its own zoom."""
    turn = np.eye(3)
    if rng.random() < use.turned:
        for axis, angle in enumerate(np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES, 3))):
            about, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
            about[i, i] = about[j, j] = np.cos(angle)
            about[i, j], about[j, i] = -np.sin(angle), np.sin(angle)
            turn = turn @ about
    axes = np.diag(rng.choice([-1.0, 1.0], 3, p=[0.3, 0.7]))
    if rng.random() < 0.2:
        axes = axes[:, [0, 2, 1]]
    zoom = np.exp(use.stretch * rng.standard_normal(3))
    return turn @ axes @ np.diag(spacing_mm * zoom)


def cut_to(label: Mask, spacing_mm: NDArray[np.float64], rng: np.random.Generator) -> Mask:
    """(D, H, W) the part of the crop that remains if its scan is cut around the lesion, at random margins."""
    kept = np.zeros(label.shape, dtype=bool)
    margins = np.rint(rng.uniform(*CUT_MM, (3, 2)) / spacing_mm[:, None]).astype(int)
    sides = zip(bounding_box(label), margins, strict=True)
    kept[tuple(slice(max(0, along.start - a), along.stop + b) for along, (a, b) in sides)] = True
    return kept


def normalised(
    image_hu: Image,
    seen: Mask,
    use: EngineSettings,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
) -> Image:
    """The crop as a model gets it, with augmented intensities; 0 outside the scan."""
    image = image_hu
    if rng.random() < use.blur:
        width = np.zeros(3)
        width[rng.integers(3) if rng.random() < 0.3 else 0] = rng.uniform(0.4, 1.3)
        image = smoothed(image, width)
    if rng.random() < 0.5:
        grain = rng.standard_normal(image.shape).astype(np.float32)
        if rng.random() < 0.5:
            grain = smoothed(grain, 0.6) * 2.5
        image = image + rng.uniform(0, use.noise_hu) * grain
    if rng.random() < use.contrast:
        return np.where(seen, _recoloured(image.astype(np.float32), seen, rng), np.float32(0))
    middle = preprocessing.mean
    image = middle + (image - middle) * rng.uniform(0.85, 1.15) + rng.uniform(-use.shift_hu, use.shift_hu)
    return np.where(seen, preprocessing.normalise(image), np.float32(0))


def _recoloured(image: Image, seen: Mask, rng: np.random.Generator) -> Image:
    """Intensities mapped by a random curve and standardised like an MR scan: organs swap between bright and dark."""
    steps = rng.gamma(0.7, 1.0, len(CURVE_HU)) * np.sqrt(np.diff(CURVE_HU, prepend=-2000.0))
    steps *= np.where(rng.random(len(CURVE_HU)) < 0.25, -1, 1)
    curve = np.cumsum(steps) * rng.choice([-1, 1], p=[0.35, 0.65])
    values = np.interp(image, CURVE_HU, curve).astype(np.float32)
    body = values[seen & (image > -300)]
    if len(body) < 100:
        body = values.ravel()
    low, high = np.percentile(body[:: 1 + len(body) // 5000], (2, 98))
    spread = max(float(high - low), 1e-3)
    return np.clip((values - (low + high) / 2) / spread * rng.uniform(2.5, 4.5), -4.5, 4.5).astype(np.float32)

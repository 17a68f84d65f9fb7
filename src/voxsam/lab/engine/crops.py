"""The geometry of a crop in a scan, and the augmentation of its intensities: contrast, noise, blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxsam.lab.engine.settings import EngineSettings
from voxsam.lab.engine.voxels import Image, Mask, box_of, smoothed
from voxsam.preprocess import Preprocessing

TURN_DEGREES = 20.0
CURVE_HU = (-1024.0, -300.0, -110.0, -20.0, 30.0, 80.0, 150.0, 300.0, 1200.0)  # nodes of a random intensity curve
CUT_MM = (5.0, 60.0)
FACTOR = 4.0  # a target's length at any spacing stays within this factor of `voxels_across`, up and down


@dataclass(frozen=True)
class Frame:
    """A crop's axes: `matrix` (3, 3) maps a step in voxels of the crop to mm of the scan."""

    matrix: NDArray[np.float64]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """(3,) spacing of the crop's axes."""
        return np.linalg.norm(self.matrix, axis=0)


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
        a, b, c = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES, 3))
        turn = _about(0, a) @ _about(1, b) @ _about(2, c)
    axes = np.diag(rng.choice([-1.0, 1.0], 3, p=[0.3, 0.7]))
    if rng.random() < 0.2:
        axes = axes[:, [0, 2, 1]]
    zoom = np.exp(use.stretch * rng.standard_normal(3))
    return Frame(turn @ axes @ np.diag(spacing_mm * zoom))


def _about(axis: int, angle: float) -> NDArray[np.float64]:
    turn, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turn


def cut_to(label: Mask, spacing_mm: NDArray[np.float64], rng: np.random.Generator) -> Mask:
    """(D, H, W) the part of the crop that remains if its scan is cut around the lesion, at random margins."""
    box = box_of(label)
    kept = np.zeros(label.shape, dtype=bool)
    margins = np.rint(rng.uniform(*CUT_MM, (3, 2)) / spacing_mm[:, None]).astype(int)
    kept[tuple(slice(max(0, p.start - a), p.stop + b) for p, (a, b) in zip(box, margins, strict=True))] = True
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

"""The image of a phantom under construction: how tissues, bones and muscles are painted into it, in HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxsam.phantoms.body import Body
from voxsam.phantoms.shapes import Field, Frame, lattice_noise, paint, tube

FAR_MM = 1e3  # distance to a tissue that is not there
AIR_HU, FAT_HU, SKIN_HU = -1000.0, -108.0, 45.0
SKIN_MM = 2.0


@dataclass
class Tissue:
    """The image (HU) under construction, distances (mm) to what a lesion does not grow into, and to the lesion."""

    rng: np.random.Generator
    body: Body
    frame: Frame
    hu: Field
    skin: Field
    bone: Field
    air: Field
    lesion: Field

    def paint(self, distance: Field, value: Field | float) -> None:
        """Fill a shape with HU, its border blurred by partial volume."""
        paint(self.hu, distance, value, self.frame.edge_mm)

    def noise(self, period_mm: float) -> Field:
        """Smooth noise of s.d. 1, new at each call."""
        return lattice_noise(self.rng, self.frame, period_mm)

    def add_bone(self, distance: Field, cortex_mm: float, marrow_hu: float) -> None:
        """Cortical shell and marrow."""
        self.paint(distance, self.rng.uniform(500, 1200))
        self.paint(distance + np.float32(cortex_mm), marrow_hu + 25 * self.noise(6))
        self.bone = np.minimum(self.bone, distance)


def paint_muscles(tissue: Tissue, fascia: Field, x: Field, y: Field, reach: float, planes: float = 1.0) -> None:
    """Muscle bellies as cells around slanted lines, each with its own HU, fat between them: `planes` times a film."""
    rng, frame = tissue.rng, tissue.frame
    count = int(rng.integers(6, 13)) if reach > 45 else int(rng.integers(4, 8))
    angles = np.arange(count) * 2.4 + rng.uniform(0, 6)  # the golden angle spreads the lines evenly
    radii = reach * np.sqrt((np.arange(count) + 0.5) / count) * 0.95
    first, second = np.full(frame.shape, FAR_MM, np.float32), np.full(frame.shape, FAR_MM, np.float32)
    values = np.zeros(frame.shape, np.float32)
    for angle, radius in zip(angles, radii, strict=True):
        slant = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
        centre = radius * np.cos(angle) + slant[0] * frame.z, radius * np.sin(angle) + slant[1] * frame.z
        distance = tube(x, y, *centre, rng.uniform(-6, 6))
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        first = np.where(nearer, distance, first)
        values[nearer] = rng.normal(tissue.body.muscle_hu, 3)
    marbling = rng.uniform(0, 8)
    values += np.float32(marbling) * np.minimum(tissue.noise(5), 0)
    # Fat between bellies is a film that is missing in places (negative thickness).
    thickness = rng.uniform(0.2, 1.4) * (np.float32(rng.uniform(0.0, 1.0)) + tissue.noise(30))
    belly = np.maximum(fascia, np.float32(planes) * thickness - (second - first) / 2)
    tissue.paint(belly, values)

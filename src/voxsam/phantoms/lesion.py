"""The lesion of a phantom: its shape (blob, lobules, infiltration), its border and what it is made of, in HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxsam.phantoms.shapes import Field, Frame, coverage, ellipsoid, lattice_noise, paint, smooth_union

SMALLEST_ML, LARGEST_ML = 5.0, 900.0
SMALL_ML = (1.0, 60.0)  # where a small one is asked for
FAINT_HU = 8.0  # below this difference to muscle a lesion needs a capsule or a halo to have a border at all


@dataclass(frozen=True)
class Lesion:
    """What was drawn for one lesion; lengths in mm."""

    radius_mm: float  # of the sphere of the same volume, before deformation
    form: str  # "blob", "lobulated" or "infiltrative"
    hu: float
    border_mm: float  # width of the border beyond partial volume
    texture_hu: float
    texture_mm: float
    necrosis: float  # share of the radius that is necrotic, 0 for none
    rim_hu: float
    capsule_hu: float | None
    halo_hu: float
    specks: bool


def draw_lesion(rng: np.random.Generator, muscle_hu: float, largest_radius_mm: float, small: bool = False) -> Lesion:
    """A random lesion; its volume is log-uniform between 5 and 900 mL, or to what `largest_radius_mm` allows.

    `small`: between 1 and 60 mL.
    """
    smallest, most = SMALL_ML if small else (SMALLEST_ML, LARGEST_ML)
    largest = np.clip(4 / 3 * np.pi * largest_radius_mm**3 / 1000, smallest * 1.5, most)
    volume_ml = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    matter = rng.choice(["cellular", "myxoid", "lipomatous", "enhancing"], p=[0.6, 0.15, 0.1, 0.15])
    hu = rng.uniform(
        *{
            "cellular": (muscle_hu - 32, muscle_hu + 4),
            "myxoid": (5, 30),
            "lipomatous": (-80, 0),
            "enhancing": (70, 115),
        }[matter]
    )
    rim = rng.uniform(10, 50) if rng.random() < 0.25 else 0.0
    faint = abs(hu - muscle_hu) < FAINT_HU and rim < FAINT_HU
    return Lesion(
        radius_mm=float(np.cbrt(volume_ml * 1000 * 3 / 4 / np.pi)),
        form=str(rng.choice(["blob", "lobulated", "infiltrative"], p=[0.5, 0.3, 0.2])),
        hu=hu,
        border_mm=0.0 if faint or rng.random() < 0.6 else rng.uniform(1, 7),
        texture_hu=rng.uniform(15, 35) if matter == "lipomatous" else rng.uniform(0, 14),
        texture_mm=rng.uniform(5, 25),
        necrosis=rng.uniform(0.3, 0.75) if matter != "lipomatous" and rng.random() < 0.35 else 0.0,
        rim_hu=rim,
        capsule_hu=rng.uniform(-90, -20) if rng.random() < (0.6 if faint else 0.25) else None,
        halo_hu=rng.uniform(-25, -8) if rng.random() < 0.25 else 0.0,
        specks=bool(rng.random() < 0.12),
    )


def lesion_distance(rng: np.random.Generator, lesion: Lesion, frame: Frame, centre_mm: NDArray) -> Field:
    """Signed distance (mm) of the lesion on the frame."""
    radius = lesion.radius_mm
    if lesion.form == "lobulated":
        distance = _lobules(rng, frame, centre_mm, radius)
        rough, period = 0.08, 0.8
    else:
        stretch = np.exp(rng.normal(0, 0.25, 3))
        radii = radius * stretch / np.cbrt(np.prod(stretch))
        distance = ellipsoid(frame.place, centre_mm, radii, _random_turn(rng))
        rough, period = (0.12, 1.1) if lesion.form == "blob" else (0.22, 0.6)
    distance += np.float32(rng.uniform(0.5, 1) * rough * radius) * lattice_noise(rng, frame, max(period * radius, 8))
    if lesion.form == "infiltrative":
        distance += np.float32(0.1 * radius) * lattice_noise(rng, frame, max(0.3 * radius, 5))
    return distance


def paint_lesion(rng: np.random.Generator, lesion: Lesion, frame: Frame, image: Field, distance: Field) -> None:
    """Draw the lesion into `image` (HU), in place."""
    edge = frame.edge_mm
    if lesion.halo_hu:
        soft = np.abs(image) < 100  # oedema shows in muscle, not in fat, bone or air
        image += soft * np.float32(lesion.halo_hu) * coverage(distance - 6, 16.0)
    if lesion.capsule_hu is not None:
        paint(image, np.abs(distance - np.float32(1.2)) - 1.0, lesion.capsule_hu, edge)
    texture = lattice_noise(rng, frame, lesion.texture_mm) + np.float32(0.6) * lattice_noise(
        rng, frame, 4 + lesion.texture_mm / 4
    )
    matter = np.float32(lesion.hu) + np.float32(lesion.texture_hu) * texture
    if lesion.necrosis:
        depth = distance + np.float32((1 - lesion.necrosis) * lesion.radius_mm)
        depth += np.float32(0.15 * lesion.radius_mm) * lattice_noise(rng, frame, max(lesion.radius_mm * 0.6, 6))
        paint(matter, depth, rng.uniform(2, 22), 6.0)
    if lesion.rim_hu:
        matter += np.float32(lesion.rim_hu) * coverage(np.abs(distance + 2.5) - np.float32(rng.uniform(1.5, 3)), 2.0)
    if lesion.specks:
        specks = lattice_noise(rng, frame, 4)
        matter += np.float32(rng.uniform(80, 250)) * np.maximum(specks - np.float32(2.2), 0) * 3
    inside = coverage(distance, edge + lesion.border_mm)
    image += inside * (matter - image)


def largest_part(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest face-connected part of a mask (all False if it is empty)."""
    parts = np.asarray(ndimage.label(inside)[0])  # type: ignore[index]
    if parts.max() < 2:
        return inside
    return parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def _lobules(rng: np.random.Generator, frame: Frame, centre_mm: NDArray, radius: float) -> Field:
    count = int(rng.integers(3, 7))
    distance = None
    for n in range(count):
        size = radius * rng.uniform(0.5, 0.75)
        away = rng.normal(0, 1, 3)
        away *= 0 if n == 0 else size * rng.uniform(0.8, 1.25) / np.linalg.norm(away)
        lobule = ellipsoid(frame.place, centre_mm + away, size * rng.uniform(0.85, 1.2, 3), _random_turn(rng))
        distance = lobule if distance is None else smooth_union(distance, lobule, 0.2 * radius)
    assert distance is not None
    return distance


def _random_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.linalg.qr(rng.normal(size=(3, 3)))[0].T

"""Scans held in memory for the data engine, at a few spacings, with the places where lesions may be painted.

Places are in mm along the model's axes (SAR: superior, anterior, right) from the scan's outer corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxsam.lab.engine.painting import BONE, FAT, LUNG, SOFT
from voxsam.lab.engine.voxels import dilated, eroded, parts_of, sampled, smoothed
from voxsam.resample import resample
from voxsam.volume import Volume

SPACINGS_MM = (1.0, 1.5, 2.2, 3.2)  # at which a scan is kept, except those finer than its own
COARSE_MM = 3.0  # spacing for the search for places
MOST_PLACES = 4000  # per kind
AIR_HU = -500.0
ORGAN = 4  # a place in soft tissue that is homogeneous over a centimetre: liver, spleen, muscle, ...
GAP = 5  # a place in fat surrounded by soft tissue: between vessels, muscles, bowel, where lymph nodes lie
WALL = 6  # a place in the lung next to soft tissue: at the chest wall, the mediastinum, the diaphragm
EVEN_HU, LUNG_ML = 14.0, 50.0
ENCLOSED = (0.5, 0.85)  # fraction of soft tissue within about a centimetre of a gap


@dataclass(frozen=True)
class Level:
    """A scan at one spacing; `label` (or None) numbers the structures that may be clicked."""

    array: NDArray[np.int16]
    label: NDArray[np.uint8] | None
    spacing_mm: NDArray[np.float64]


@dataclass(frozen=True)
class Scan:
    """`levels` from fine to coarse, and (n, 3) `places` in mm of each kind: LUNG, FAT, SOFT, BONE, ORGAN, GAP, WALL."""

    name: str
    levels: tuple[Level, ...]
    places: dict[int, NDArray[np.float32]]

    @classmethod
    def of(cls, name: str, volume: Volume, label: Volume | None = None, *, places: bool = True) -> Scan:
        """Make one from a volume in HU; without `places` nothing can be painted into it."""
        finest = float(volume.grid.spacing_mm.min())
        spacings = [s for s in SPACINGS_MM if s >= 0.8 * finest] or [SPACINGS_MM[-1]]
        levels = tuple(_level(volume, label, max(s, finest)) for s in spacings)
        found = _places(_level(volume, None, COARSE_MM)) if places else {}
        return cls(name, levels, found)

    def read(
        self, centre_mm: NDArray[np.float64], frame: NDArray[np.float64], side: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.bool_]]:
        """Crops (side,) * 3 of the scan and of its label, and a mask of the voxels inside the scan.

        `frame` (3, 3) maps a step in voxels of the crop to mm of the scan; the crop's voxel side // 2 is at
        `centre_mm`. Outside the scan its edge is repeated, and the label is 0.
        """
        step = float(np.linalg.norm(frame, axis=0).min())
        level = next((one for one in reversed(self.levels) if one.spacing_mm.max() <= step * 1.1), self.levels[0])
        matrix = frame / level.spacing_mm[:, None]
        offset = centre_mm / level.spacing_mm - 0.5 - matrix @ np.full(3, side // 2)
        size = (side,) * 3
        image = sampled(level.array, matrix, offset, size)
        inside = np.ones(size, dtype=bool)
        steps = [matrix[:, axis, None] * np.arange(side) for axis in range(3)]
        for axis, length in enumerate(level.array.shape):
            at = offset[axis] + steps[0][axis, :, None, None] + steps[1][axis, :, None] + steps[2][axis]
            inside &= (at >= -0.5) & (at <= length - 0.5)
        if level.label is None:
            return image, None, inside
        label = sampled(level.label, matrix, offset, size, nearest=True) * inside
        return image, label.astype(np.uint8), inside

    @cached_property
    def labelled(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """For each label value: (n, 3) positions of its voxels in mm, and (n,) sizes in mm of the parts they belong to.

        Both on the coarsest level; a part's size is 1.5 times the edge of a cube of its volume.
        """
        level, found = self.levels[-1], {}
        assert level.label is not None
        for value in np.unique(level.label[level.label > 0]).tolist():
            parts, sizes = parts_of(level.label == value)
            voxels = np.argwhere(parts)
            edge = np.cbrt(sizes[parts[tuple(voxels.T)]] * np.prod(level.spacing_mm))
            found[value] = ((voxels + 0.5) * level.spacing_mm).astype(np.float32), (1.5 * edge).astype(np.float32)
        return found


def _level(volume: Volume, label: Volume | None, spacing_mm: float) -> Level:
    spacing = (spacing_mm, spacing_mm, spacing_mm)
    grid = volume.grid.reorient("SAR").respace(spacing)
    array = np.rint(resample(volume, grid, "area")).clip(-1024, 3071).astype(np.int16)
    numbers = None if label is None else resample(label, grid, "nearest").astype(np.uint8)
    return Level(array, numbers, grid.spacing_mm)


def _places(level: Level) -> dict[int, NDArray[np.float32]]:
    """At most MOST_PLACES places of each kind in a level, in mm."""
    smooth = smoothed(level.array, 1.0)
    spread = smoothed(np.sqrt(smoothed(np.square(level.array - smooth), 2.0)), 1.0)
    body = _body(smooth)
    lung = body & (smooth < -600)
    parts, sizes = parts_of(lung)
    lung &= sizes[parts] * np.prod(level.spacing_mm) / 1000 > LUNG_ML
    soft = body & (smooth > 0) & (smooth < 190)
    fat = body & (smooth > -120) & (smooth < -40)
    enclosed = smoothed(soft.astype(np.float32), 3.0)
    kinds = {
        LUNG: lung,
        FAT: body & (smooth > -140) & (smooth < -70),
        SOFT: soft,
        BONE: body & (smooth > 260),
        ORGAN: eroded(soft & (spread < EVEN_HU), 2),
        GAP: fat & ~dilated(smooth < -200) & (enclosed > ENCLOSED[0]) & (enclosed < ENCLOSED[1]),
        WALL: lung & dilated(soft, 4),
    }
    found = {}
    for kind, where in kinds.items():
        voxels = np.argwhere(where)
        chosen = np.random.default_rng(0).permutation(len(voxels))[:MOST_PLACES]
        found[kind] = ((voxels[chosen] + 0.5) * level.spacing_mm).astype(np.float32)
    return found


def _body(smooth: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Everything that the air around the patient does not reach, slice by slice."""
    outer = np.zeros(smooth.shape, dtype=bool)
    for plane, values in zip(outer, smooth, strict=True):
        parts, _ = parts_of(values < AIR_HU)
        edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        plane[:] = np.isin(parts, edge[edge > 0])
    return eroded(~outer, 2)

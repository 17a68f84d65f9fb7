"""Agreement between two readers of the same scans: how far they agree, and where they differ."""

from __future__ import annotations

from dataclasses import dataclass

from voxsam.errors import InputError
from voxsam.io import read_volume
from voxsam.project.project import Project
from voxsam.report.metrics import dice, parts_of

SMALLEST_ML = 0.05  # smallest difference that is listed


@dataclass(frozen=True)
class Difference:
    """A connected component of voxels in one reader's mask alone; `index` (i, j, k) is the deepest of them."""

    reader: str  # whose mask has them
    volume_ml: float
    index: tuple[int, int, int]
    world_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Agreement:
    """One scan read by both readers; `differences` are sorted, largest first."""

    case: str
    dice: float
    volumes_ml: tuple[float, float]
    differences: tuple[Difference, ...]


def compare(project: Project, first: str, second: str, smallest_ml: float = SMALLEST_ML) -> list[Agreement]:
    """Compare two readers on every scan both have done, by name, all objects as one. Raises InputError without one."""
    both = [scan.name for scan in project.scans if {first, second} <= project.readings(scan.name).keys()]
    if not both:
        readers = sorted({reader for scan in project.scans for reader in project.readings(scan.name)})
        given, known = f"no scan that both {first} and {second} have done", ", ".join(readers) or "nobody yet"
        raise InputError(given, f"two readers with a scan in common (readers: {known})", "see `voxsam project status`")
    return [_compared(project, case, (first, second), smallest_ml) for case in sorted(both)]


def _compared(project: Project, case: str, readers: tuple[str, str], smallest_ml: float) -> Agreement:
    volumes = [read_volume(project.mask_path(case, reader), labels=True) for reader in readers]
    one, other = (volume.array > 0 for volume in volumes)
    grid, voxel_ml = volumes[0].grid, volumes[0].grid.voxel_volume_ml
    found = []
    for reader, alone in zip(readers, (one & ~other, other & ~one), strict=True):
        for index, voxels in parts_of(alone, grid.spacing_mm):
            if voxels * voxel_ml >= smallest_ml:
                x, y, z = grid.index_to_world(index).round(1).tolist()
                found.append(Difference(reader, voxels * voxel_ml, index, (x, y, z)))
    found.sort(key=lambda part: -part.volume_ml)
    sizes = volumes[0].volume_ml, volumes[1].volume_ml
    return Agreement(case, float(dice(one, other)), sizes, tuple(found))

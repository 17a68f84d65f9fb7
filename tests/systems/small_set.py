"""A prepared data set of a few small phantoms, for tests of systems that train or open one."""

from __future__ import annotations

from pathlib import Path

from voxsam.data.cases import Case, find_cases
from voxsam.data.phantom_set import write_phantoms
from voxsam.data.prepare import Options, prepare

SHAPE, SPACING_MM = (40, 36, 24), (3.0, 3.5, 5.0)


def small_set(folder: Path, seeds: range) -> tuple[Path, list[Case]]:
    """The prepared folder, and the cases that it was made of, by name."""
    raw = folder / "raw"
    write_phantoms(raw, seeds, (SHAPE, SPACING_MM))
    prepare(raw, folder / "prepared", Options(workers=1, spacing_mm=(5.0, 4.0, 4.0)))
    return folder / "prepared", find_cases(raw)

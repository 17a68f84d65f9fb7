"""Clicks for 2D systems: so many in each axial slice that holds tumour, always the same for the same key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.lab.evaluation.clicks import Click, ClickMaker
from voxsam.lab.evaluation.scores import Mask

if TYPE_CHECKING:
    from voxsam.lab.evaluation.protocol import Settings


def axial_axis(grid: Grid) -> int:
    """The array axis that lies nearest to the patient's long axis; its slices are axial."""
    return grid.permutation_to("RAS")[0][2]


def clicks_in_slices(tumour: Mask, grid: Grid, count: int, *key: str | int) -> list[list[Click]]:
    """`count` positive clicks in each axial slice of a tumour (i, j, k), slice by slice, uniform over its tumour.

    None twice while a slice has voxels left. A slice's clicks depend on `key` and its number, fewer are the first of
    more, as in `ClickMaker.draw`.
    """
    axis = axial_axis(grid)
    others = tuple(a for a in range(3) if a != axis)
    drawn = []
    for number in np.flatnonzero(tumour.any(axis=others)):
        maker = ClickMaker(tumour.take([number], axis), grid.spacing_mm)
        clicks = maker.draw(count, *key, "slice", int(number))
        drawn.append([(_in_scan(at, axis, int(number)), positive) for at, positive in clicks])
    return drawn


def require_plain(settings: Settings, name: str) -> None:
    """Raises UnsupportedError for settings that have no meaning for clicks in every slice."""
    asked = {
        "corrective clicks": settings.corrective > 0,
        "single lesions": settings.per_lesion,
        f"the region {settings.region!r}": settings.region != "any",
        "clicks that miss": settings.noise > 0,
    }
    for what, is_asked in asked.items():
        if is_asked:
            expected = "a system that is clicked in the volume"
            raise UnsupportedError(f"{what} with {name}, which is clicked in every slice", expected, "leave them out")


def _in_scan(at: tuple[int, int, int], axis: int, number: int) -> tuple[int, int, int]:
    i, j, k = (number if a == axis else at[a] for a in range(3))
    return i, j, k

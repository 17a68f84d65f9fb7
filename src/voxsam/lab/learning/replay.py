"""How many clicks a model needs to a known mask: the stored first click, then a simulated user's corrections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from voxsam.lab.evaluation.clicks import Click, ClickMaker, correction
from voxsam.lab.evaluation.scores import components
from voxsam.lab.evaluation.systems import System
from voxsam.project.records import Reading
from voxsam.prompts import Point
from voxsam.report.metrics import dice
from voxsam.volume import Volume

DICE, LIMIT = 0.85, 10  # to which is clicked, and how often at most


def first_click(scan: Volume, mask: NDArray[np.bool_], reading: Reading) -> Click:
    """The reader's first positive click that lies in the mask; a random one, always the same, where there is none."""
    for click in reading.clicks:
        i, j, k = (int(n) for n in scan.grid.voxel_of(scan.grid.world_to_index(click.world_mm)))
        if click.positive and mask[i, j, k]:
            return (i, j, k), True
    (drawn,) = ClickMaker(mask, scan.grid.spacing_mm).draw(1, reading.content)
    return drawn


def clicks_needed(
    system: System,
    scan: Volume,
    mask: NDArray[np.bool_],
    first: Click,
    wait: Callable[[], None] = lambda: None,
) -> tuple[int, NDArray[np.bool_], tuple[Click, ...]]:
    """Clicks until the clicked lesion has a Dice of 0.85, at most 10; the mask then, and the clicks.

    `mask` (i, j, k) on the scan's grid. Of several lesions the clicked one counts; what is found in others neither
    helps nor harms. `wait` is called before each click.
    """
    numbers, _ = components(mask)
    target = numbers == numbers[first[0]]
    opened, clicks = system.open(scan), (first,)
    while True:
        wait()
        points = [Point.at_index(scan.grid, at, positive) for at, positive in clicks]
        found = (opened.segment(points).array != 0) & (target | ~mask)
        if dice(found, target) >= DICE or len(clicks) >= LIMIT:
            return len(clicks), found, clicks
        new = correction(found, target, scan.grid.spacing_mm, clicks, system.takes_negative)
        if new is None:
            return LIMIT, found, clicks
        clicks = (*clicks, new)

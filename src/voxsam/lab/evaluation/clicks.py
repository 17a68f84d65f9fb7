"""Simulated users: where they click on a tumour, at random, in each slice, or to correct a mask; all set by a seed.

Indices are voxels (i, j, k) of the scan. docs/evaluation.md describes the regions (paper, Sec. 4.4 and Fig. 6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from voxsam.boxes import bounding_box, is_empty
from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.lab.evaluation.scores import Mask, components
from voxsam.lab.evaluation.systems import System
from voxsam.prompts import Point
from voxsam.report.metrics import dice
from voxsam.volume import Volume

Region = Literal["any", "centre", "surround", "margin", "deepest"]
REGIONS: tuple[Region, ...] = get_args(Region)
DEPTH_FRACTIONS = {"centre": (2 / 3, 1.0), "surround": (1 / 3, 2 / 3), "margin": (0.0, 1 / 3)}  # of the greatest depth
NOISE_REACH_MM = 10.0  # a noisy click misses the tumour by at most this
WANTED_DICE, MAX_CLICKS = 0.85, 10  # a user clicks until this Dice is reached, at most this many times

Index = tuple[int, int, int]
Click = tuple[Index, bool]  # the bool: whether it is positive


class ClickMaker:
    """Draws the positive clicks of any number of trials on one tumour.

    `tumour` (i, j, k) must not be empty. With `noise` above 0 each click, including the first, misses the tumour with
    that probability: it lies outside, at most 10 mm (or one voxel) away. Raises PromptError for an empty tumour.
    """

    def __init__(self, tumour: Mask, spacing_mm: NDArray[np.float64], region: Region = "any", noise: float = 0) -> None:
        if not tumour.any():
            raise PromptError("a label without tumour", "voxels to click on", "leave the case out, or use --auto")
        self.noise = noise
        self.inside = np.argwhere(region_of(tumour, spacing_mm, region))
        self.outside = _just_outside(tumour, spacing_mm) if noise > 0 else self.inside[:0]

    def draw(self, count: int, *key: str | int) -> list[Click]:
        """`count` clicks, uniform over the region, no voxel twice until all are used; determined by `key`.

        For the same key, fewer clicks are a prefix of more, and noise moves only the clicks that it affects.
        """
        inside = _drawn(self.inside, count, *key, "inside")
        misses = _generator(*key, "noise").random(count) < self.noise
        if misses.any() and len(self.outside):
            inside = np.where(misses[:, None], _drawn(self.outside, count, *key, "outside"), inside)
        return [(_index(at), True) for at in inside]


def region_of(tumour: Mask, spacing_mm: NDArray[np.float64], region: Region) -> Mask:
    """The part of a tumour in which a click may lie: all of it, or a part of its largest lesion; never empty.

    A voxel's depth is its distance in mm to the nearest voxel outside, as a fraction of the lesion's greatest depth:
    centre from 2/3 on, surround from 1/3 to 2/3, margin below 1/3. Where a small lesion has no voxel in a part, the
    voxels whose depth comes nearest to it are taken instead. "deepest" is one voxel.
    """
    if region == "any":
        return tumour
    lesion = largest_component(tumour)
    if region == "deepest":
        chosen = np.zeros_like(lesion)
        chosen[deepest_voxel(lesion, spacing_mm)] = True
        return chosen
    depth = depth_mm(lesion, spacing_mm)
    fraction = depth / depth.max()
    low, high = DEPTH_FRACTIONS[region]
    chosen = lesion & (fraction >= low) & ((fraction < high) | (high == 1))
    if chosen.any():
        return chosen
    off = np.where(lesion, np.maximum(low - fraction, fraction - high), np.inf)
    return off <= off.min() + 1e-9


def correction(
    mask: Mask, truth: Mask, spacing_mm: NDArray[np.float64], clicked: Sequence[Click] = (), negative: bool = True
) -> Click | None:
    """The next click of a user who corrects the largest error of a mask; None if there is nothing left to click on.

    It is the deepest voxel of the largest connected error (26 neighbours, by voxels): positive where the mask misses
    tumour, negative where it extends too far. Of errors of equal size, missing tumour goes first. Without `negative`
    only missing tumour is considered. Voxels already clicked count as outside, so that a second click in an error that
    persists lies elsewhere.
    """
    faults = [(truth & ~mask, True)] + ([(mask & ~truth, False)] if negative else [])
    largest = [(largest_component(fault), positive) for fault, positive in faults if fault.any()]
    if not largest:
        return None
    worst, positive = max(largest, key=lambda found: np.count_nonzero(found[0]))  # the first of equals
    open_to_clicks = worst.copy()
    for at, _ in clicked:
        open_to_clicks[at] = False
    if not open_to_clicks.any():
        return None
    return deepest_voxel(open_to_clicks, spacing_mm), positive


def clicks_needed(
    system: System,
    scan: Volume,
    mask: Mask,
    first: Click,
    wait: Callable[[], None] = lambda: None,
) -> tuple[int, Mask, tuple[Click, ...]]:
    """How many clicks (at most 10) the clicked lesion needs for a Dice of 0.85, the resulting mask, and the clicks.

    `mask` (i, j, k) is the ground truth on the scan's grid. Of several lesions only the clicked one is scored; what is
    found in the others counts neither for nor against. `wait` is called before each click.
    """
    numbers, _ = components(mask)
    target = numbers == numbers[first[0]]
    opened, clicks = system.open(scan), (first,)
    while True:
        wait()
        points = [Point.at_index(scan.grid, at, positive) for at, positive in clicks]
        found = (opened.segment(points).array != 0) & (target | ~mask)
        if dice(found, target) >= WANTED_DICE or len(clicks) >= MAX_CLICKS:
            return len(clicks), found, clicks
        new = correction(found, target, scan.grid.spacing_mm, clicks, system.takes_negative)
        if new is None:
            return MAX_CLICKS, found, clicks
        clicks = (*clicks, new)


def largest_component(mask: Mask) -> Mask:
    """The connected component (26 neighbours) with the most voxels; of equals, the first in array order."""
    box = bounding_box(mask)  # most of a scan is background
    numbered, count = components(mask[box])
    if count <= 1:
        return mask
    largest = np.zeros_like(mask)
    largest[box] = numbered == 1 + int(np.bincount(numbered.ravel())[1:].argmax())
    return largest


def depth_mm(mask: Mask, spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each voxel's distance in mm to the nearest voxel outside the mask, 0 outside; beyond the scan is outside."""
    depth = np.zeros(mask.shape)
    box = bounding_box(mask)
    if not is_empty(box):
        whole = np.pad(mask[box], 1)
        depth[box] = np.asarray(scipy.ndimage.distance_transform_edt(whole, sampling=spacing_mm))[1:-1, 1:-1, 1:-1]
    return depth


def deepest_voxel(mask: Mask, spacing_mm: NDArray[np.float64]) -> Index:
    """The voxel with the greatest depth in a non-empty mask; of several, the one nearest to their centre."""
    depth = depth_mm(mask, spacing_mm)
    deepest = np.argwhere(depth >= depth.max() - 1e-9)
    return _index(deepest[(((deepest - deepest.mean(axis=0)) * spacing_mm) ** 2).sum(axis=1).argmin()])


def _just_outside(tumour: Mask, spacing_mm: NDArray[np.float64]) -> NDArray[np.int_]:
    """(n, 3) indices of the voxels that lie outside the tumour, but near it."""
    reach = max(NOISE_REACH_MM, float(np.max(spacing_mm)))
    margin = np.ceil(reach / spacing_mm).astype(int)
    box = bounding_box(tumour)
    start = [max(0, side.start - m) for side, m in zip(box, margin, strict=True)]
    around = tuple(slice(a, side.stop + m) for a, side, m in zip(start, box, margin, strict=True))
    away = np.asarray(scipy.ndimage.distance_transform_edt(~tumour[around], sampling=spacing_mm))
    return np.argwhere((away > 0) & (away <= reach)) + start


def _drawn(voxels: NDArray[np.int_], count: int, *key: str | int) -> NDArray[np.int_]:
    """`count` of the voxels (n, 3) in random order, as (count, 3); starts over when they are used up."""
    order = _generator(*key).permutation(len(voxels))
    return voxels[order[np.arange(count) % len(voxels)]]


def _generator(*key: str | int) -> np.random.Generator:
    """A random generator that depends on the key alone: not on other cases, trials or the process."""
    digest = hashlib.sha256("\n".join(map(str, key)).encode("utf-8")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _index(at: NDArray[np.int_]) -> Index:
    i, j, k = (int(v) for v in at)
    return i, j, k


def axial_axis(grid: Grid) -> int:
    """The array axis closest to the patient's long axis; its slices are axial."""
    return grid.permutation_to("RAS")[0][2]


def clicks_in_slices(tumour: Mask, grid: Grid, count: int, *key: str | int) -> list[list[Click]]:
    """`count` positive clicks in each axial slice of a tumour (i, j, k), uniform over the slice's tumour; by slice.

    No voxel is clicked twice until all of the slice are used. A slice's clicks depend on `key` and its number, and
    fewer clicks are a prefix of more, as in `ClickMaker.draw`.
    """
    axis = axial_axis(grid)
    others = tuple(a for a in range(3) if a != axis)
    drawn = []
    for number in np.flatnonzero(tumour.any(axis=others)):
        maker = ClickMaker(tumour.take([number], axis), grid.spacing_mm)
        clicks = maker.draw(count, *key, "slice", int(number))
        drawn.append([(_index(np.where(np.arange(3) == axis, number, at)), positive) for at, positive in clicks])
    return drawn

"""Region growing and the random walker on scans whose true mask is known."""

import numpy as np
import pytest

from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.lab.systems.classical import CLASSICAL
from voxsam.prompts import Point
from voxsam.volume import Volume

GRID = Grid.from_spacing((70, 60, 40), (1.5, 2.0, 3.0)).reorient("LAS")
MIDDLE = (30, 28, 20)


def ball(noise: float = 5.0) -> tuple[Volume, np.ndarray]:
    """A ball of 40 mm and 120 HU in 40 HU."""
    at = np.indices(GRID.shape).transpose(1, 2, 3, 0)
    inside = np.linalg.norm((at - MIDDLE) * GRID.spacing_mm, axis=-1) < 20
    array = np.where(inside, 120, 40) + np.random.default_rng(0).normal(0, noise, GRID.shape)
    return Volume(np.rint(array).astype(np.int16), GRID, "CT"), inside


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))


@pytest.mark.parametrize(("name", "least"), [("region-growing", 0.8), ("random-walker", 0.9)])  # growing stops at edges
def test_a_bright_ball_is_found_from_a_click_beside_its_middle(name, least):
    scan, truth = ball()
    click = Point.at_index(GRID, (MIDDLE[0] + 5, MIDDLE[1] - 3, MIDDLE[2]))
    mask = CLASSICAL[name]().open(scan).segment([click])
    assert mask.grid == GRID and mask.array.dtype == np.uint8
    assert dice(mask.array > 0, truth) > least


def test_the_walker_hears_a_negative_click():
    scan, _ = ball(0.0)
    even = scan.with_array(np.full(GRID.shape, 40, np.int16))
    opened = CLASSICAL["random-walker"]().open(even)
    there = (MIDDLE[0] + 8, MIDDLE[1], MIDDLE[2])
    before = opened.segment([Point.at_index(GRID, MIDDLE)])
    after = opened.segment([Point.at_index(GRID, MIDDLE), Point.at_index(GRID, there, positive=False)])
    assert after.array[MIDDLE] == 1 and after.array[there] == 0
    assert after.array.sum() <= before.array.sum()


def test_several_channels_are_refused():
    scan, _ = ball()
    with pytest.raises(UnsupportedError, match="2 channels for region-growing; expected one"):
        CLASSICAL["region-growing"]().open((scan, scan))

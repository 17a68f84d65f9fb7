"""Small scans for the engine's tests: soft tissue with a lung, a bone and fat, in air, with known intensities."""

import numpy as np
import pytest

from voxsam.geometry import Grid
from voxsam.lab.engine.scans import Scan
from voxsam.volume import Volume

SPACING_MM = (2.0, 1.6, 3.0)
SHAPE = (96, 100, 60)  # i, j, k; 192 x 160 x 180 mm


def body_volume(seed: int = 0) -> Volume:
    """A cylinder of 60 HU with a lung (-850), a bone (400) and a layer of fat (-100), noise of 5 HU, in air."""
    rng = np.random.default_rng(seed)
    i, j = (s * (np.arange(n) - n / 2) for n, s in zip(SHAPE[:2], SPACING_MM[:2], strict=True))
    radius = np.hypot(i[:, None], j[None])
    plane = np.where(radius < 75, np.where(radius > 65, -100.0, 60.0), -1000.0)
    plane[np.hypot(i[:, None] - 25, j[None]) < 25] = -850
    plane[np.hypot(i[:, None] + 35, j[None]) < 10] = 400
    array = np.repeat(plane[..., None], SHAPE[2], 2) + rng.normal(0, 5, SHAPE)
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    return Volume(np.rint(array).astype(np.int16), grid, "CT")


def with_balls(body: Volume, count: int = 40, diameter_mm: float = 18.0) -> Volume:
    """The same with balls of 160 HU in the soft tissue, since regions need structures with borders."""
    rng = np.random.default_rng(1)
    array = body.array.astype(np.float32)
    soft = np.argwhere((array > 20) & (array < 100))
    for centre in soft[rng.integers(len(soft), size=count)]:
        apart = [s * (np.arange(n) - c) for s, n, c in zip(SPACING_MM, SHAPE, centre, strict=True)]
        near = sum(np.ix_(*(a**2 for a in apart))) < (diameter_mm / 2) ** 2
        array[near & (array > 20) & (array < 100)] += 100
    return body.with_array(np.rint(array).astype(np.int16))


@pytest.fixture(scope="session")
def body() -> Volume:
    return body_volume()


@pytest.fixture(scope="session")
def scan(body: Volume) -> Scan:
    return Scan.of("body", body)


@pytest.fixture(scope="session")
def labelled(body: Volume) -> Scan:
    """The same with a label: the bone is 1, all soft tissue 2."""
    label = np.where(body.array > 250, 1, np.where(body.array > 0, 2, 0)).astype(np.uint8)
    return Scan.of("labelled", body, Volume(label, body.grid, "SEG"))

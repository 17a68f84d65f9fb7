"""A scan is recognised in another file, orientation or type, and from a part of it; another scan is not."""

import numpy as np
import pytest

from voxsam.geometry import Grid
from voxsam.seen import HASHES, Seen, content, digest, listed
from voxsam.volume import Volume

GRID = Grid.from_spacing((40, 36, 30), (1, 2, 3), (4, 5, 6))


def noise(seed: int = 0, grid: Grid = GRID) -> Volume:
    return Volume(np.random.default_rng(seed).integers(-900, 300, grid.shape).astype(np.int16), grid, "CT")


def turned(volume: Volume, axes: str) -> Volume:
    order, flips = volume.grid.permutation_to(axes)
    array = volume.array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return Volume(np.ascontiguousarray(array), volume.grid.reorient(axes), volume.modality)


def cropped(volume: Volume, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Volume:
    box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    return Volume(volume.array[box].copy(), volume.grid.crop(start, shape), volume.modality)


SEEN = Seen({"livers": {"STS_001": content(noise(0)), "STS_002": content(noise(1))}})


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIR"])
def test_the_same_voxels_in_another_file(dtype, axes):
    again = turned(noise(1), axes)
    again = again.with_array(again.array.astype(dtype))
    assert content(again) == content(noise(1))
    assert SEEN.find("renamed", again) == "trained on it: STS_002 of livers has the same voxels"


@pytest.mark.parametrize(
    "start, shape", [((0, 0, 0), (30, 26, 20)), ((7, 11, 3), (22, 20, 18)), ((1, 1, 9), (38, 34, 8))]
)
def test_a_part_of_a_scan_and_a_scan_of_a_part(start, shape):
    part = turned(cropped(noise(0), start, shape), "LPS")
    words = "trained on a part of it, or on what it is a part of: STS_001 of livers"
    assert SEEN.find("other", part) == words
    assert Seen({"livers": {"STS_001": content(part)}}).find("other", noise(0)) == words


def test_one_voxel_makes_another_digest_and_the_rest_is_a_part():
    changed = noise(0)
    changed.array[3, 4, 5] += 1
    assert digest(changed) != digest(noise(0))
    assert "a part of it" in SEEN.find("other", changed)


def test_fractions_count():
    small = [
        Volume(np.random.default_rng(n).uniform(0, 0.4, GRID.shape).astype(np.float32), GRID, "MR") for n in (0, 1)
    ]
    assert digest(small[0]) != digest(small[1])
    seen = Seen({"heads": {"MR_7": content(small[0])}})
    assert "a part of" in seen.find("x", cropped(small[0], (2, 2, 2), (30, 30, 20)))
    assert seen.find("x", small[1]) == ""


@pytest.mark.parametrize("name", ["STS_001", "sts_001_0000", "STS-1_cropped", "sts 0001 portal phase"])
def test_another_scan_of_that_name_may_be_it(name):
    assert SEEN.find(name, noise(5)) == "perhaps trained on it: STS_001 of livers has the same name"


@pytest.mark.parametrize("name", ["STS_011", "case_001", "other_001", ""])
def test_another_scan_of_another_name_is_not_it(name):
    assert SEEN.find(name, noise(5)) == ""


def test_a_name_that_every_data_set_has_is_known_only_whole():
    seen = Seen({"a": {"case_0001": ""}})
    assert "perhaps" in seen.find("case_0001", noise())
    assert seen.find("case_0001_b", noise()) == seen.find("Case_1", noise()) == ""


@pytest.mark.parametrize("array", [np.zeros((30, 30, 30)), np.indices((30, 30, 30)).sum(0) % 2, np.ones((30, 30, 1))])
def test_what_is_alike_everywhere_has_no_sketch(array):
    grid = Grid.from_spacing(array.shape, (1, 1, 1), (0, 0, 0))
    assert ":" not in content(Volume(array.astype(np.int16), grid))


def test_padding_is_in_no_sketch():
    shapes = [np.pad(noise(n).array, 30, constant_values=-1024) for n in (0, 5)]
    padded = [Volume(a, Grid.from_spacing(a.shape, (1, 2, 3), (0, 0, 0)), "CT") for a in shapes]
    assert Seen({"x": {"A1": content(padded[0])}}).find("B2", padded[1]) == ""
    assert "a part" in SEEN.find("B2", padded[0])


def test_a_card_in_words():
    assert len(content(noise())) == 17 + HASHES * 8
    assert listed({"livers": {"a": "", "b": ""}, "what x was trained on": {}, "lungs": {"c": ""}}) == (
        "livers (2 cases), what x was trained on (not listed), lungs (1 case)"
    )
    assert Seen({}).find("a", noise()) == ""

"""The split: sizes by hand, every case exactly once, the same for the same seed in any order of cases."""

from __future__ import annotations

import pytest

from voxsam.lab.data.folds import split_cases, split_sizes

KITS = (209, 30, 61)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (7, 1, 2)), (24, (17, 2, 5)), (300, (210, 30, 60))],
)
def test_sizes(count, sizes):
    assert split_sizes(count) == sizes


def test_the_released_sizes_hold_for_the_whole_data_set_only():
    assert split_sizes(300, KITS) == KITS
    assert split_sizes(299, KITS) == (209, 30, 60)


def test_every_case_is_in_one_part_and_the_seed_decides_which():
    names = [f"c{i}" for i in range(40)]
    split = split_cases(names, seed=3)
    assert list(split) == ["train", "validation", "test"]
    assert sorted(name for part in split.values() for name in part) == sorted(names)
    assert [len(part) for part in split.values()] == [28, 4, 8]
    assert split_cases(reversed(names), seed=3) == split
    assert split_cases(names, seed=4) != split

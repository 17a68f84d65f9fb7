"""About a hundred damaged files of each format (thousands in benchmarks/fuzz.py) are read or refused, nothing else."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import fuzz


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux counts them")
def test_damaged_files_are_read_or_refused(tmp_path):
    pytest.importorskip("highdicom")
    found, slowest = fuzz.run(16 * len(fuzz.FORMATS), seed=20, keep=tmp_path)
    others = {name: counts for name, counts in found.items() if set(counts) - set(fuzz.READ)}
    assert others == {} and sorted(found) == sorted(fuzz.FORMATS)
    assert all(counts["refused"] for counts in found.values()), "the damage does nothing"
    assert max(slowest.values()) < fuzz.SECONDS


def test_damage_is_the_same_for_the_same_seed_and_changes_the_file():
    data = bytes(range(256)) * 20
    assert fuzz.damaged(data, np.random.default_rng(3)) == fuzz.damaged(data, np.random.default_rng(3)) != data


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_a_reader_that_ends_hangs_or_fails_is_noticed(tmp_path, monkeypatch):
    for code, said in (
        ("import os; input(); os.kill(os.getpid(), 11)", "ended (-11)"),
        ("import time; input(); time.sleep(60)", "slow"),
        ("input(); print('KeyError: x', flush=True); input()", "KeyError: x"),
    ):
        monkeypatch.setattr(fuzz, "CHILD", code)
        monkeypatch.setattr(fuzz, "SECONDS", -35.0)
        reader = fuzz.Reader()
        assert reader.read(tmp_path / "a.nii", False) == said
        if said.startswith("KeyError"):
            reader.close()

"""The benchmark of cohorts: its scans, its table, the overlap of windows, and one quick run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import cohort
from tests.known_model import KnownModel, upright
from voxsam.io import read_volume
from voxsam.volume import Volume


def test_each_scan_is_cut_about_its_click(tmp_path):
    (job,) = cohort.write_scans(tmp_path, 1, 1)
    volume = read_volume(job.images[0])
    whole = cohort.big_scan(0, 1)
    assert volume.grid.shape == (128, 128, 37)
    here = volume.grid.index_to_world(job.clicks[0].place)
    np.testing.assert_allclose(here, whole.scan.grid.index_to_world(whole.click), atol=1e-3)


def test_a_network_that_sees_each_voxel_by_itself_shares_all_and_one_that_sees_its_place_does_not():
    class Placed(KnownModel):
        def encode(self, crops, progress=None):
            ramp = torch.arange(float(crops.shape[-1]))
            return (crops, (crops + ramp * self.placed)[..., ::4, ::4, ::4])

    array = np.random.default_rng(0).uniform(-1, 1, (30, 26, 40)).astype(np.float32)
    volume, model = Volume(array, upright(30, 26, 40), "CT"), Placed()
    model.placed = 0.0
    assert cohort.shared_features(model, volume, 4) == {"all": 0, "middle": 0}
    model.placed = 1.0
    assert min(cohort.shared_features(model, volume, 4).values()) > 0.1


def test_a_quick_run_writes_numbers_and_table(tmp_path):
    page, threads = tmp_path / "page.md", torch.get_num_threads()
    page.write_text("<!-- cohort -->\n<!-- /cohort -->\n", encoding="utf-8")
    words = ["--quick", "--scans", "2", "--auto-scans", "0", "--threads", "1", "-o", tmp_path / "a.json"]
    cohort.main([str(word) for word in (*words, "--write", page)])
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    clicks = found["clicks"]
    assert clicks["scans_per_hour"]["at once"] == pytest.approx(3600 * 2 / clicks["at once"])
    assert 0 < clicks["reading_s"] < clicks["one after the other"]
    assert "| clicks, 2 scans |" in page.read_text(encoding="utf-8")
    assert 0.01 < found["shared"]["middle"] <= found["shared"]["all"] * 1.5

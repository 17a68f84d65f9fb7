"""The benchmark of opening a large scan, run on a small one, in a browser if there is one."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from server.serving import running

from benchmarks import opening
from tests.page.running import CHROMIUM, STATIC
from voxsam.io import read_volume
from voxsam.server.settings import Settings
from voxsam.testing import stub_network


def test_its_scan_is_noisy_and_of_the_shape_that_was_asked_for(tmp_path):
    assert opening.write_scan(tmp_path / "ct.nii.gz", 12, 2) == [256, 256, 12]
    scan = read_volume(tmp_path / "ct.nii.gz")
    assert scan.grid.spacing_mm.tolist() == pytest.approx([1.6, 1.6, 1.0])
    assert (scan.array[::2, ::2] != scan.array[1::2, 1::2]).mean() > 0.9


def test_the_longest_answer_is_of_all_that_was_asked_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "ASK_S", 0.01)
    with running(Settings(state=tmp_path), stub_network()) as client:
        with opening.asking(SimpleNamespace(address=str(client.base_url) + "/")) as took:  # type: ignore[arg-type]
            time.sleep(0.2)
        assert len(took) > 1 and min(took) > 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or not (STATIC / "index.html").exists(), reason="no Chromium, or no page built")
def test_a_scan_is_shown_before_it_is_whole():
    found = opening.measure(60, 2)
    assert found["shape"] == [256, 256, 60] and 0 < found["shown_s"] <= found["whole_s"]
    assert found["server_cpu_s"] > 0 and found["browser_cpu_s"] > 0 and found["page_longest_stall_s"] > 0

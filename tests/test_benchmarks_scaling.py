"""The benchmark of scaling: its tables and its figure, on known numbers and in one quick run."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cases, scaling
from benchmarks.run import CaseFailedError


@pytest.fixture
def known() -> dict:
    """Time as the cube of the side, memory as the side; the reference implementation's largest crop does not fit."""

    def run_case(form: str, settings: dict) -> dict:
        if form == "tiny":
            each = [1.0 * settings["enlarged"], *[0.1] * 9]
            clicks = {"first_click_s": each[0], "next_click_s": 0.1, "each_click_s": each, "ten_clicks_s": sum(each)}
            return {**clicks, "scan_shape": [128 * settings["enlarged"]] * 3, "peak_memory_bytes": 5e8, "sample": [0.5]}
        if form == "reference" and settings["crop"] == 128:
            raise CaseFailedError("reference was killed: most likely it ran out of memory")
        seconds = settings["crop"] ** 3 / 1e5 * (4 if form == "reference" else 1)
        return {"first_click_s": seconds, "next_click_s": seconds / 20, "peak_memory_bytes": settings["crop"] * 1e7}

    return scaling.measure(scaling.NETWORKS, scaling.ENLARGED, 2, run_case)


def test_every_case_has_its_row_and_a_failure_its_reason(known):
    text = scaling.report(known)
    assert "| vit_b | 64³ | reference | 10.5 | 0.524 | 0.640 |" in text
    assert "| vit_b | 128³ | VoxSAM | 21.0 | 1.05 | 1.28 |" in text
    assert "| vit_b | 128³ | reference | reference was killed: most likely it ran out of memory | – | – |" in text
    assert "| 256 × 256 × 256 | 2.00 | 0.100 | 2.90 | 0.500 |" in text


def test_the_figure_draws_what_was_measured(known):
    drawn = scaling.figure(known)
    seconds, memory, sizes, clicks = drawn.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in seconds.lines}
    assert lines["reference, first click"] == pytest.approx([4 * side**3 / 1e5 for side in (64, 96)])
    assert len(lines["VoxSAM, next click"]) == 3
    assert [len(line.get_xdata()) for line in memory.lines] == [3, 2]
    assert {label.get_text() for label in sizes.get_xticklabels()} == {"tiny", "vit_b", "vit_l", "vit_h"}
    assert len(clicks.lines) == len(scaling.ENLARGED)


def test_a_quick_run_writes_numbers_table_and_picture(tmp_path, monkeypatch):
    def here(form: str, settings: dict) -> dict:
        return cases.run_case(form, cases.Settings(**settings, quick=True))

    monkeypatch.setattr(scaling.measure, "__defaults__", (here,))
    threads = torch.get_num_threads()
    page = tmp_path / "page.md"
    page.write_text("<!-- scaling -->\n<!-- /scaling -->\n", encoding="utf-8")
    words = ["--quick", "--threads", "1", "-o", tmp_path / "a.json", "--plot", tmp_path / "a.png", "--write", page]
    scaling.main([str(word) for word in words])
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [(case["form"], case["crop"]) for case in found["networks"]] == [(f, crop) for f, _, crop in scaling.QUICK]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "| tiny | 32³ | reference |" in page.read_text(encoding="utf-8")

"""The commands and the Python of docs/project.md run as they stand, in a folder with what the reader brings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from voxsam.cli import main
from voxsam.io import write_mask, write_volume
from voxsam.project import Project
from voxsam.testing import stub_scan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "project.md"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_project_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    Path("elsewhere").mkdir()
    for seed, case in enumerate("abcd"):
        write_volume(stub_scan(seed).scan, Path("scans") / f"{case}.nii.gz")
    write_mask(stub_scan(0).truth, Path("elsewhere/a.nii.gz"))
    write_mask(stub_scan(2).truth, Path("elsewhere/c_seg.nii.gz"))
    for kind, text in BLOCKS.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "sh":
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
        elif kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
    project = Project("sarcomas")
    assert {case: reading.reader for case, reading in project.done_cases().items()} == {"c": "ben", "d": "anna"}
    assert Path("nnunet/labelsTr/a.nii.gz").is_file() and Path("msd/dataset.json").is_file()

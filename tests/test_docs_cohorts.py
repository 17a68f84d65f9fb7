"""The commands and the Python of docs/cohorts.md run as they stand, in a folder with what the reader brings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from voxsam.cli import main
from voxsam.io import write_volume
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cohorts.md"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = stub_scan()
    Path("scans").mkdir()
    write_volume(given.scan, Path("scans/a.nii.gz"))
    save_model(stub_network(automatic=True), Path("auto.safetensors"))
    blocks = BLOCKS.findall(PAGE.read_text(encoding="utf-8"))
    (header,) = [text.splitlines()[0] for kind, text in blocks if kind == "csv"]
    click = ",".join(map(str, given.click))
    Path("clicks.csv").write_text(f"{header}\nscans/a.nii.gz,{click},1\nscans/a.nii.gz,1,1,1,0\n")
    for kind, text in blocks:
        if kind == "sh":
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
        elif kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
    for mask in ("masks/scans/a.nii.gz", "automatic/a.nii.gz", "from_python/first.nii.gz"):
        assert Path(mask).is_file(), mask

"""docs/dicom.md runs as it stands, on a real series with the masks that the page says one has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from voxsam.cli import main
from voxsam.io import read_volume, write_mask

PAGE = Path(__file__).resolve().parents[1] / "docs" / "dicom.md"
BLOCKS = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block_runs(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("highdicom")
    monkeypatch.chdir(tmp_path)
    Path("SERIES").symlink_to(shared_data / "dicom/sts_003_ct_rtstruct", target_is_directory=True)
    scan = read_volume("SERIES")
    array = np.zeros(scan.grid.shape, np.uint8)
    array[60:90, 60:90, 20:30], array[100:120, 60:90, 20:30] = 1, 2
    for name in ("other.seg.dcm", "plan.rtstruct.dcm"):
        write_mask(scan.with_array(array, "SEG"), name)
    names: dict = {}
    blocks = BLOCKS.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 5
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        for line in text.splitlines():
            words = shlex.split(re.sub(r"\s#.*", "", line))
            assert words[0] == "voxsam" and main(words[1:]) == 0, line
    assert np.array_equal(names["mask"].array, array) and np.array_equal(names["tumour"].array, array == 2)
    assert {"tumour.seg.dcm", "tumour.rtstruct.dcm", "refined.seg.dcm"} <= {path.name for path in Path().iterdir()}

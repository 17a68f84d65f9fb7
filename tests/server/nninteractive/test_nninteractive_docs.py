"""The Python of docs/nninteractive.md runs as it is, against a server on another port."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from voxsam.io import read_volume, write_volume

PAGE = Path(__file__).resolve().parents[3] / "docs" / "nninteractive.md"
ADDRESS = "http://127.0.0.1:8000"


def test_the_python_of_the_page_writes_a_mask_on_the_scan(server, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_volume(phantom.scan, tmp_path / "ct.nii.gz")
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert ADDRESS in code
    exec(compile(code.replace(ADDRESS, server.url), str(PAGE), "exec"), {})
    mask = read_volume("tumour.nii.gz", labels=True)
    assert mask.grid.close_to(phantom.scan.grid)
    assert np.unique(mask.array).tolist() == [0, 1]
    assert sitk.ReadImage("tumour.nii.gz").GetSize() == phantom.scan.grid.shape

"""napari with its plug-in napari-nninteractive 2.5.4, in a Python of its own under Xvfb.

VOXSAM_NAPARI_PYTHON names that Python; `.ci/clients` makes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from known_scans import dice, generated_scan, real_scan, turned
from server.serving import running

import voxsam
from voxsam.io import read_volume, write_volume
from voxsam.server.settings import Settings

PYTHON = os.environ.get("VOXSAM_NAPARI_PYTHON", "")
WALK = Path(__file__).with_name("napari_walk.py")
LIMIT_S = 240


@pytest.mark.skipif(not PYTHON, reason="VOXSAM_NAPARI_PYTHON names no Python with napari-nninteractive")
@pytest.mark.parametrize("kind, axes", [("generated", "PLS"), pytest.param("real", "LPS", marks=pytest.mark.slow)])
def test_a_click_in_napari_is_the_sessions_own_mask_where_it_lies_in_the_patient(kind, axes, tmp_path, request):
    """A wrong guess of the axes would move the mask. For other axes, napari-nifti 0.0.20 itself mixes up some files."""
    known = real_scan(request.getfixturevalue("shared_data"), axes) if kind == "real" else generated_scan(axes)
    scan, tumour, click, least_dice = known
    write_volume(scan, tmp_path / "ct.nii.gz")
    model = voxsam.load_model("voxsam-tiny")
    with running(Settings(state=tmp_path / "state", alive_s=600), model) as server:
        walk_in_napari(str(server.base_url).rstrip("/"), tmp_path / "ct.nii.gz", click, tmp_path)
        assert not server.service.sessions.open  # the plug-in gave its place back

    (file,) = (tmp_path / "ct_nnInteractive").iterdir()
    exported = turned(read_volume(file, labels=True), scan.grid.axes)  # napari-nifti writes R, A, S
    assert exported.grid.close_to(scan.grid)
    assert exported.array[click] == 1
    own = voxsam.Session(model, scan, keep_clicked=False).click(click).array
    np.testing.assert_array_equal(exported.array > 0, own > 0)
    assert dice(tumour, own > 0) > least_dice

    facts = json.loads((tmp_path / "facts.json").read_text())
    mask = np.load(tmp_path / "mask.npy")
    assert mask[tuple(facts["index"])] == 1
    by_axis = dict(zip(scan.grid.axes, scan.grid.spacing_mm, strict=True))
    wanted = [next(by_axis[code] for code in pair if code in by_axis) for pair in ("SI", "AP", "RL")]
    np.testing.assert_allclose(np.abs(facts["spacing"]), wanted, rtol=1e-4)


def walk_in_napari(address: str, scan: Path, click: tuple[int, int, int], out: Path) -> None:
    screen = [shutil.which("xvfb-run"), "-a", "-s", "-screen 0 1280x1024x24"] if shutil.which("xvfb-run") else []
    command = [*screen, PYTHON, str(WALK), address, str(scan), ",".join(map(str, click)), str(out)]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HOME": str(out), "LIBGL_ALWAYS_SOFTWARE": "1", "NAPARI_ASYNC": "0"}
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

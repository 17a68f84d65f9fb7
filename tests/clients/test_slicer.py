"""3D Slicer's plug-in SlicerNNInteractive on Slicer's own libraries, in a Python of its own.

VOXSAM_SLICER_PYTHON names a Python with `slicer-core` and `nninteractive-client`, VOXSAM_SLICER_PLUGIN the plug-in's
file SlicerNNInteractive.py (1.0.0), which VoxSAM may not distribute. Its requests, sent by the client that it uses,
are always tested: tests/server/nninteractive.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from known_scans import dice, generated_scan, real_scan, turned
from server.serving import running

import voxsam
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_volume
from voxsam.prompts import Scribble
from voxsam.server.settings import Settings
from voxsam.volume import Volume

PYTHON, PLUGIN = os.environ.get("VOXSAM_SLICER_PYTHON", ""), os.environ.get("VOXSAM_SLICER_PLUGIN", "")
WALK = Path(__file__).with_name("slicer_walk.py")
LIMIT_S = 240


@pytest.mark.skipif(not (PYTHON and PLUGIN), reason="VOXSAM_SLICER_PYTHON and VOXSAM_SLICER_PLUGIN are not set")
@pytest.mark.parametrize("kind, axes", [("generated", "PRI"), pytest.param("real", "LPS", marks=pytest.mark.slow)])
def test_what_slicer_shows_is_the_sessions_own_mask_where_it_lies_in_the_patient(kind, axes, tmp_path, request):
    known = real_scan(request.getfixturevalue("shared_data"), axes) if kind == "real" else generated_scan(axes)
    scan, tumour, click, least_dice = known
    write_volume(scan, tmp_path / "ct.nii.gz")
    model = voxsam.load_model("voxsam-tiny")
    place = ",".join(str(mm) for mm in scan.grid.index_to_world(click))
    with running(Settings(state=tmp_path / "state", alive_s=600), model) as server:
        address = str(server.base_url).rstrip("/")
        command = [PYTHON, str(WALK), address, str(tmp_path / "ct.nii.gz"), place, str(tmp_path), PLUGIN]
        environment = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert not server.service.sessions.open  # the plug-in gave its place back

    shown, drawn = (read_volume(tmp_path / f"{name}.nrrd", labels=True) for name in ("point", "scribble"))
    # MRML's reader flips an axis of a left-handed scan. The plug-in sends the array and its spacing, not where its axes
    # point: they are taken to be L, P, S.
    seen = turned(scan, shown.grid.axes)
    assert shown.grid.close_to(seen.grid) and drawn.grid.close_to(seen.grid)
    laid = Volume(seen.array, Grid.from_spacing(seen.grid.shape, seen.grid.spacing_mm, axes="LPS"), scan.modality)
    i, j, k = (round(float(at)) for at in seen.grid.world_to_index(scan.grid.index_to_world(click)))
    own = voxsam.Session(model, laid, keep_clicked=False)
    np.testing.assert_array_equal(shown.array > 0, own.click((i, j, k)).array > 0)
    mask = turned(shown, axes).array > 0
    assert mask[click] and dice(tumour, mask) > least_dice

    own.reset()
    stroke = np.zeros(laid.grid.shape, np.uint8)
    stroke[i - 3 : i + 4, j, k] = 1
    np.testing.assert_array_equal(drawn.array > 0, own.prompt(Scribble(Volume(stroke, laid.grid, "SEG"))).array > 0)

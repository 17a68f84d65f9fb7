"""segment and batch, killed at random: no half-written file, no temporary files, and the next run is complete."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from voxsam.batch.run import TABLE
from voxsam.io import read_volume, write_volume
from voxsam.testing import stub_network, stub_scan
from voxsam.weights import save_model

KILLS = int(os.environ.get("VOXSAM_KILLS", 6))
SCANS = 4

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="SIGKILL")]


def killed_at_random(words: list[str], folder: Path, seconds: list[float]) -> None:
    """Run a command again and again, each time killed after one of `seconds`."""
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    for after in seconds:
        child = subprocess.Popen([sys.executable, "-m", "voxsam.cli", *words], cwd=folder, env=environment)
        try:
            child.wait(after)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert list((folder / "tmp").iterdir()) == []
        for mask in folder.rglob("[!.]*mask*.nii.gz"):
            assert read_volume(mask, labels=True).array.any()


def whole(words: list[str], folder: Path) -> float:
    """How long the command takes when nobody kills it."""
    begin = time.perf_counter()
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "voxsam.cli", *words], cwd=folder, env=environment, check=True)
    return time.perf_counter() - begin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "scans").mkdir()
    for seed in range(SCANS):
        write_volume(stub_scan(seed).scan, tmp_path / "scans" / f"s{seed}.nii.gz")
    save_model(stub_network(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_killed_segment_leaves_a_whole_mask_or_none(folder: Path) -> None:
    click = ",".join(map(str, stub_scan(0).click))
    words = ["segment", "scans/s0.nii.gz", "--click", click, "--model", "model.safetensors", "-o", "mask.nii.gz"]
    words += ["--probabilities", "soft.nii.gz", "--report", "report.json", "--device", "cpu"]
    seconds = whole(words, folder)
    wanted = read_volume(folder / "mask.nii.gz", labels=True).array
    rng = random.Random(1)
    killed_at_random(words, folder, [seconds * rng.uniform(0.5, 1.1) for _ in range(KILLS)])
    whole(words, folder)
    np.testing.assert_array_equal(read_volume(folder / "mask.nii.gz", labels=True).array, wanted)
    left = {path.name for path in folder.iterdir()} - {"scans", "tmp", "model.safetensors"}
    assert left == {"mask.nii.gz", "soft.nii.gz", "report.json"}


def test_a_killed_batch_goes_on_and_ends_as_if_it_had_not_been_killed(folder: Path) -> None:
    lines = [f"scans/s{seed}.nii.gz,{seed}mask,{','.join(map(str, stub_scan(seed).click))}" for seed in range(SCANS)]
    (folder / "list.csv").write_text("scan,name,i,j,k\n" + "\n".join(lines) + "\n")
    words = ["batch", "list.csv", "--model", "model.safetensors", "--device", "cpu", "-o"]
    seconds = whole([*words, "once"], folder)
    rng = random.Random(2)
    killed_at_random([*words, "out"], folder, [seconds * rng.uniform(0.5, 1.0) for _ in range(KILLS)])
    whole([*words, "out"], folder)
    expected = {f"{seed}mask.nii.gz" for seed in range(SCANS)}
    assert {path.name for path in (folder / "out").iterdir()} == {*expected, TABLE}
    for name in expected:
        masks = [read_volume(folder / where / name, labels=True).array for where in ("once", "out")]
        np.testing.assert_array_equal(*masks)

"""`voxsam prepare` and `voxsam train`, killed at random moments: nothing half written or left over, equal results.

VOXSAM_KILLS is how often each is killed; docs/reliability.md has the figures of longer runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.lab.data.raw_cases import decathlon
from tests.lab.training.minuscule import losses, write
from voxsam.lab.data.store import open_store, read_record
from voxsam.lab.training.keep import steps_done
from voxsam.weights.checkpoint import load_model

KILLS = int(os.environ.get("VOXSAM_KILLS", 3))
PATIENCE_S = 300  # a busy machine takes long to import torch

pytestmark = pytest.mark.slow


def begin(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "voxsam.cli", *words], stderr=subprocess.PIPE)


def finish(*words: str) -> None:
    process = begin(*words)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()[-2000:]


def seconds(begun: Callable[[], bool], *words: str) -> float:
    """How long a whole run goes on after it has begun to write."""
    process, end = begin(*words), time.monotonic() + PATIENCE_S
    wait_until(begun, process, end)
    start = time.monotonic()
    assert process.wait(PATIENCE_S) == 0
    return time.monotonic() - start


def kill(begun: Callable[[], bool], after_s: float, *words: str) -> None:
    """Kill a run, with its children, this many seconds after it has begun to write."""
    process = begin(*words)
    wait_until(begun, process, time.monotonic() + PATIENCE_S)
    time.sleep(after_s)
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], end: float) -> None:
    while not holds() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def test_prepare(tmp_path: Path) -> None:
    raw, whole, out = decathlon(tmp_path / "raw", "abcdef"), tmp_path / "whole", tmp_path / "out"
    words = ("prepare", str(raw), "--workers", "2", "--spacing", "1,1,1", "-o")
    last = seconds((whole / "checks").is_dir, *words, str(whole))
    for delay in np.random.default_rng(KILLS).uniform(0, last, KILLS):
        kill((out / "checks").is_dir, delay, *words, str(out))
        for check in out.glob("checks/[!.]*.json"):
            json.loads(check.read_text())
        assert all(read_record(case) is not None for case in out.glob("cases/[!.]*.zarr"))
        if (out / "dataset.json").exists():
            open_store(out)
    finish(*words, str(out))
    made, known = open_store(out), open_store(whole)
    assert made.description == known.description and hidden(out) == []
    for name in known.names:
        for part in ("scan", "label"):
            found, expected = (getattr(store.load(name), part).array[...] for store in (made, known))
            np.testing.assert_array_equal(found, expected)


def test_train(tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.yaml", steps=12, checkpoint_every=1, pictures=1, validate_every=3)
    whole, out = tmp_path / "whole", tmp_path / "out"
    last = seconds((whole / "run.json").is_file, "train", str(recipe), "-o", str(whole))
    done = 0
    for delay in np.random.default_rng(KILLS).uniform(0, last, KILLS):
        kill((out / "run.json").is_file, delay, "train", str(recipe), "-o", str(out))
        before, done = done, steps_done(out / "last.ckpt")
        assert done >= before
        if (out / "model.safetensors").exists():
            load_model(out / "model.safetensors", "cpu")
    finish("train", str(recipe), "-o", str(out))
    assert losses(out) == losses(whole) and hidden(out) == []
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

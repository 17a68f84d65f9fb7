"""FSDP on two CPU processes (gloo): losses as of one process with twice the batch, whole checkpoints, resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from tests.lab.training.minuscule import losses, recipe, write
from voxsam.lab.training.keep import steps_done
from voxsam.lab.training.run import train
from voxsam.lab.training.start import make_network
from voxsam.weights.checkpoint import load_model

TOLERANCE = 1e-4  # of losses: sums in another order
STEPS, CUT = 6, 3
RUN = """
import os, signal, sys
from voxsam.cli import main
from voxsam.lab.training.task import SegmentationTask
step = SegmentationTask.training_step
def asked(self, batch, number):
    if self.global_step + 1 == int(sys.argv[1]) and self.trainer.is_global_zero:
        signal.raise_signal(signal.SIGTERM)  # one process alone is asked to stop
    return step(self, batch, number)
SegmentationTask.training_step = asked
sys.exit(main(sys.argv[2:]))
"""


def fsdp(folder: Path, recipe_file: Path, stop_after: int) -> int:
    """Train on two processes, and ask one of them to stop after some steps; returns the exit status."""
    script = folder / "run.py"
    script.write_text(RUN)
    words = ["train", str(recipe_file), "-o", str(folder / "two"), "--batch=1", "--devices=2", "--strategy=fsdp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(stop_after), *words, "--debug"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=600)
    assert b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")[-2000:]
    return done.returncode


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_sharded_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """With averages, pictures and clipping; it is stopped after the third step and resumed."""
    same = {"tune": "adapters", "decay": 0, "checkpoint_every": 100, "validate_every": 6, "pictures": 1, "steps": STEPS}
    path = write(tmp_path / "recipe.yaml", **same)
    assert fsdp(tmp_path, path, CUT) == 130
    assert steps_done(tmp_path / "two" / "last.ckpt") == CUT
    assert fsdp(tmp_path, path, 0) == 0
    one = train(recipe(**same, batch=2), None, tmp_path / "one")
    wanted, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in found] == list(range(STEPS))
    np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in wanted], atol=TOLERANCE)
    first, second = load_model(one, "cpu").state_dict(), load_model(tmp_path / "two/model.safetensors").state_dict()
    lightning.seed_everything(recipe().seed, verbose=False)
    start = make_network(recipe(tune="adapters")).state_dict()
    assert any(not torch.equal(first[name], start[name]) for name in first)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name].cpu(), tensor, atol=1e-4, rtol=1e-3, msg=name)
    assert (tmp_path / "two" / "pictures" / "step-000006.png").is_file()
    whole = torch.load(tmp_path / "two" / "last.ckpt", weights_only=False)["state_dict"]
    assert {name.removeprefix("network."): tensor.shape for name, tensor in whole.items()} == {
        name: tensor.shape for name, tensor in first.items()
    }

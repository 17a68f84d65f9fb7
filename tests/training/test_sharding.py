"""FSDP on two CPU processes (gloo): the losses of one process with twice the batch, whole checkpoints, and going on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.minuscule import losses, recipe, write
from voxsam.model.checkpoint import load_model
from voxsam.model.tuning import is_tuned
from voxsam.training.run import train

TOLERANCE = 1e-4  # of losses: sums in another order
STEPS = 6


def fsdp(path: Path, out: Path, steps: int) -> None:
    """Train on two processes."""
    words = ["train", str(path), "-o", str(out), "--batch=1", "--devices=2", "--strategy=fsdp", f"--steps={steps}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "voxsam.cli", *words, "--debug"], env=environment, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_sharded_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """With averages, pictures and clipping; cut after the third step, and gone on with."""
    same = {"tune": "adapters", "decay": 0, "checkpoint_every": 3, "validate_every": 3, "pictures": 1, "steps": STEPS}
    path = write(tmp_path / "recipe.yaml", **same)
    one = train(recipe(**same, batch=2), None, tmp_path / "one")
    fsdp(path, tmp_path / "two", 3)
    fsdp(path, tmp_path / "two", STEPS)
    wanted, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in found] == list(range(STEPS))
    np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in wanted], atol=TOLERANCE)
    first, second = load_model(one, "cpu").state_dict(), load_model(tmp_path / "two/model.safetensors").state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name].cpu(), tensor, atol=1e-4, rtol=1e-3, msg=name)
    tuned = [name for name in first if is_tuned(name) and first[name].ndim]
    assert any(not torch.equal(first[name], recipe_start()[name]) for name in tuned)
    assert (tmp_path / "two" / "pictures" / "step-000006.png").is_file()
    whole = torch.load(tmp_path / "two" / "last.ckpt", weights_only=False)
    assert {tuple(t.shape) for t in whole["state_dict"].values()} == {tuple(t.shape) for t in first.values()}


def recipe_start() -> dict[str, torch.Tensor]:
    """What the run began with."""
    import lightning

    from voxsam.training.start import make_network

    lightning.seed_everything(recipe().seed, verbose=False)
    return make_network(recipe(tune="adapters")).state_dict()

"""Training without clicks: the samples, a network without unused parts, and a file that segments by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.lab.training.minuscule import losses, losses_on_one_batch, recipe, rows, write, write_cases
from voxsam.cli import main
from voxsam.errors import UnsupportedError
from voxsam.io import write_volume
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.cases import Labelled
from voxsam.lab.data.sampling import Sampler, validation_samples
from voxsam.lab.training.memory import Footprint
from voxsam.lab.training.run import train
from voxsam.lab.training.start import make_network
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.promptable import Promptable
from voxsam.phantoms import make_phantom
from voxsam.preprocess import Preprocessing
from voxsam.testing import stub_scan
from voxsam.weights.checkpoint import BUILDERS, load_model, save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers
USE = Preprocessing(spacing_mm=(3, 4, 5), clip=(-120, 200), mean=35, sd=40, interpolation="area")


def case(seed: int) -> Labelled:
    phantom = make_phantom(seed, (40, 34, 30), (4, 5, 6), "PLS")
    return Labelled.make(phantom.scan, phantom.label)


# What is sampled


def test_the_crops_are_those_of_clicks_and_a_crop_beside_a_tumour_keeps_what_it_shows_of_it() -> None:
    near, given = Augmentation(background=0.5), case(1)
    shown = 0
    for seed in range(30):
        clicked, plain = (
            Sampler(USE, 32, near, prompts).draw(given, np.random.default_rng(seed)) for prompts in ("paper", "none")
        )
        np.testing.assert_array_equal(plain["crop"], clicked["crop"])
        np.testing.assert_array_equal(plain["label"], clicked["label"])
        assert plain["points"].shape == (0, 3) and plain["labels"].shape == (0,)
        to_click = Sampler(USE, 32, near, "clicks").draw(given, np.random.default_rng(seed))
        shown += bool(plain["label"].any() and not to_click["label"].any())
    assert shown > 0  # crops beside the tumour that see some of it: a click there gets nothing, no click gets that part


def test_validation_is_one_click_in_the_middle_whatever_training_is_prompted_with() -> None:
    for prompts in ("clicks", "paper", "released"):
        (sample,) = validation_samples(Sampler(USE, 32, Augmentation(), prompts), [case(2)], seed=3)
        assert sample["points"].tolist() == [[16, 16, 16]] and sample["labels"].tolist() == [1]
        assert sample["label"][0, 16, 16, 16] == 1


def test_validation_without_clicks_does_not_put_the_tumour_in_the_middle() -> None:
    samples = validation_samples(Sampler(USE, 32, Augmentation(), "none"), [case(2)] * 12, seed=3)
    middles = np.array([np.argwhere(sample["label"][0]).mean(0) for sample in samples])
    assert all(sample["label"].any() and not len(sample["points"]) for sample in samples)
    assert (np.ptp(middles, axis=0) > 8).all()


# The network


def test_nothing_idle_is_built_tuned_or_counted() -> None:
    clicked, given = recipe(tune="adapters"), recipe(tune="adapters", prompts="none")
    first, second = make_network(clicked), make_network(given)
    prompts = {name: p for name, p in first.named_parameters() if name.startswith("prompt_encoder.")}
    assert set(first.state_dict()) - set(second.state_dict()) == set(prompts)
    task = SegmentationTask(given.planned(1), second)
    tuned = [p for group in task.configure_optimizers()["optimizer"].param_groups for p in group["params"]]
    numbers = sum(p.numel() for p in first.parameters() if p.requires_grad) - sum(p.numel() for p in prompts.values())
    assert sum(p.numel() for p in tuned) == numbers
    found, before = Footprint.of(second, given), Footprint.of(first, clicked)
    assert found.tuned == 4 * numbers and 0 < found.kept < before.kept


def test_a_step_lowers_the_loss_and_every_tensor_has_its_gradient() -> None:
    given = recipe(prompts="none", learning_rate=3e-3, warmup=0)
    task = SegmentationTask(given, make_network(given))
    seen = losses_on_one_batch(task, steps=12)
    assert seen[-1] < seen[0] - 0.01
    assert all(p.grad is not None for p in task.network.parameters())  # DDP waits for each of them


def test_a_start_leaves_its_prompt_encoder_behind_and_another_one_begins_anew(tmp_path: Path) -> None:
    save_model(make_network(recipe()), tmp_path / "clicked.safetensors")
    automatic = make_network(recipe(prompts="none", start_from=str(tmp_path / "clicked.safetensors")))
    save_model(automatic, tmp_path / "auto.safetensors")
    again = make_network(recipe(start_from=str(tmp_path / "auto.safetensors"))).state_dict()
    before = load_model(tmp_path / "clicked.safetensors", "cpu").state_dict()
    same = {name for name, tensor in again.items() if torch.equal(tensor, before[name])}
    assert {name for name in again if not name.startswith("prompt_encoder.")} <= same
    assert "prompt_encoder.layers.0.global_queries" not in same


class Deaf(Promptable):
    """A network that cannot be clicked: one convolution."""

    clicks = False

    def __init__(self, card) -> None:
        super().__init__(card)
        self.convolution = torch.nn.Conv3d(1, 2, 3, padding=1)

    def encode(self, crops_B1DHW: Tensor, progress=None):
        return (crops_B1DHW,)

    def sample(self, features, points_BN3):
        raise AssertionError("nothing is sampled without clicks")

    def static(self, features, crops_B1DHW: Tensor) -> Tensor:
        return crops_B1DHW

    def decode(
        self, features, crops_B1DHW, points=None, *, prompt_features=None, labels=None, static=None, conditioning=None
    ):
        assert points is None and prompt_features is None and labels is None
        return self.convolution(crops_B1DHW)


def test_a_system_that_takes_no_clicks_is_trained_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "deaf", Deaf)
    with pytest.raises(
        UnsupportedError,
        match="prompts: clicks for the system deaf, which takes no clicks; expected prompts: none; change `prompts` in",
    ):
        make_network(recipe(system="deaf"))
    path = train(recipe(system="deaf", prompts="none", steps=1, ema=0), None, tmp_path)
    assert load_model(path, "cpu").card.automatic


# Runs


def test_a_run_without_clicks_ends_in_a_model_that_segments_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cases(tmp_path / "data", p3=3, p4=4)
    changes = {"prompts": "none", "phantoms": 0, "validation": ["p4"], "validate_every": 1, "pictures": 1, "steps": 2}
    path, run = write(tmp_path / "recipe.yaml", **changes), tmp_path / "run"
    assert main(["train", str(path), "--data", str(data), "-o", str(run)]) == 0
    model = load_model(run / "best.safetensors", "cpu")
    assert model.card.automatic and model.card.prompts == () and model.card.recipe["prompts"] == "none"
    with safe_open(run / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("prompt_encoder.")]  # noqa: SIM118
    scores = [float(row["validation dice"]) for row in rows(run) if row["validation dice"]]
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores)
    assert "dice corrected" not in rows(run)[0]
    assert len(list((run / "pictures").iterdir())) == 2

    scan = stub_scan().scan
    write_volume(scan, tmp_path / "scan.nii.gz")
    words = [str(tmp_path / "scan.nii.gz"), "--model", str(run / "model.safetensors"), "--quiet"]
    assert main(["segment", *words, "--auto", "-o", str(tmp_path / "mask.nii.gz")]) == 0
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == scan.array.shape
    capsys.readouterr()
    assert main(["segment", *words, "--click", "1,1,1", "-o", str(tmp_path / "no.nii.gz")]) == 2
    assert "trained without clicks" in capsys.readouterr().err
    words = [str(data), "--model", str(run / "model.safetensors"), "--quiet"]
    assert main(["evaluate", *words, "--auto", "-o", str(tmp_path / "scores")]) == 0
    assert "automatic" in (tmp_path / "scores" / "table.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_without_clicks_train_as_one_with_twice_the_batch(tmp_path: Path, strategy: str) -> None:
    path = write(tmp_path / "recipe.yaml", prompts="none", tune="adapters", steps=3)
    train(recipe(prompts="none", tune="adapters", steps=3, batch=2), None, tmp_path / "one")
    words = ["train", str(path), "-o", str(tmp_path / "two"), "--batch=1", "--devices=2", f"--strategy={strategy}"]
    command = [sys.executable, "-m", "voxsam.cli", *words, "--debug"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    wanted, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in found] == [0, 1, 2]
    np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in wanted], atol=1e-4)
    assert load_model(tmp_path / "two" / "model.safetensors", "cpu").card.automatic

"""Training: a few steps on phantoms write a model that loads, and a run that was cut off resumes where it stopped."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.lab.training.minuscule import losses, losses_on_one_batch, recipe, write, write_cases
from voxsam.cli import main
from voxsam.errors import InputError
from voxsam.interactive.session import Session
from voxsam.lab.data.sampling import load_cases
from voxsam.lab.data.store import open_store
from voxsam.lab.training import run
from voxsam.lab.training.recipe import read_recipe
from voxsam.lab.training.run import Onwards, make_stream, train
from voxsam.lab.training.start import make_network
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.tuning import is_tuned
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import load_model, save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log and save at every step."""
    whole = run.lightning.Trainer
    monkeypatch.setattr(run.lightning, "Trainer", lambda **k: whole(**{**k, "log_every_n_steps": 1, **QUIET}))


QUIET = {"enable_model_summary": False}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the samples that are drawn."""
    numbers: list[int] = []
    whole = run.SampleStream.__getitem__

    def note(self, number):
        numbers.append(number)
        return whole(self, number)

    monkeypatch.setattr(run.SampleStream, "__getitem__", note)
    return numbers


def test_three_steps_write_a_model_that_loads_and_segments(tmp_path: Path, every_step, drawn: list[int]) -> None:
    path = train(recipe(), None, tmp_path / "out")
    assert path == tmp_path / "out" / "model.safetensors"
    assert drawn == [0, 1, 2, 3, 4, 5]
    steps = losses(tmp_path / "out")
    assert [step for step, _ in steps] == [0, 1, 2]
    assert np.isfinite([loss for _, loss in steps]).all()
    model = load_model(path, "cpu")
    assert (model.card.name, model.card.description["data"]) == ("minuscule", "phantoms")
    assert model.config == recipe().model
    assert model.card.preprocessing == recipe().preprocessing
    given = stub_scan()
    assert Session(model, given.scan).click(given.click).grid == given.scan.grid


@pytest.mark.slow
def test_a_blended_model_lies_between_its_start_and_the_end_also_after_a_restart(tmp_path: Path, every_step) -> None:
    start = train(recipe(), None, tmp_path / "start")
    on = recipe(start_from=str(start), seed=2)
    blended = on.model_copy(update={"blend": 0.25})
    train(blended.model_copy(update={"steps": 1}), None, tmp_path / "cut")
    first, end, mixed = (
        load_model(path, "cpu").state_dict()
        for path in (start, train(on, None, tmp_path / "end"), train(blended, None, tmp_path / "cut"))
    )
    assert any(not torch.equal(first[name], tensor) for name, tensor in end.items())
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.25 * first[name] + 0.75 * end[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, every_step, drawn: list[int], monkeypatch) -> None:
    """Cut off in the fourth of six steps: the second start gets the samples that come next, and ends as if not cut."""
    wanted = train(recipe(steps=6), None, tmp_path / "whole")
    assert drawn == list(range(12))
    step, drawn[:] = SegmentationTask.training_step, []

    def fail_at_fourth(self, batch, number):
        if self.trainer.global_step == 3:
            raise RuntimeError("the machine went away")
        return step(self, batch, number)

    monkeypatch.setattr(SegmentationTask, "training_step", fail_at_fourth)
    with pytest.raises(RuntimeError, match="went away"):
        train(recipe(steps=6), None, tmp_path / "cut")
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    monkeypatch.setattr(SegmentationTask, "training_step", step)
    drawn.clear()
    got = train(recipe(steps=6), None, tmp_path / "cut")
    assert drawn == list(range(6, 12))
    first, second = load_model(wanted, "cpu").state_dict(), load_model(got, "cpu").state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_a_finished_run_started_again_trains_no_more(tmp_path: Path, every_step, drawn: list[int]) -> None:
    first = load_model(train(recipe(), None, tmp_path), "cpu").state_dict()
    drawn.clear()
    second = load_model(train(recipe(), None, tmp_path), "cpu").state_dict()
    assert drawn == []
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_onwards_counts_the_whole_run_and_starts_where_it_is_asked_to() -> None:
    order = Onwards(10, lambda: 6)
    assert len(order) == 10
    assert list(order) == [6, 7, 8, 9]
    parts = [Onwards(10, lambda: 4, lambda rank=rank: rank, lambda: 2) for rank in range(2)]
    assert [list(part) for part in parts] == [[4, 6, 8], [5, 7, 9]] and len(parts[0]) == 5


def test_the_same_recipe_gives_the_same_samples() -> None:
    first, second, other = make_stream(recipe(), None), make_stream(recipe(), None), make_stream(recipe(seed=2), None)
    for key in ("crop", "label", "points", "labels"):
        np.testing.assert_array_equal(first[3][key], second[3][key])
    assert not np.array_equal(first[3]["crop"], other[3]["crop"])
    assert first[3]["crop"].shape == (1, *(recipe().model.crop,) * 3)


def test_a_step_lowers_the_loss_on_its_own_batch() -> None:
    network = stub_network()
    task = SegmentationTask(recipe(learning_rate=1e-3, warmup=0), network)
    seen = losses_on_one_batch(task, steps=8)
    assert seen[-1] < seen[0] - 0.01
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_vectors_are_not_decayed() -> None:
    task = SegmentationTask(recipe(weight_decay=0.05), stub_network())
    decayed, rest = task.configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.05, 0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(VoxSAMNetwork(task.network.card).parameters()))


def test_validation_chooses_the_best_checkpoint(tmp_path: Path, every_step) -> None:
    write_cases(tmp_path / "data", seen=3, aside=4)
    given = recipe(phantoms=0, validation=["aside"], validate_every=1, steps=4)
    train(given, tmp_path / "data", tmp_path / "out")
    best = torch.load(tmp_path / "out" / "best.ckpt", map_location="cpu", weights_only=False)
    with (tmp_path / "out" / "log" / "metrics.csv").open() as file:
        scores = [float(row["validation dice"]) for row in csv.DictReader(file) if row.get("validation dice")]
    assert len(scores) == 5  # before the first step, and after each
    (kept,) = [state for name, state in best["callbacks"].items() if "best" in str(state.get("best_model_path", ""))]
    assert float(kept["best_model_score"]) == pytest.approx(max(scores[1:]), abs=1e-6)
    with pytest.raises(InputError, match="no case beside; expected all cases that the recipe names"):
        train(recipe(phantoms=0, validation=["beside"]), tmp_path / "data", tmp_path / "other")


def test_adapters_alone_are_tuned(tmp_path: Path, every_step) -> None:
    first = make_network(recipe(tune="adapters"))
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    save_model(first, tmp_path / "base.safetensors")
    given = recipe(tune="adapters", start_from=str(tmp_path / "base.safetensors"), learning_rate=0.01, ema=0.0)
    after = load_model(train(given, None, tmp_path / "out"), "cpu").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(is_tuned(name) for name in changed)


def test_a_start_of_other_sizes_is_refused(tmp_path: Path) -> None:
    other = recipe().model.model_copy(update={"width": 32})
    save_model(make_network(recipe(model=other)), tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match=r"other.safetensors does not fit the recipe's network \(.*a model of the same"
    ):
        make_network(recipe(start_from=str(tmp_path / "other.safetensors")))


@pytest.mark.slow
def test_accumulated_batches_are_one_larger_batch(tmp_path: Path, every_step) -> None:
    """Without clipping and weight decay, the same gradient and so, to first order, the same weights."""
    one = load_model(train(recipe(batch=4, steps=2), None, tmp_path / "one"), "cpu").state_dict()
    many = load_model(train(recipe(batch=2, accumulate=2, steps=2), None, tmp_path / "many"), "cpu").state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe(steps=6).model_dump(mode="json"), "conditioning": None}))
    found = []
    for name, options in (("one", ["--batch=2"]), ("two", ["--batch=1", "--devices=2", "--strategy=ddp"])):
        words = [sys.executable, "-m", "voxsam.cli", "train", str(path), "-o", str(tmp_path / name), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*words, "--log_every=1"], env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
        found.append(losses(tmp_path / name))
    assert len(found[0]) == 6
    np.testing.assert_allclose([loss for _, loss in found[1]], [loss for _, loss in found[0]], atol=1e-4)


@pytest.mark.slow
def test_two_nodes_of_one_process_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Two machines as far as Lightning can tell: each is started separately and finds the other by its address."""
    path = write(tmp_path / "recipe.yaml", steps=4)
    train(recipe(steps=4, batch=2), None, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "voxsam.cli", "train", str(path), "-o", str(tmp_path / "two")]
    options = ["--batch=1", "--devices=1", "--nodes=2", "--strategy=ddp"]
    nodes = [
        subprocess.Popen([*words, *options], env={**os.environ, **address, "NODE_RANK": str(node)}) for node in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    wanted, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in found] == [0, 1, 2, 3]
    np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in wanted], atol=1e-4)


def test_a_prepared_data_set_says_its_own_preprocessing_and_validation(tmp_path: Path) -> None:
    write_cases(tmp_path / "raw", **{f"case{number}": number for number in range(6)})
    assert main(["prepare", str(tmp_path / "raw"), "-o", str(tmp_path / "prepared"), "--workers", "1"]) == 0
    store = open_store(tmp_path / "prepared")
    fields = recipe(phantoms=0, steps=1).model_dump(mode="json", exclude={"preprocessing", "validation"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    words = ["train", str(tmp_path / "recipe.yaml"), "--data", str(tmp_path / "prepared"), "-o", str(tmp_path / "out")]
    assert main([*words, "--validate_every", "1"]) == 0
    card = load_model(tmp_path / "out" / "model.safetensors", "cpu").card
    assert card.preprocessing == store.preprocessing
    assert tuple(card.recipe["validation"]) == store.split["validation"] != ()
    assert (tmp_path / "out" / "best.ckpt").is_file()
    trained = load_cases(tmp_path / "prepared", leave_out=store.split["validation"])
    assert len(trained) == len(store.split["train"])


def test_the_command_line_trains_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe().model_dump(mode="json")))
    assert main(["train", str(path), "-o", str(tmp_path / "out"), "--steps", "1", "--checkpoint_every=1"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    for words, expected in (
        (["--stepz", "1"], "unrecognized arguments: --stepz 1"),
        (["--data", str(tmp_path / "nowhere")], "no dataset.json"),
        (["--strategy", "ring"], "devices 1, nodes 1, strategy ring; expected what this machine has ("),
        (["--model.stride", "0"], "model.stride: Input should be greater than or equal to 1"),
        (["--model.width", "-16"], "model.width: Input should be greater than or equal to 1"),
    ):
        assert main(["train", str(path), "-o", str(tmp_path / "no"), *words]) == 2
        assert expected in capsys.readouterr().err


def test_gradients_are_clipped_whole_or_by_part() -> None:
    """Each part has gradients of norm 3: clipped to 1 by part, or to 1 / sqrt(3) each where the whole has norm 1."""
    norms = {}
    for clip in ("parts", "whole"):
        task = SegmentationTask(recipe(clip=clip), stub_network())
        for part in task.network.children():
            parameters = list(part.parameters())
            count = sum(p.numel() for p in parameters)
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 3 / count**0.5)
        task.configure_gradient_clipping(task.configure_optimizers()["optimizer"])
        norms[clip] = [
            float(torch.cat([p.grad.flatten() for p in part.parameters()]).norm()) for part in task.network.children()
        ]
    assert norms["parts"] == pytest.approx([1, 1, 1], rel=1e-4)
    assert norms["whole"] == pytest.approx([3**-0.5] * 3, rel=1e-4)


def test_the_optimiser_is_the_recipe_s() -> None:
    task = SegmentationTask(recipe(betas=(0.8, 0.9), weight_decay=0.02, decay_vectors=True), stub_network())
    groups = task.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.02, 0.02]
    assert all(group["betas"] == (0.8, 0.9) for group in groups)


def test_epochs_show_every_scan_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    write_cases(tmp_path, **{f"case{number}": number for number in range(4)})
    stream = make_stream(recipe(phantoms=0, epochs=3, batch=1), tmp_path)
    assert len(stream) == 12
    orders = [[stream._in_turn(4 * epoch + place, 4) for place in range(4)] for epoch in range(3)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_a_start_of_one_channel_becomes_one_of_two_that_answers_alike(tmp_path: Path) -> None:
    """Both channels show the same image, in the start's crop size. Another crop size stretches the depth table."""
    one = recipe()
    first = make_network(one)
    torch.nn.init.normal_(first.image_encoder.depth_positions)
    save_model(first, tmp_path / "one.safetensors")
    fields = {"model": one.model.model_copy(update={"channels": 2}), "start_from": str(tmp_path / "one.safetensors")}
    second = make_network(recipe(preprocessing=one.preprocessing.with_channels([one.preprocessing]), **fields))
    crop = torch.randn(1, 1, 16, 16, 16)
    points = torch.tensor([[[5.0, 9, 7]]])
    with torch.no_grad():
        torch.testing.assert_close(second(crop.repeat(1, 2, 1, 1, 1), points), first(crop, points), atol=1e-4, rtol=0)
    fields["model"] = one.model.model_copy(update={"crop": 32})
    larger = make_network(recipe(**fields)).image_encoder.depth_positions
    assert len(larger) == 8
    torch.testing.assert_close(larger[0], first.image_encoder.depth_positions[0])


def test_the_best_model_is_written_beside_the_last(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", seen=3, aside=4)
    given = recipe(phantoms=0, validation=["aside"], validate_every=1, steps=30, patience=2, learning_rate=0.05, ema=0)
    path = train(given, tmp_path / "data", tmp_path / "out")
    assert len(losses(tmp_path / "out")) < 30  # patience
    state = torch.load(tmp_path / "out" / "best.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    best = load_model(tmp_path / "out" / "best.safetensors", "cpu").state_dict()
    assert all(torch.equal(best[name], state[f"network.{name}"]) for name in best)
    last = load_model(path, "cpu").state_dict()
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_exactly_the_paper_s_tensors_are_tuned() -> None:
    """15,209,984 numbers of ViT-B's encoder (docs/released.md), and the whole prompt encoder and mask decoder."""
    (path,) = (Path(__file__).resolve().parents[3] / "recipes").glob("kits-released.yaml")
    network = make_network(read_recipe(path).model_copy(update={"start_from": None}))
    tuned = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    encoder = sum(count for name, count in tuned.items() if name.startswith("image_encoder."))
    assert encoder == 15_209_984
    task = SegmentationTask(read_recipe(path).planned(1), network)
    groups = task.configure_optimizers()["optimizer"].param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(tuned.values()) == 25_198_976
    frozen = {name.split(".")[-2] for name, p in network.named_parameters() if not p.requires_grad}
    assert not frozen & {"norm1", "norm2", "conv", "down", "up", "reduce"}


@pytest.mark.parametrize(("precision", "kept"), [("32-true", 1), ("bf16-mixed", 0)])
def test_training_in_float32_is_not_tf32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, kept: int
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(run, "keep_float32", asked.append)
    train(recipe(steps=1, precision=precision), None, tmp_path / "out", accelerator="cpu")
    assert len(asked) == kept

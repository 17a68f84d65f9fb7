"""Memory is estimated before it is needed: known counts, how they grow, and the message if there is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lab.training.minuscule import recipe, write
from voxsam.cli import main
from voxsam.errors import InputError, UnsupportedError
from voxsam.lab.training import memory, run
from voxsam.lab.training.memory import Footprint, check_memory, is_out_of_memory
from voxsam.lab.training.run import train
from voxsam.lab.training.start import make_network

CPU = torch.device("cpu")


def test_parameters_and_tuned_ones_are_counted_exactly() -> None:
    given = recipe(tune="adapters")
    network = make_network(given)
    found = Footprint.of(network, given)
    assert found.parameters == 4 * sum(p.numel() for p in network.parameters())
    assert found.tuned == 4 * sum(p.numel() for p in network.parameters() if p.requires_grad) < found.parameters


def test_what_a_linear_layer_keeps_is_counted_once() -> None:
    """y = relu(W x): x (4 x 8 floats) and y (4 x 5 floats) are kept; W is a parameter."""
    layer = torch.nn.Linear(8, 5)
    tally = memory._Tally(layer)
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(tally.pack, lambda kept: kept):
        torch.relu(layer(x))
        assert tally.total == 4 * (4 * 8 + 4 * 5)
        torch.relu(layer(x))
    assert tally.total == 4 * (4 * 8 + 2 * 4 * 5)


def test_a_crop_of_twice_the_side_keeps_eight_times_as_much_and_bfloat16_less() -> None:
    given = recipe()
    sizes = {}
    for crop in (16, 32):
        larger = given.model_copy(update={"model": given.model.model_copy(update={"crop": crop})})
        sizes[crop] = Footprint.of(make_network(larger), larger)
    assert sizes[32].kept / sizes[16].kept == pytest.approx(8, rel=0.02)
    assert sizes[16].again < 0.8 * sizes[16].kept
    half = given.model_copy(update={"precision": "bf16-mixed"})
    assert Footprint.of(make_network(half), half).kept < 0.9 * sizes[16].kept


def test_a_step_is_weights_averages_gradients_moments_and_crops() -> None:
    found = Footprint(parameters=1000, tuned=100, once=7, kept=5000.0, again=500.0)
    crops = memory.WORKING * 2
    assert found.step(recipe(ema=0)) == 1007 + 300 + crops * 5000
    assert found.step(recipe(recompute=True)) == 2007 + 300 + crops * 500
    assert found.step(recipe(ema=0, strategy="fsdp", devices=2)) == 657 + crops * 5000


def test_too_little_memory_names_what_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(batch=4)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(memory, "PROGRAM", 100e9)
    with pytest.raises(InputError) as error:
        check_memory(make_network(given), given, CPU)
    words = str(error.value)
    assert "a step takes about 100." in words and "too little memory; expected 100." in words
    for dial in ("--recompute true (", "--batch 1 --accumulate 4 (", "both (", "--precision bf16", "--model.crop 8"):
        assert dial in words
    assert "a step takes about 100." in check_memory(make_network(given), given, CPU, strict=False)


def test_enough_memory_is_one_line_and_changes_nothing() -> None:
    given = recipe()
    network = make_network(given)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    line = check_memory(network, given, CPU)
    assert line.startswith("a step takes about 0.") and "\n" not in line
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_running_out_of_memory_is_one_line_with_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(run, "train", fail)
    path = write(tmp_path / "recipe.yaml")
    assert main(["train", str(path), "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("voxsam: error: a step that takes more memory than there is (batch 2, 32-true)")
    assert "--recompute true, --batch 1 with --accumulate, --precision bf16-mixed" in line


def test_which_errors_are_want_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.filterwarnings("ignore")
def test_float16_on_a_cpu_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="precision 16-mixed on a CPU; expected bf16-mixed or 32-true"):
        train(recipe(precision="16-mixed"), None, tmp_path, accelerator="cpu")

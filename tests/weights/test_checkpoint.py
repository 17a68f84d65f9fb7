"""Model files: round trip, and deltas with their base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_cases import SMALL, answer, refusal, rewritten, saved, small_network, tuned_names
from safetensors import safe_open
from safetensors.torch import save_file

import voxsam.weights
from voxsam.errors import CheckpointError
from voxsam.network.calibration import OUTPUTS, Calibration, Layer
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.tuning import frozen_sha256
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import assemble, average, load_model, save_model
from voxsam.weights.file import METADATA_KEY, read_card, read_model

pytestmark = pytest.mark.usefixtures("models_home")


# Round trip


def test_a_saved_network_comes_back_with_its_card_and_the_same_answer(tmp_path):
    card = {"description": {"licence": "CC0"}, "recipe": {"steps": 3, "model": {"depth": 4}}, "scores": {"dice": 0.5}}
    network = small_network(**card)
    loaded = load_model(saved(tmp_path, network), "cpu")
    assert torch.equal(answer(loaded), answer(network))
    assert loaded.card.description == {"licence": "CC0"}
    assert loaded.card.recipe == card["recipe"]
    assert loaded.card.scores == {"dice": 0.5}
    assert (loaded.card.config, loaded.card.preprocessing) == (network.card.config, network.card.preprocessing)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("polarity", [False, True])
def test_the_file_says_which_prompts_the_model_takes(tmp_path, polarity):
    config = SMALL.model_copy(update={"polarity": polarity})
    path = saved(tmp_path, small_network(config=config))
    with safe_open(path, "pt") as file:
        fields = json.loads(file.metadata()[METADATA_KEY])
    negative = ["negative"] if polarity else []
    assert fields["prompts"] == ["positive", *negative, "box", "scribble", "hint"]
    assert read_card(path).prompts == tuple(fields["prompts"])


def test_the_computed_tables_are_real_after_loading(tmp_path):
    network = small_network()
    loaded = dict(load_model(saved(tmp_path, network), "cpu").named_buffers())
    assert loaded
    for name, buffer in network.named_buffers():
        assert torch.equal(loaded[name], buffer)


def test_changing_a_loaded_network_leaves_the_file_alone(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    loaded = load_model(path, "cpu")
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert path.read_bytes() == before
    save_model(loaded, path)  # over the file that it was mapped from
    assert all(not parameter.any() for parameter in load_model(path, "cpu").parameters())


def test_loading_draws_no_random_numbers_and_saving_does_not_change_the_network(tmp_path):
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = saved(tmp_path, network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    state = torch.get_rng_state()
    load_model(path, "cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_tensors_are_taken_as_float32(tmp_path):
    network = small_network()
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    loaded = load_model(rewritten(saved(tmp_path, network), halves), "cpu")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, halves[name].float())


def test_the_mean_of_models_has_seen_what_all_have_and_no_calibration(tmp_path):
    layer = Layer(weights=((1.0,),) * OUTPUTS, bias=(0.0,) * OUTPUTS)
    judge = Calibration(centre=(0.0,), spread=(1.0,), layers=(layer,), warn_below=0.5)
    for name, value in (("a", 1.0), ("b", 2.0)):
        network = stub_network()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(value)
        update = {"trained_on": {"livers": {name: "content"}}, "calibration": judge, "name": name}
        network.card = network.card.model_copy(update=update)
        save_model(network, tmp_path / f"{name}.safetensors")
    both = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    average(both, tmp_path / "mean.safetensors", half=True)
    card, tensors = read_model(tmp_path / "mean.safetensors")
    assert card.name == "b" and set(card.trained_on["livers"]) == {"a", "b"} and card.calibration is None
    for name, parameter in stub_network().named_parameters():
        assert tensors[name].dtype == torch.float16 and (tensors[name] == 1.5).all() and parameter.numel()
    assert card.frozen_sha256 == frozen_sha256(tensors)
    save_model(stub_network(name="unknown"), tmp_path / "c.safetensors")
    card = average([tmp_path / "c.safetensors", *both], tmp_path / "mean.safetensors")
    assert set(card.trained_on) == {"livers", "what unknown was trained on"}, "what lists nothing is not forgotten"
    average(both[:1], tmp_path / "one.safetensors")
    assert read_card(tmp_path / "one.safetensors").calibration == judge


def test_models_of_different_sizes_have_no_mean(tmp_path):
    save_model(stub_network(), tmp_path / "a.safetensors")
    save_model(stub_network(automatic=True), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"a.safetensors, whose tensor .* expected models of one architecture"):
        average([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_a_new_file_is_as_readable_as_any_other(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "plain"]


def test_a_card_written_before_the_newer_fields_is_read(tmp_path):
    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()[METADATA_KEY])
    kept = ("format", "format_version", "name", "config", "preprocessing", "description", "delta_of")
    save_file(state, path, {METADATA_KEY: json.dumps({key: card[key] for key in kept})})
    assert load_model(path, "cpu").card.name == "small"


def test_importing_the_list_of_models_does_not_load_torch():
    code = "import sys, voxsam.weights.registry; print('torch' in sys.modules)"
    source = Path(voxsam.weights.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert run.stdout.strip() == "False"
    assert voxsam.weights.load_model is load_model
    with pytest.raises(AttributeError, match="has no attribute 'open_model'"):
        _ = voxsam.weights.open_model


# Deltas


def tuned_copy(base: VoxSAMNetwork) -> VoxSAMNetwork:
    """The base with other tuned tensors."""
    other, names = small_network(seed=1).state_dict(), tuned_names(base)
    state = {name: other[name] if name in names else tensor for name, tensor in base.state_dict().items()}
    return assemble(base.card.model_copy(update={"name": "tuned"}), state, "test")


def delta_beside(folder: Path) -> tuple[VoxSAMNetwork, Path, Path]:
    """A tuned network, the file of its base, and its delta."""
    base = small_network()
    base_file = saved(folder, base, "base.safetensors")
    tuned = tuned_copy(base)
    save_model(tuned, folder / "delta.safetensors", delta_base=base_file)
    return tuned, base_file, folder / "delta.safetensors"


def test_a_delta_holds_the_tuned_tensors_and_names_its_base(tmp_path):
    tuned, base_file, delta = delta_beside(tmp_path)
    with safe_open(delta, "pt") as file:
        assert sorted(file.keys()) == sorted(tuned_names(tuned))
    card = read_card(delta)
    assert (card.name, card.base_name) == ("tuned", "small")
    assert card.delta_of == read_card(base_file).frozen_sha256
    assert torch.equal(answer(load_model(delta, "cpu")), answer(tuned))


def test_the_base_is_found_in_the_models_folder_under_any_name(tmp_path, models_home):
    tuned, base_file, delta = delta_beside(tmp_path)
    (models_home / "notes.safetensors").write_text("no model")
    saved(models_home, small_network(seed=5), "another.safetensors")
    base_file.rename(models_home / "zzz.safetensors")
    assert torch.equal(answer(load_model(delta, "cpu")), answer(tuned))


def test_a_base_without_a_stated_hash_is_found(tmp_path):
    tuned, base_file, delta = delta_beside(tmp_path)
    rewritten(base_file, frozen_sha256=None)
    assert torch.equal(answer(load_model(delta, "cpu")), answer(tuned))


def test_a_model_that_was_tuned_from_the_same_base_serves_as_base(tmp_path):
    tuned, base_file, delta = delta_beside(tmp_path)
    base_file.unlink()
    saved(tmp_path, tuned, "whole.safetensors")
    assert torch.equal(answer(load_model(delta, "cpu")), answer(tuned))


def test_a_loaded_delta_can_be_saved_whole_and_as_a_delta_of_a_delta(tmp_path):
    tuned, base_file, delta = delta_beside(tmp_path)
    loaded = load_model(delta, "cpu")
    save_model(loaded, tmp_path / "again.safetensors", delta_base=delta)
    assert read_card(tmp_path / "again.safetensors").base_name == "small"
    save_model(loaded, tmp_path / "whole.safetensors")
    base_file.unlink()
    assert read_card(tmp_path / "whole.safetensors").delta_of is None
    for name in ("whole", "again"):
        assert torch.equal(answer(load_model(tmp_path / f"{name}.safetensors", "cpu")), answer(tuned))


def test_a_delta_without_its_base_says_what_to_copy(tmp_path, models_home):
    _, base_file, delta = delta_beside(tmp_path)
    shown = str(read_card(base_file).frozen_sha256)[:16]
    base_file.unlink()
    assert refusal(delta) == (
        f"{delta} holds the tuned tensors only, and its base small (frozen tensors {shown}...) was not found; "
        f"expected a VoxSAM file with these tensors in {tmp_path} or {models_home}; copy the file of small there"
    )


def test_a_delta_of_sam_says_what_to_fetch(tmp_path, models_home):
    base_file = saved(tmp_path, small_network(name="sam_vit_b"), "base.safetensors")
    save_model(small_network(), tmp_path / "delta.safetensors", delta_base=base_file)
    base_file.unlink()
    message = refusal(tmp_path / "delta.safetensors")
    assert "run `voxsam weights fetch sam_vit_b`, then `voxsam weights import" in message
    assert f"{models_home / 'sam_vit_b_01ec64.pth'} --kind sam" in message


def test_a_base_whose_frozen_tensors_were_changed_is_not_taken(tmp_path):
    _, base_file, delta = delta_beside(tmp_path)
    rewritten(base_file, {"image_encoder.patch_embedding.patch_bias": torch.ones(24)})  # the hash it states stays
    assert "was not found" in refusal(delta)


def test_a_delta_cannot_be_saved_against_another_base(tmp_path):
    other = saved(tmp_path, small_network(seed=2))
    with pytest.raises(CheckpointError, match="the frozen tensors of the network are not those of .*model.safetensors"):
        save_model(small_network(), tmp_path / "delta.safetensors", delta_base=other)
    assert not (tmp_path / "delta.safetensors").exists()


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The file starts with the length of its header; 0x80 is also how a pickle starts."""
    starts = set()
    for length in range(0, 256, 4):
        path = saved(tmp_path, small_network(description={"data": "x" * length}))
        starts.add(path.read_bytes()[0])
        assert read_card(path).description == {"data": "x" * length}
    assert 0x80 in starts

"""Networks without clicks in model files: outputs, gradients, options, crops, memory, training, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lab.systems.networks.tiny import TINY, card, network
from tests.lab.training.minuscule import recipe
from voxsam.errors import InputError, UnsupportedError
from voxsam.lab.evaluation.systems import AutomaticSystem
from voxsam.lab.systems import networks
from voxsam.lab.systems.networks import FILES, AutomaticNetwork, network_kind
from voxsam.lab.training.memory import Footprint
from voxsam.lab.training.run import train
from voxsam.lab.training.start import make_network
from voxsam.testing import stub_scan
from voxsam.weights.checkpoint import load_model, save_model

ALL = sorted(FILES)
UNEVEN = (32, 64, 96)


def test_every_network_has_a_small_variant_here() -> None:
    assert set(TINY) == set(FILES)


@pytest.mark.parametrize("system", ALL)
def test_it_answers_each_voxel_of_a_crop_that_is_no_cube(system: str) -> None:
    made = AutomaticNetwork(card(system), UNEVEN).to("meta")  # shapes without numbers
    assert made(torch.empty(2, 1, *UNEVEN, device="meta")).shape == (2, 2, *UNEVEN)


@pytest.mark.parametrize("system", ALL)
def test_all_that_is_trained_has_a_gradient_and_its_file_gives_the_same_answer(system: str, tmp_path: Path) -> None:
    made = network(system).train()
    crop = torch.randn(1, 1, *(made.config.crop,) * 3)
    made(crop).square().mean().backward()
    idle = [name for name, p in made.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert idle == []
    with torch.inference_mode():
        expected = made.eval()(crop)
    save_model(made, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", "cpu")
    assert isinstance(loaded, AutomaticNetwork) and not loaded.clicks and loaded.card.automatic
    with torch.inference_mode():
        torch.testing.assert_close(loaded(crop), expected)
        assert not torch.allclose(loaded(crop), loaded(crop.mT), atol=1e-3)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("system", "options", "words"),
    [
        ("transbts", {"widht": 8}, "the option widht of transbts; expected one of: width, embedding, mlp"),
        ("transbts", {"width": 12}, "the option width of transbts: 12; expected .*multiple of 8"),
        ("transbts", {"heads": 5}, "heads must divide embedding"),
        ("unetr", {"heads": 5}, "heads must divide hidden"),
        ("nnformer", {"heads": [5, 4, 8, 16]}, "heads must divide the channels of their stage"),
        ("nnformer", {"patch": [3, 4, 4]}, "even numbers in patch"),
        ("unetrpp", {"widths": [16, 32, 48, 96]}, "each of the widths must divide the next"),
        ("mednext", {"variant": "XL"}, "the option variant of mednext: XL; expected .*'S', 'B', 'M' or 'L'"),
        ("nnunet-network", {"strides": [[2, 2, 2]], "kernels": [[3, 3, 3]]}, "kernels: one more than strides"),
    ],
)
def test_options_that_it_cannot_have_are_refused(system: str, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        network(system, **options)


@pytest.mark.parametrize(
    ("system", "crop", "words"),
    [
        ("transbts", 36, "a crop of 36 x 36 x 36 voxels for transbts; expected multiples of 8 x 8 x 8 and more"),
        ("nnformer", 48, "multiples of 32 x 32 x 32"),
        ("swin-unetr", 48, "multiples of 32 x 32 x 32"),
        ("swin-unetr", 32, "multiples of 32 x 32 x 32 and more than that"),
        ("unetrpp", 48, "multiples of 16 x 32 x 32 and more than that"),
        ("unetr", 40, "multiples of 16 x 16 x 16"),
        ("ux-net", 16, "multiples of 16 x 16 x 16 and more than that"),
        ("mednext", 16, "multiples of 16 x 16 x 16 and more than that"),
        ("segresnet", 36, "multiples of 8 x 8 x 8"),
    ],
)
def test_crops_that_do_not_fit_are_refused(system: str, crop: int, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        network(system, crop)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    for system in ("nnunet-network", "resenc-unet"):
        with pytest.raises(UnsupportedError, match="pip install --no-deps dynamic-network-architectures"):
            network(system)
    with pytest.raises(UnsupportedError, match="swin-unetr without the library einops"):
        network("swin-unetr")


def test_a_step_of_training_is_measured_at_its_own_crop() -> None:
    small = recipe(system="transbts", prompts="none", options=TINY["transbts"])
    kept = {}
    for crop in (16, 32):
        sized = small.model_copy(update={"model": small.model.model_copy(update={"crop": crop})})
        kept[crop] = Footprint.of(make_network(sized), sized).kept
    assert 6 < kept[32] / kept[16] < 10  # eight times the voxels
    mixed = sized.model_copy(update={"precision": "bf16-mixed"})
    assert Footprint.of(make_network(mixed), mixed).kept < kept[32]


@pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers
def test_a_recipe_trains_it_and_its_file_segments_scans_of_any_size_by_windows_of_its_crop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**TINY["transbts"], "layers": 1}
    base = recipe()
    config = base.model.model_copy(update={"crop": 24})
    path = train(recipe(system="transbts", prompts="none", options=options, model=config, steps=2), None, tmp_path)
    model = load_model(path, "cpu")
    assert isinstance(model, AutomaticNetwork) and model.card.options == options
    seen = []
    inside = AutomaticNetwork.decode
    monkeypatch.setattr(
        AutomaticNetwork, "decode", lambda self, features, crops, *a, **k: (
            seen.append(tuple(crops.shape[2:])) or inside(self, features, crops, *a, **k)
        ),
    )  # fmt: skip
    stub = stub_scan()  # 132 x 126 x 132 mm in voxels of 6 mm: 22 x 21 x 22, less than a crop
    mask = AutomaticSystem(model).open(stub.scan).segment([])
    assert mask.grid == stub.scan.grid and set(seen) == {(24, 24, 24)}
    assert {0, 1} >= set(mask.array.flat)


def test_with_clicks_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="prompts: clicks for the system segresnet, which takes no clicks"):
        make_network(recipe(system="segresnet", options=TINY["segresnet"]))


@pytest.mark.parametrize("system", ALL)
def test_its_options_say_what_they_are(system: str) -> None:
    lines = network_kind(system).options.lines()
    assert lines and all(len(line.split(" (default: ")[0]) > 10 for line in lines.values())

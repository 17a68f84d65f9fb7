"""The U-Net with click channels: clicks are drawn where they are, they change the mask, and its files load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import voxsam.lab.systems  # noqa: F401
from voxsam.errors import UnsupportedError
from voxsam.lab.evaluation.systems import SessionSystem
from voxsam.lab.systems.networks import BALL, ClickUNet, draw_clicks
from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.start import make_network
from voxsam.network.card import Card
from voxsam.prompts import Point
from voxsam.testing import stub_network, stub_scan
from voxsam.weights import checkpoint
from voxsam.weights.checkpoint import load_model, save_model


@pytest.fixture(scope="module")
def network() -> ClickUNet:
    torch.manual_seed(0)
    stub = stub_network().card
    config = stub.config.model_copy(update={"crop": 32})
    return ClickUNet(stub.model_copy(update={"system": "click-unet", "name": "u", "config": config})).eval()


def test_clicks_are_gaussians_where_they_lie() -> None:
    points = torch.tensor([[[2.0, 5.0, 9.0], [2.0, 5.0, 4.0], [0.0, 0.0, 0.0]]])
    drawn = draw_clicks(points, torch.tensor([[True, True, False]]), torch.Size((4, 8, 12)))
    assert drawn.shape == (1, 4, 8, 12)
    assert drawn[0, 2, 5, 9] == drawn[0, 2, 5, 4] == 1
    one_step = float(torch.exp(torch.tensor(-1 / (2 * BALL**2))))
    assert float(drawn[0, 1, 5, 9]) == pytest.approx(one_step)
    assert float(drawn[0, 2, 6, 8]) == pytest.approx(one_step**2)  # and not the sum with the other click's
    assert float(drawn[0, 0, 0, 0]) < 0.05  # an unchosen click is not drawn


def test_positive_and_negative_clicks_and_padding_differ(network: ClickUNet) -> None:
    crop, points = torch.randn(1, 1, 32, 32, 32), torch.tensor([[[8.0, 16.0, 20.0]]])
    with torch.inference_mode():
        kinds = {label: network(crop, points, torch.tensor([[label]])) for label in (1, 0, -1)}
        assert kinds[1].shape == (1, 2, 32, 32, 32)
        assert torch.equal(kinds[-1], network(crop))
        assert torch.equal(kinds[1], network(crop, points))
    assert not torch.allclose(kinds[1], kinds[0]) and not torch.allclose(kinds[1], kinds[-1])


def test_its_file_loads_and_a_session_clicks_it(network: ClickUNet, tmp_path: Path) -> None:
    save_model(network, tmp_path / "u.safetensors")
    loaded = load_model(tmp_path / "u.safetensors", "cpu")
    assert isinstance(loaded, ClickUNet)
    stub = stub_scan(0)
    system = SessionSystem(loaded, follow=False)
    assert system.parameters == sum(p.numel() for p in network.parameters())
    mask = system.open(stub.scan).segment([Point.at_index(stub.scan.grid, stub.click, True)])
    assert mask.grid == stub.scan.grid


def test_a_system_that_is_not_known_is_named(
    network: ClickUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(network, tmp_path / "u.safetensors")
    monkeypatch.delitem(checkpoint.BUILDERS, "click-unet")
    with pytest.raises(UnsupportedError, match=r"a model of the system click-unet.*install what"):
        load_model(tmp_path / "u.safetensors", "cpu")


def test_a_recipe_builds_it_and_refuses_what_it_has_not() -> None:
    card: Card = stub_network().card
    config = card.config.model_copy(update={"crop": 32})
    fields = {
        "name": "u",
        "system": "click-unet",
        "model": config,
        "preprocessing": card.preprocessing,
        "steps": 1,
    }
    assert isinstance(make_network(Recipe.model_validate(fields)), ClickUNet)
    with pytest.raises(UnsupportedError, match="a crop of 24 voxels for click-unet; expected a multiple of 16, 32"):
        make_network(Recipe.model_validate({**fields, "model": config.model_copy(update={"crop": 24})}))
    with pytest.raises(UnsupportedError, match="recompute or adapters of click-unet"):
        make_network(Recipe.model_validate({**fields, "recompute": True}))
    with pytest.raises(UnsupportedError, match="system no-such; expected one of voxsam, .*click-unet"):
        make_network(Recipe.model_validate({**fields, "system": "no-such"}))

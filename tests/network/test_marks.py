"""Marks: a click changes the tokens around it, by the weights with which they would be sampled there."""

from __future__ import annotations

import pytest
import torch

from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import mark_tokens, sample_features
from voxsam.testing import stub_network

GRID, CROP = (4, 3, 5), (16, 12, 20)


def marking(network: VoxSAMNetwork | None = None) -> VoxSAMNetwork:
    """The stub network with marks of random vectors."""
    network = stub_network() if network is None else network
    config = network.config.model_copy(update={"marks": True})
    torch.manual_seed(1)
    made = VoxSAMNetwork(Card(name="marks", config=config, preprocessing=network.card.preprocessing))
    made.load_state_dict(network.state_dict(), strict=False)
    torch.nn.init.normal_(made.prompt_encoder.marks.weight)
    return made.eval()


def test_marking_is_the_adjoint_of_sampling_inside_the_crop() -> None:
    """<sample(f, p), v> = <f, mark(v, p)> for points at least half a token from the faces."""
    torch.manual_seed(0)
    features = torch.randn(2, 6, *GRID)
    points = torch.rand(2, 7, 3) * (torch.tensor(CROP) - 5.0) + 2
    values = torch.randn(2, 7, 6)
    sampled = (sample_features(features, points, CROP) * values).sum()
    marked = (features * mark_tokens(values, points, CROP, GRID)).sum()
    torch.testing.assert_close(sampled, marked, rtol=1e-4, atol=1e-4)


def test_marks_by_hand() -> None:
    one = torch.ones(1, 1, 1)
    on_centre = mark_tokens(one, torch.tensor([[[5.5, 1.5, 9.5]]]), CROP, GRID)  # centre of token (1, 0, 2)
    assert on_centre[0, 0, 1, 0, 2] == 1 and on_centre.sum() == 1
    between = mark_tokens(one, torch.tensor([[[6.5, 1.5, 9.5]]]), CROP, GRID)  # a quarter towards token (2, 0, 2)
    assert between[0, 0, 1, 0, 2] == 0.75 and between[0, 0, 2, 0, 2] == 0.25
    at_corner = mark_tokens(one, torch.tensor([[[-0.5, 11.5, 19.0]]]), CROP, GRID)
    assert at_corner[0, 0, 0, 2, 4] == 1 and at_corner.sum() == 1
    outside = mark_tokens(one, torch.tensor([[[5.0, 12.0, 9.0]]]), CROP, GRID)
    assert not outside.any()


@pytest.mark.parametrize("label", [0, 1])
def test_a_click_acts_where_it_was_made(label: int) -> None:
    """Two points that look the same at different places: with marks the results differ, without they do not."""
    torch.manual_seed(2)
    crop = torch.randn(1, 1, 16, 16, 16)
    labels = torch.tensor([[label]])
    for network, differ in ((marking(), True), (stub_network(), False)):
        features = network.encode(crop)
        prompt_features = torch.randn(1, 1, network.config.feature_width)
        here, there = (
            network.decode(features, crop, torch.tensor([[p]]), prompt_features=prompt_features, labels=labels)
            for p in ([3.0, 4.0, 5.0], [12.0, 11.0, 9.0])
        )
        assert bool((here - there).abs().max() > 1e-3) is differ


def test_padding_marks_nothing_and_looks_alone_are_as_before() -> None:
    network, crop = marking(), torch.randn(1, 1, 16, 16, 16)
    features = network.encode(crop)
    points = torch.tensor([[[3.0, 4.0, 5.0], [9.0, 9.0, 9.0]]])
    prompt_features = network.sample(features, points)
    one = network.decode(
        features, crop, points[:, :1], prompt_features=prompt_features[:, :1], labels=torch.tensor([[1]])
    )
    padded = network.decode(features, crop, points, prompt_features=prompt_features, labels=torch.tensor([[1, -1]]))
    torch.testing.assert_close(one, padded, rtol=1e-4, atol=1e-4)
    plain = stub_network()
    without = plain.decode(features, crop, prompt_features=prompt_features)
    torch.testing.assert_close(network.decode(features, crop, prompt_features=prompt_features), without)


def test_gradients_reach_the_marks() -> None:
    network, crop = marking(), torch.randn(1, 1, 16, 16, 16)
    network(crop, torch.tensor([[[3.0, 4.0, 5.0], [9.0, 2.0, 7.0]]]), torch.tensor([[1, 0]])).square().mean().backward()
    assert (network.prompt_encoder.marks.weight.grad.abs().sum(1) > 0).all()


def test_marks_need_polarity() -> None:
    config = stub_network().config
    with pytest.raises(ValueError, match="marks need polarity"):
        type(config).model_validate({**config.model_dump(), "marks": True, "polarity": False})


def test_the_old_name_of_prompt_features_is_accepted_and_said() -> None:
    network, crop = stub_network(), torch.randn(1, 1, 16, 16, 16)
    features = network.encode(crop)
    given = network.sample(features, torch.tensor([[[3.0, 4.0, 5.0]]]))
    with pytest.warns(DeprecationWarning, match=r"decode\(looks=\) is now decode\(prompt_features=\)"):
        found = network.decode(features, crop, looks=given)
    assert torch.equal(found, network.decode(features, crop, prompt_features=given))

"""Positional prompts: places by hand, SAM's own two-way transformer with the same weights, the effect of a click."""

from __future__ import annotations

import math

import pytest
import torch
from ablated import ablated

from voxsam.errors import UnsupportedError
from voxsam.network.prompt_encoder import PositionalPromptEncoder

GRID = (2, 3, 4)
CROP = (8, 12, 16)


def encoder(**more: object) -> PositionalPromptEncoder:
    """The prompt encoder of a very small network, random in every tensor."""
    network = ablated("positional", **more)
    for parameter in network.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.prompt_encoder


def test_places_by_hand():
    made = encoder()
    made.frequencies = torch.zeros(3, 8)
    made.frequencies[0, 0], made.frequencies[1, 1], made.frequencies[2, 2] = 1, 2, 3
    found = made.places(torch.tensor([0.55, 0.6, 0.25]))
    phases = [2 * math.pi * turn for turn in (0.1, 2 * 0.2, 3 * -0.5)]  # a share s is at 2 s - 1
    torch.testing.assert_close(found[:3], torch.tensor([math.sin(phase) for phase in phases]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[8:11], torch.tensor([math.cos(phase) for phase in phases]), atol=1e-5, rtol=0)
    assert not found[3:8].any() and (found[11:] == 1).all()


def test_a_point_in_the_middle_of_a_token_has_its_place():
    """Token (1, 0, 2) of 2 x 3 x 4 is the 14th; its middle lies at voxel (5.5, 1.5, 9.5) of 8 x 12 x 16."""
    made = encoder()
    tokens = made._tokens(torch.tensor([[[5.5, 1.5, 9.5]]]), torch.tensor([[1]]), CROP)
    places = made.image_places(GRID)
    assert places.shape == (24, 16)
    torch.testing.assert_close(tokens[0, 1] - made.labels.weight[1], places[1 * 12 + 0 * 4 + 2])


def test_its_frequencies_are_no_tensor_of_a_file_and_always_the_same():
    one, other = ablated("positional"), ablated("positional", crop=24)
    assert not any("frequencies" in name for name in one.state_dict())
    assert torch.equal(one.prompt_encoder.frequencies, other.prompt_encoder.frequencies)
    expected = torch.tensor([1.764052, 0.400157, 0.978738])  # NumPy's RandomState(0), as it is known
    torch.testing.assert_close(one.prompt_encoder.frequencies[0, :3], expected)


def test_it_computes_what_sams_two_way_transformer_computes():
    """transformers' SamTwoWayTransformer with the same weights and tokens; its image is as flat as ours."""
    sam = pytest.importorskip("transformers.models.sam.modeling_sam")
    made, config = encoder(), ablated("positional").config
    sizes = {"hidden_size": config.feature_width, "mlp_dim": config.prompt_mlp, "num_hidden_layers": 2}
    settings = sam.SamMaskDecoderConfig(num_attention_heads=config.prompt_heads, layer_norm_eps=1e-5, **sizes)
    settings._attn_implementation = "eager"
    theirs = sam.SamTwoWayTransformer(settings).eval()
    names = {"self_attention": "self_attn", "token_to_image": "cross_attn_token_to_image"}
    names |= {"image_to_token": "cross_attn_image_to_token", "mlp.0": "mlp.lin1", "mlp.2": "mlp.lin2"}
    names |= {f"norm{n}": f"layer_norm{n}" for n in (1, 2, 3, 4)}
    state = {}
    for name, tensor in made.layers.state_dict().items():
        layer, rest = name.split(".", 1)
        ours = next(ours for ours in names if rest.startswith(ours))
        state[f"layers.{layer}.{names[ours]}{rest.removeprefix(ours)}"] = tensor
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("final_attn" in name for name in missing)
    features, points = torch.randn(2, config.feature_width, *GRID), torch.rand(2, 3, 3) * 7
    labels = torch.tensor([[1, 0, 1], [0, 1, 1]])
    with torch.no_grad():
        found = made(features, None, labels, points)
        places = made.image_places(GRID).T.reshape(1, -1, 1, 24)
        tokens = made._tokens(points, labels, CROP)[:, None]
        _, expected = theirs(tokens, features.flatten(2)[:, :, None], places.expand(2, -1, -1, -1), None)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_a_click_counts_by_its_place_and_label_and_only_inside_the_crop():
    made, features = encoder(), torch.randn(1, 16, *GRID)
    inside, outside = torch.tensor([[[3.0, 4.0, 5.0]]]), torch.tensor([[[3.0, 12.0, 5.0]]])
    with torch.no_grad():
        one = made(features, None, torch.tensor([[1]]), inside)
        assert torch.equal(one, made(features, None, None, inside))
        elsewhere = made(features, None, None, inside.flip(-1))
        negative = made(features, None, torch.tensor([[0]]), inside)
        nothing = made(features, None, torch.tensor([[-1]]), inside)
        assert all((one - other).abs().max() > 1e-2 for other in (elsewhere, negative, nothing))
        torch.testing.assert_close(made(features, None, None, outside), nothing)
        both = made(features, None, torch.tensor([[1, -1, 1]]), torch.cat([inside, inside + 2, outside], 1))
    torch.testing.assert_close(both, one, rtol=1e-4, atol=1e-5)


def test_without_polarity_there_is_one_label():
    network = ablated("positional", polarity=False, marks=False)
    assert network.prompt_encoder.labels.weight.shape == (1, 16)
    crop, points = torch.randn(1, 1, 16, 16, 16), torch.tensor([[[3.0, 4.0, 5.0], [9.0, 2.0, 7.0]]])
    with torch.no_grad():
        assert torch.equal(network(crop, points), network(crop, points, torch.tensor([[1, 1]])))


def test_looks_say_nothing_to_it():
    network, crop = ablated("positional"), torch.randn(1, 1, 16, 16, 16)
    features = network.encode(crop)
    assert network.sample(features, torch.zeros(1, 3, 3)).shape == (1, 3, 0)
    assert not network.far_clicks
    with pytest.raises(UnsupportedError, match=r"prompt features without points for the model positional.*`points`"):
        network.decode(features, crop, prompt_features=torch.zeros(1, 3, 0))

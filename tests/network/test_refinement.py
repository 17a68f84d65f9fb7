"""The refinement head: its click maps, its initial state, and the effect of clicks and a previous mask."""

import pytest
import torch
import torch.nn.functional as F

from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.refinement import click_maps, highest_near, similarity_maps
from voxsam.network.sizes import TINY, ModelConfig
from voxsam.preprocess import Preprocessing
from voxsam.weights.checkpoint import load_model, save_model

SMALL = {"width": 16, "depth": 4, "heads": 2, "adapter_width": 8, "crop": 32, "stride": 8, "patch": 16, "window": 2}
HEAD = {"position_grid": 4, "feature_width": 16, "head_width": 8, "queries": 2, "prompt_heads": 2, "prompt_mlp": 16}


def network(seed: int = 0, **fields) -> VoxSAMNetwork:
    config = ModelConfig.model_validate(
        {**TINY.model_dump(), **SMALL, **HEAD, "click_maps": (1.5, 4.0), "refine_width": 8, **fields}
    )
    torch.manual_seed(seed)
    preprocessing = Preprocessing(clip=(-200, 300), mean=40, sd=60)
    return VoxSAMNetwork(Card(name="refined", config=config, preprocessing=preprocessing)).eval()


def stirred(net: VoxSAMNetwork) -> VoxSAMNetwork:
    """The same with random weights: a fresh head adds nothing, so that none of its effects could be seen."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return net


def blobs() -> torch.Tensor:
    """(1, 1, 12, 12, 24) of 0 with two cubes of 1, and one of 1.5 that touches the first."""
    image = torch.zeros(1, 1, 12, 12, 24)
    image[..., 4:8, 4:8, 3:8] = 1
    image[..., 4:8, 4:8, 8:11] = 1.5
    image[..., 4:8, 4:8, 15:20] = 1
    return image


def test_what_looks_like_a_click_and_what_of_it_hangs_together_with_it():
    """Both cubes look alike; the one that was not clicked is joined to the click only by what lies between them."""
    alike, joined = similarity_maps(blobs(), torch.tensor([[[5.5, 5.5, 5.0]]]), torch.tensor([[1]]), (0.5,))[0, :2]
    between = torch.tensor(-1 / (2 * 0.5**2)).exp()
    assert alike[5, 5, 5] > 0.98 and alike[5, 5, 17] > 0.98 and alike[0, 0, 0] < 0.2
    assert joined[5, 5, 5] > 0.98 and joined[5, 5, 17] < 0.2 and joined[0, 0, 0] < 0.2
    assert joined[5, 5, 9] == pytest.approx(float(torch.tensor(-0.5).exp()), abs=0.1)  # 1 s.d. away, about
    assert joined[5, 5, 17] == pytest.approx(float(between), abs=0.08)
    assert bool((joined <= alike).all())


def test_a_path_is_as_strong_as_its_weakest_voxel_and_goes_through_faces():
    image = torch.ones(1, 1, 8, 8, 8)
    image[..., 4, :, :] = 0
    joined = similarity_maps(image, torch.tensor([[[1.0, 4.0, 4.0]]]), torch.tensor([[1]]), (0.4,))[0, 1]
    assert joined[6, 4, 4] == pytest.approx(float(joined[4, 4, 4])) and joined[2, 4, 4] > 0.99


def test_the_highest_neighbour_is_what_max_pooling_along_each_axis_finds():
    x = torch.rand(2, 3, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    pooled = [F.max_pool3d(x, kernel, 1, [n // 2 for n in kernel]) for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3))]
    assert torch.equal(highest_near(x), torch.stack(pooled).amax(0))


def test_each_polarity_and_each_spread_has_its_maps_of_its_nearest_clicks():
    points = torch.tensor([[[5.5, 5.5, 5.0], [5.5, 5.5, 17.0], [1.0, 1.0, 1.0], [50.0, 5.0, 5.0]]])
    both = similarity_maps(blobs(), points, torch.tensor([[1, 1, 0, 0]]), (0.5, 2.0))[0]
    assert both.shape == (8, 12, 12, 24)
    assert both[1, 5, 5, 5] > 0.98 and both[1, 5, 5, 17] > 0.98
    assert both[4, 0, 0, 0] > 0.98 and both[4, 5, 5, 5] < 0.2 < both[6, 5, 5, 5]  # the wider spread finds more alike
    none = similarity_maps(blobs(), points[:, 3:], torch.tensor([[1]]), (0.5,))
    assert not none.any()  # beyond the crop
    assert not similarity_maps(blobs(), points, torch.full((1, 4), -1), (0.5,)).any()
    assert not similarity_maps(blobs(), points[:, :0], None, (0.5,)).any()


POINTS = torch.tensor([[[10.0, 12.0, 20.0], [25.0, 5.0, 8.0]]])
CROP = torch.randn(1, 1, 32, 32, 48, generator=torch.Generator().manual_seed(3))


def test_a_map_is_a_gaussian_about_its_click():
    maps = click_maps(torch.tensor([[[2.0, 3.0, 5.0]]]), torch.tensor([[1]]), (8, 9, 10), (2.0,))
    assert maps.shape == (1, 2, 8, 9, 10)
    assert maps[0, 0, 2, 3, 5] == 1
    assert maps[0, 0, 4, 3, 5] == pytest.approx(0.6065, abs=1e-4)  # exp(-1/2), one s.d. along d
    assert maps[0, 0, 2, 1, 7] == pytest.approx(0.3679, abs=1e-4)  # exp(-1): one s.d. along h and one along w
    assert not maps[0, 1].any()


def test_a_coarse_map_lies_where_the_fine_one_does():
    point, label = torch.tensor([[[4.5, 6.5, 2.5]]]), torch.tensor([[1]])
    coarse = click_maps(point, label, (8, 8, 8), (3.0,), 2)[0, 0]
    assert coarse[2, 3, 1] == 1  # its voxels 2, 3 and 1 hold the crop's 4 and 5, 6 and 7, 2 and 3
    assert coarse[2, 4, 1] == pytest.approx(0.8007, abs=1e-4)  # two voxels of the crop away: exp(-4 / 18)


def test_polarities_have_maps_of_their_own_and_padding_and_outside_have_none():
    points = torch.tensor([[[1.0, 1.0, 1.0], [6.0, 6.0, 6.0], [3.0, 3.0, 3.0], [20.0, 3.0, 3.0]]])
    maps = click_maps(points, torch.tensor([[1, 0, -1, 1]]), (8, 8, 8), (1.0,))[0]
    assert maps[0, 1, 1, 1] == 1 and maps[0, 6, 6, 6] < 1e-6
    assert maps[1, 6, 6, 6] == 1 and maps[1, 1, 1, 1] < 1e-6
    assert maps[0, 7, 3, 3] < 1e-3  # neither the padding in the middle nor the click beyond the crop
    assert maps[:, 3, 3, 3].max() < 0.01


@torch.no_grad()
def test_a_fresh_head_adds_a_ball_about_each_positive_click_and_nothing_of_the_image():
    net = network()
    features = net.encode(CROP)
    coarse, _, refined = net.decode_stages(features, CROP, POINTS, labels=torch.tensor([[1, 0]]))
    added = (refined - coarse)[0, 1] - (refined - coarse)[0, 0]
    inside = torch.argwhere(added > 0).float()
    assert (inside - POINTS[0, 0]).norm(dim=1).max() < 1.18 * 4 + 1  # exp(-r^2 / 2 s^2) = 1/2, and half a coarse voxel
    assert len(inside) == pytest.approx(4 / 3 * torch.pi * (1.18 * 4) ** 3, rel=0.15)
    assert added[25, 5, 8] == pytest.approx(-9, abs=0.6)  # under the negative click
    assert added[0, 31, 47] == pytest.approx(-3, abs=1e-3)  # far from both
    other, _, again = net.decode_stages(net.encode(CROP + 1), CROP + 1, POINTS, labels=torch.tensor([[1, 0]]))
    torch.testing.assert_close(again - other, refined - coarse, atol=1e-5, rtol=0)


def test_clicking_again_in_a_crop_needs_the_static_part_only():
    net, labels = stirred(network()), torch.tensor([[1, 0]])
    features = net.encode(CROP)
    whole = net.decode(features, CROP, POINTS, labels=labels)
    kept = net.decode(net.prompted(features), CROP, POINTS, labels=labels, static=net.static(features, CROP))
    assert whole.shape == (1, 2, 32, 32, 48)
    torch.testing.assert_close(whole, kept)


def test_the_answer_depends_on_where_the_clicks_are_not_only_on_what_they_look_like():
    net, labels = stirred(network(marks=False)), torch.tensor([[1, 0]])
    features = net.encode(CROP)
    sampled = net.sample(features, POINTS)
    there = net.decode(features, CROP, POINTS, prompt_features=sampled, labels=labels)
    elsewhere = net.decode(features, CROP, POINTS + 3, prompt_features=sampled, labels=labels)
    assert (there - elsewhere).abs().max() > 1e-3


def test_a_previous_mask_is_heard_and_no_previous_mask_is_zero_logits():
    net = stirred(network())
    features, zeros = net.encode(CROP), torch.zeros(1, 1, 32, 32, 48)
    without = net.decode(features, CROP, POINTS)
    torch.testing.assert_close(without, net.decode(features, CROP, POINTS, previous=zeros))
    assert (without - net.decode(features, CROP, POINTS, previous=zeros + 4)).abs().max() > 1e-3


def test_every_part_of_the_head_learns():
    net = stirred(network()).train()
    net.decode(net.encode(CROP), CROP, POINTS, labels=torch.tensor([[1, 0]])).square().mean().backward()
    assert net.refinement is not None
    idle = [name for name, p in net.refinement.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_the_head_goes_through_a_model_file(tmp_path):
    net = stirred(network())
    save_model(net, tmp_path / "refined.safetensors")
    again = load_model(tmp_path / "refined.safetensors", "cpu")
    assert again.config.click_maps == (1.5, 4.0)
    torch.testing.assert_close(again(CROP, POINTS), net(CROP, POINTS))


def test_a_head_that_compares_begins_at_clicks_too_and_its_similarity_is_heard():
    net = network(click_similarity=(0.35, 1.0))
    logits = net.decode(net.encode(CROP), CROP, POINTS, labels=torch.tensor([[1, 0]]))
    plain = network().decode(network().encode(CROP), CROP, POINTS, labels=torch.tensor([[1, 0]]))
    assert logits.shape == plain.shape
    net = stirred(net)
    features = net.encode(CROP)
    first = net.decode(features, CROP, POINTS, labels=torch.tensor([[1, 0]]))
    with torch.no_grad():
        net.refinement.at2.enter.weight[:, 6:] = 0
    assert (first - net.decode(features, CROP, POINTS, labels=torch.tensor([[1, 0]]))).abs().max() > 0.01


def test_similarity_without_click_maps_is_refused():
    with pytest.raises(ValueError, match="click_similarity needs click_maps"):
        network(click_maps=(), click_similarity=(0.5,))


def test_a_network_without_click_maps_has_no_head():
    net = network(click_maps=())
    assert net.refinement is None
    assert not any(name.startswith("refinement") for name in net.state_dict())


@pytest.mark.parametrize("fields", [{"polarity": False, "marks": False}, {"crop": 40, "stride": 8}])
def test_click_maps_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError, match="click_maps need polarity, and a crop of a multiple of 16"):
        network(**fields)

"""VoxSAM with one part of the design changed: counts, what is kept for the next click, files, sessions, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ablated import ABLATIONS, ablated, learn, lesson

from voxsam.interactive.crops import EncodedCrops
from voxsam.interactive.session import Session
from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import TINY, VIT_B, ModelConfig
from voxsam.network.tuning import counts, paper_accounting
from voxsam.preprocess import RELEASED, Window
from voxsam.report.metrics import dice
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import load_model, save_model

PROMPT_ENCODER, UNCALLED = 3_164_160, 263_424  # of ViT-B; the part that the released code declares and never calls
STEPS = 40  # after which every variant has learned the crop
LEARNING = ("positional", "levels 1 and 4", "all levels", "marks at levels 2 and 4", "no aggregation")


@pytest.fixture(params=ABLATIONS)
def network(request: pytest.FixtureRequest) -> VoxSAMNetwork:
    """Each variant, random in every tensor, so that every click changes the result."""
    made = ablated(request.param)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def shapes_only(**changes: object) -> VoxSAMNetwork:
    config = ModelConfig.model_validate({**VIT_B.model_dump(), **changes})
    with torch.device("meta"):
        return VoxSAMNetwork(Card(name="x", config=config, preprocessing=RELEASED["kits"]))


# Parts


@pytest.mark.parametrize(
    ("levels", "paper"),
    [((4,), 25_462_400), ((1, 4), 28_626_560), ((2, 4), 28_626_560), ((1, 2, 3, 4), 34_954_880)],
)
def test_prompts_at_several_levels_are_counted_as_the_paper_counts(levels: tuple[int, ...], paper: int):
    network = shapes_only(prompt_levels=levels)
    assert paper_accounting(network) == paper
    assert counts(network).tuned == paper - len(levels) * UNCALLED  # what is built


def test_positional_prompts_have_the_released_parts_without_queries_and_three_vectors_more():
    network = shapes_only(prompt_kind="positional", polarity=True)
    size = sum(p.numel() for p in network.prompt_encoder.parameters())
    assert size == PROMPT_ENCODER - 2 * 10 * 256 + 3 * 256
    assert paper_accounting(network) == counts(network).tuned == 25_462_400 - 5_120 + 768


def test_without_aggregation_there_is_one_head_and_one_neck():
    network = shapes_only(multi_layer=False)
    assert sum(p.numel() for p in network.mask_decoder.parameters()) == 1_779_840
    assert paper_accounting(network) == 25_462_400 - (7_088_256 - 1_779_840) - 3 * 1_967_104
    assert network.config.level_blocks == (12,) and len(network.image_encoder.necks) == 1


def test_the_default_is_the_network_that_files_hold():
    names = set(ablated().state_dict())
    assert names == set(stub_network().state_dict())
    assert set(ablated("all levels").state_dict()) - names == {
        name.replace("prompt_encoder", f"prompt_encoder_{level}")
        for name in names
        for level in (1, 2, 3)
        if name.startswith("prompt_encoder")
    }
    assert TINY.prompt_kind == "sampler" and TINY.prompt_levels == (4,) and TINY.multi_layer


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_levels": ()}, "prompt_levels must rise and end with 4"),
        ({"prompt_levels": (1, 2)}, "prompt_levels must rise and end with 4"),
        ({"prompt_levels": (4, 1)}, "prompt_levels must rise"),
        ({"prompt_levels": (4, 4)}, "prompt_levels must rise"),
        ({"prompt_levels": (0, 4)}, "1 to 4"),
        ({"prompt_levels": (3, 4), "multi_layer": False}, r"4 alone, for .* no other \(multi_layer\)"),
        ({"prompt_kind": "positional", "marks": True}, "marks are of the sampler"),
        ({"prompt_kind": "boxes"}, "'sampler' or 'positional'"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate({**TINY.model_dump(), "marks": False, **fields})


# Results


def test_the_next_click_needs_the_prompted_levels_and_the_static_part_alone(network: VoxSAMNetwork):
    crop = torch.randn(2, 1, 16, 16, 16)
    points, labels = torch.rand(2, 3, 3) * 15, torch.tensor([[1, 0, -1], [1, 1, 0]])
    with torch.no_grad():
        whole = network(crop, points, labels)
        features = network.encode(crop)
        static, kept = network.static(features, crop), network.prompted(features)
        prompt_features = network.sample(kept, points)
        again = network.decode(kept, crop, points, prompt_features=prompt_features, labels=labels, static=static)
        other = network.decode(kept, crop, points.flip(1), labels=labels, static=static)
        unprompted = network.decode(kept, crop, static=static)
        torch.testing.assert_close(unprompted, network(crop))
    assert len(kept) == len(network.config.prompt_levels)
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-5)
    assert all((whole - different).abs().max() > 1e-3 for different in (other, unprompted))


@pytest.mark.parametrize("levels", [(1, 4), (2, 4), (1, 2, 3, 4)])
def test_each_level_is_changed_by_its_own_looks_and_prompt_encoder(levels: tuple[int, ...]):
    """Against the sum written out; the contributions of levels that are not prompted do not change."""
    network = ablated(prompt_levels=levels)
    crop, points = torch.randn(1, 1, 16, 16, 16), torch.tensor([[[3.0, 9.0, 12.0]]])
    width = network.config.feature_width
    with torch.no_grad():
        features = network.encode(crop)
        prompt_features, changed = network.sample(features, points), list(features)
        assert prompt_features.shape == (1, 1, len(levels) * width)
        for number, level in enumerate(levels):
            encoder = network.prompt_encoder if level == 4 else getattr(network, f"prompt_encoder_{level}")
            look = prompt_features[..., number * width : (number + 1) * width]
            changed[level - 1] = encoder(features[level - 1], look)
        plain = ablated()  # whose decoder is the same, and that is given the changed levels
        plain.mask_decoder.load_state_dict(network.mask_decoder.state_dict())
        expected = plain.decode(tuple(changed), crop)
        torch.testing.assert_close(network.decode(features, crop, points), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(changed[0], features[0]) or 1 not in levels


def test_without_aggregation_the_shallow_levels_say_nothing():
    """The mask features are the fusing convolution of level 4's head, enlarged, beside the crop (paper, Fig. 4)."""
    network, crop = ablated("no aggregation"), torch.randn(1, 1, 16, 16, 16)
    decoder = network.mask_decoder
    with torch.no_grad():
        (deepest,) = network.encode(crop)
        full = ablated()
        full.image_encoder.load_state_dict(network.image_encoder.state_dict(), strict=False)
        full.image_encoder.necks[3].load_state_dict(network.image_encoder.necks[0].state_dict())
        torch.testing.assert_close(deepest, full.encode(crop)[3])
        head = torch.nn.functional.interpolate(
            decoder.heads[0](deepest), size=(8, 8, 8), mode="trilinear", align_corners=True
        )
        image = torch.nn.functional.interpolate(crop, size=(8, 8, 8), mode="trilinear", align_corners=False)
        fused = torch.nn.functional.instance_norm(decoder.fuse(torch.cat([head, image], 1))).relu()
        expected = decoder(fused, (16, 16, 16))
        torch.testing.assert_close(network.decode((deepest,), crop), expected, rtol=1e-4, atol=1e-5)


# Files and sessions


def test_a_file_holds_it_and_a_session_keeps_what_its_next_click_needs(network: VoxSAMNetwork, tmp_path: Path):
    save_model(network, tmp_path / "a.safetensors")
    loaded, stub = load_model(tmp_path / "a.safetensors", "cpu"), lesson().stub
    assert loaded.config == network.config and loaded.far_clicks == network.far_clicks
    session = Session(loaded, stub.scan, follow=False)
    session.click(stub.click)
    session.click(np.add(stub.click, (1, 1, 0)).tolist(), positive=False)
    found = session.probabilities.array
    assert len(session.predictor.encoded.kept) == 1
    (kept,) = session.predictor.encoded.kept.values()
    assert len(kept.features) == len(network.config.prompt_levels)
    other = Session(network, stub.scan, follow=False)
    for prompt in session.prompts:
        other.prompt(prompt)
    np.testing.assert_allclose(other.probabilities.array, found, atol=1e-5)
    assert found.max() > 0 and found.max() - found.min() > 0.01


def test_a_look_of_several_levels_prompts_another_crop():
    """As when a session follows a mask: prompt features of one crop, at all prompted levels, are used in the next."""
    network, stub = ablated("levels 1 and 4"), lesson().stub
    model_grid = network.card.preprocessing.model_grid(stub.scan.grid)
    at = model_grid.world_to_index(stub.scan.grid.index_to_world([stub.click]))
    home, away = (Window.around(model_grid, at[0] + shift, (16, 16, 16)) for shift in (0, 6))
    crops = EncodedCrops(network, [stub.scan], lambda stage, fraction: None)
    with torch.inference_mode():
        click = stub.scan.grid.index_to_world(stub.click)
        look = crops.sample(home, click)
        assert look.shape == (1, 1, 32)
        assert not torch.allclose(look, crops.sample(away, click), atol=1e-3)
        answers = [
            crops.logits(away, [click], prompt_features, torch.ones(1, 1, dtype=torch.long))
            for prompt_features in (look, look.flip(-1))
        ]
    assert answers[0].shape == (16, 16, 16) and (answers[0] - answers[1]).abs().max() > 1e-4


def test_the_positional_model_is_not_followed_into_crops_without_a_click():
    assert not ablated("positional").far_clicks and ablated().far_clicks


# Training


@pytest.mark.parametrize("name", LEARNING)
def test_each_learns_the_crop_of_a_phantom_and_a_session_shows_it(name: str):
    network, one = ablated(name), lesson()
    losses = learn(network, STEPS)
    assert losses[-1] < 0.25 < 1 < losses[0]
    mask = Session(network, one.stub.scan, follow=False).click(one.stub.click)
    assert dice(mask.array, one.stub.truth.array) > 0.8


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_parameter_has_a_gradient_and_every_part_is_clipped(name: str):
    """As DDP requires; with correcting clicks, some of them padding."""
    network = ablated(name).train()
    fields = {"name": "x", "steps": 1, "clip": "parts", "gradient_clip": 1e-3, "corrected": 1.0, "corrections": 2}
    settings = {"model": network.config, "preprocessing": network.card.preprocessing, **fields}
    task, one = SegmentationTask(Recipe.model_validate(settings), network), lesson()
    batch = {
        "crop": one.crop.repeat(2, 1, 1, 1, 1),
        "label": one.truth.repeat(2, 1, 1, 1, 1),
        "points": one.points.repeat(2, 2, 1),
        "labels": torch.tensor([[1, -1], [1, 1]]),
        "number": torch.tensor([0, 1]),
    }
    task.training_step(batch, 0).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    task.configure_gradient_clipping(task.configure_optimizers()["optimizer"])
    for part in network.children():
        norm = torch.stack([p.grad.norm() for p in part.parameters()]).norm()
        assert norm <= 1e-3 * 1.01
    prompts = [part for part, _ in network.named_children() if part.startswith("prompt_encoder")]
    assert len(prompts) == len(network.config.prompt_levels)

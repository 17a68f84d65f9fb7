"""Session: a tumour longer than a crop is followed to its ends; real networks give the same as when called directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_model import FAR, KnownModel, block_scan, upright, window_box, world_of

from voxsam.errors import CheckpointError
from voxsam.geometry import Grid
from voxsam.interactive import predictor as predictor_module
from voxsam.interactive.automatic import segment_automatically
from voxsam.interactive.predictor import MAX_CROPS
from voxsam.interactive.session import Session
from voxsam.testing import stub_network, stub_scan
from voxsam.volume import Volume

# Following


def rod_scan(axes: str = "RAS", spacing=(1.0, 1.0, 1.0)) -> tuple[Volume, np.ndarray]:
    """A scan with a bent rod of 58 mm, 3.6 crops long, off centre; and the rod's voxels."""
    grid = Grid.from_spacing((26, 30, 70), (1, 1, 1), (5, -9, 3)).respace(spacing).reorient(axes)
    x, y, z = np.moveaxis(world_of(grid) - [5, -9, 3], -1, 0)
    shift = np.where(z > 35, (z - 35) * 0.3, 0)
    rod = (np.abs(x - 12) < 2.6) & (np.abs(y - 11 - shift) < 2.6) & (z > 5.5) & (z < 63.5)
    return Volume(np.where(rod, FAR, -FAR).astype(np.float32), grid, "CT"), rod


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIR"])
@pytest.mark.parametrize("z", [10, 33, 60])
def test_a_rod_longer_than_three_crops_is_followed_to_its_ends(axes: str, z: int) -> None:
    volume, rod = rod_scan(axes)
    model = KnownModel()
    session = Session(model, volume)
    index = np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11 + max(0, z - 35) * 0.3, z]))
    mask = session.click(index)
    np.testing.assert_array_equal(mask.array > 0, rod)
    additional = session.crops - 1
    assert 6 <= additional <= 9  # half a crop each time
    assert session.remarks == (
        f"the mask reached the border of its crop and was followed into {additional} further crops",
    )
    assert model.encoded == session.crops


def test_an_anisotropic_rod_is_followed_to_its_ends() -> None:
    volume, rod = rod_scan("LPS", (0.7, 0.8, 2.0))
    session = Session(KnownModel(), volume)
    mask = session.click(np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11, 33])))
    dice = 2 * (mask.array & rod).sum() / (mask.array.sum() + rod.sum())
    assert dice > 0.93  # the rest is its surface
    z = (world_of(volume.grid) - [5, -9, 3])[..., 2]
    assert z[mask.array > 0].max() - z[mask.array > 0].min() == pytest.approx(58, abs=2.1)


def test_without_following_the_mask_ends_at_its_crop_and_the_session_says_so() -> None:
    volume, rod = rod_scan("LPS")
    session = Session(KnownModel(), volume, follow=False)
    mask = session.click(np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11, 33])))
    np.testing.assert_array_equal(mask.array > 0, rod & window_box(session))
    assert session.crops == 1
    assert session.remarks == ("the mask reaches the border of its crop and was not followed beyond it",)


def test_a_model_that_sees_no_clicks_outside_its_crop_is_not_asked_there() -> None:
    volume, rod = rod_scan("LPS")
    model = KnownModel()
    model.far_clicks = False
    session = Session(model, volume)
    mask = session.click(np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11, 33])))
    np.testing.assert_array_equal(mask.array > 0, rod & window_box(session))
    assert session.remarks == ("the mask reaches the border of its crop and was not followed beyond it",)
    session.click(np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11, 10])))  # in a crop of its own
    assert session.crops == 2


def test_what_is_not_connected_is_not_added() -> None:
    """A second bright object lies in a crop that the first one is followed into."""
    rod = ((18, 22), (18, 22), (6, 40))
    apart = ((24, 26), (24, 26), (30, 33))
    volume = block_scan(upright(40, 40, 60), rod, apart)
    mask = Session(KnownModel(), volume).click((20, 20, 10))
    wanted = np.zeros(volume.grid.shape, bool)
    wanted[tuple(slice(*ends) for ends in rod)] = True
    np.testing.assert_array_equal(mask.array > 0, wanted)


def test_a_branch_that_leaves_the_crop_beside_its_trunk_is_followed() -> None:
    trunk = ((10, 14), (10, 14), (18, 32))
    arm = ((10, 24), (12, 14), (20, 22))
    branch = ((22, 24), (12, 14), (20, 40))
    volume = block_scan(upright(40, 40, 50), trunk, arm, branch)
    mask = Session(KnownModel(), volume).click((15, 13, 21))
    np.testing.assert_array_equal(mask.array > 0, volume.array > 0)


def test_a_huge_object_stops_at_the_most_crops_and_says_so() -> None:
    model = KnownModel()
    session = Session(model, Volume(np.full((90, 90, 90), FAR, np.float32), upright(90, 90, 90)))
    session.click((45, 45, 45))
    assert session.crops == MAX_CROPS
    assert session.remarks[-1] == f"the mask was not followed beyond {MAX_CROPS} crops and may be incomplete"


def test_an_object_that_needs_exactly_the_most_crops_is_not_called_incomplete(monkeypatch) -> None:
    volume, rod = rod_scan()
    index = np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11, 33]))
    needed = Session(KnownModel(), volume)
    needed.click(index)
    monkeypatch.setattr(predictor_module, "MAX_CROPS", needed.crops)
    session = Session(KnownModel(), volume)
    np.testing.assert_array_equal(session.click(index).array > 0, rod)
    assert session.remarks == needed.remarks


def test_a_second_click_on_a_followed_object_encodes_nothing() -> None:
    volume, rod = rod_scan()
    model = KnownModel()
    session = Session(model, volume)
    session.click(np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [12, 11, 33])))
    encoded = model.encoded
    mask = session.click(np.rint(volume.grid.world_to_index(np.array([5, -9, 3]) + [13, 12, 34])))
    assert model.encoded == encoded
    np.testing.assert_array_equal(mask.array > 0, rod)


# Real networks


def test_the_same_clicks_give_the_same_probabilities() -> None:
    network, given = stub_network(), stub_scan()
    answers = []
    for _ in range(2):
        session = Session(network, given.scan)
        session.click(given.click)
        session.click((given.click[0] + 1, *given.click[1:]), positive=False)
        answers.append(session.probabilities.array)
    np.testing.assert_array_equal(*answers)
    assert answers[0].max() > 0


def test_one_crop_equals_the_network_called_by_hand() -> None:
    network, given = stub_network(), stub_scan()
    session = Session(network, given.scan, follow=False)
    session.click(given.click)
    (window,) = session.prediction.windows
    encoded = session.predictor.encoded.kept[window]
    point = given.scan.grid.index_in(window.grid, given.click)
    with torch.no_grad():
        logits = network(encoded.crop, torch.tensor(point[None, None], dtype=torch.float32), torch.ones(1, 1).long())
    ((_, probability),) = session.prediction.pieces
    np.testing.assert_allclose(probability, logits.softmax(1)[0, 1], atol=1e-5)


def test_no_gradient_is_kept() -> None:
    network, given = stub_network(), stub_scan()
    session = Session(network, given.scan)
    session.click(given.click)
    for encoded in session.predictor.encoded.kept.values():
        assert not any(t.requires_grad for t in (*encoded.features, encoded.static, encoded.crop))
    assert all(p.grad is None for p in network.parameters())
    assert torch.is_grad_enabled()


def test_an_answer_of_nan_is_an_error_and_no_empty_mask() -> None:
    network, given = stub_network(), stub_scan()
    session = Session(network, given.scan)
    before = session.click(given.click).array
    with torch.no_grad():
        network.mask_decoder.classify.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError) as error:
        session.click((given.click[0] + 1, *given.click[1:]))
    assert str(error.value) == (
        "the model stub answered with NaN; expected probabilities; get its file again, or try float32 and --device cpu"
    )
    assert len(session.prompts) == 1
    np.testing.assert_array_equal(session.mask.array, before)


def test_an_automatic_answer_of_nan_is_an_error_too() -> None:
    network = stub_network(automatic=True)
    with torch.no_grad():
        network.mask_decoder.classify.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="the model stub answered with NaN"):
        segment_automatically(network, stub_scan().scan)


def test_it_works_in_bfloat16() -> None:
    given = stub_scan()
    answers = []
    for network in (stub_network(), stub_network().to(torch.bfloat16)):
        session = Session(network, given.scan, follow=False)
        session.click(given.click)
        session.click((given.click[0] + 1, *given.click[1:]), positive=False)
        assert session.probabilities.array.dtype == np.float32
        answers.append(session.probabilities.array)
    assert np.abs(answers[0] - answers[1]).mean() < 0.05


def test_a_batch_of_crops_and_points_goes_through_the_network() -> None:
    network = stub_network(polarity=False)
    rng = torch.Generator().manual_seed(1)
    crops = torch.randn(2, 1, 16, 16, 16, generator=rng)
    points = torch.tensor([[[3.0, 4, 5], [8, 8, 8]], [[10, 2, 7], [1, 1, 1]]])
    with torch.no_grad():
        together = network(crops, points)
        assert together.shape == (2, 2, 16, 16, 16)
        for b in range(2):
            alone = network(crops[b : b + 1], points[b : b + 1])
            torch.testing.assert_close(together[b : b + 1], alone, atol=1e-4, rtol=1e-4)
        features = network.encode(crops)
        prompt_features = network.sample(features, points)
        torch.testing.assert_close(network.decode(features, crops, prompt_features=prompt_features), together)
        torch.testing.assert_close(
            network.decode(features, crops, points, static=network.static(features, crops)), together
        )

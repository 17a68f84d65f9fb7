"""Conditioning: the prediction changes to agree with every click nearby and where it looks alike, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from voxsam.network.conditioning import NUGGET, Conditioning, condition
from voxsam.testing import stub_network

SETTINGS = Conditioning(reach=3.0, likeness=1.0, margin=4.0)
SHAPE = (12, 10, 14)
POSITIVE, NEGATIVE, PADDING = 1, 0, -1


def answer(value: float) -> torch.Tensor:
    """Logits whose difference, tumour minus background, is `value` everywhere."""
    logits = torch.zeros(1, 2, *SHAPE)
    logits[:, 1] = value
    return logits


def difference(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, 1] - logits[0, 0]


def clicks(*points: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[p[:3] for p in points]], dtype=torch.float32), torch.tensor([[p[3] for p in points]])


def halves() -> torch.Tensor:
    """Fused features of one channel on the crop's own grid: the halves of the last axis differ by 2 s.d."""
    fused = torch.zeros(1, 1, *SHAPE)
    fused[..., 7:] = 1
    return fused


def test_one_click_by_hand() -> None:
    """Uniform features: the change is margin / (1 + nugget) at the click and falls as a Gaussian of the distance."""
    out = difference(condition(answer(0), torch.ones(1, 3, *SHAPE), *clicks((5, 4, 6, POSITIVE)), SETTINGS))
    peak = 4 / (1 + NUGGET)
    assert out[5, 4, 6] == pytest.approx(peak, abs=1e-4)
    assert out[8, 4, 6] == pytest.approx(peak * 0.6065, abs=1e-3)  # one s.d. away: exp(-1/2)
    assert out[5, 4, 0] == pytest.approx(peak * 0.1353, abs=1e-3)  # two


def test_a_negative_click_lowers_and_a_satisfied_one_changes_nothing() -> None:
    fused = torch.ones(1, 3, *SHAPE)
    assert difference(condition(answer(1), fused, *clicks((5, 4, 6, NEGATIVE)), SETTINGS))[5, 4, 6] < -3
    for value, kind in ((4.5, POSITIVE), (-4.5, NEGATIVE)):
        torch.testing.assert_close(
            condition(answer(value), fused, *clicks((5, 4, 6, kind)), SETTINGS), answer(value), atol=1e-6, rtol=0
        )


def test_what_looks_different_is_left_alone() -> None:
    out = difference(condition(answer(0), halves(), *clicks((5, 4, 6, POSITIVE)), SETTINGS))
    assert out[5, 4, 5] > 3 and out[5, 4, 7] < 0.15 * out[5, 4, 5]  # each one voxel away: exp(-2**2 / 2) = 0.135


def test_a_later_click_keeps_the_earlier_ones() -> None:
    fused = torch.ones(1, 3, *SHAPE)
    out = difference(condition(answer(-1), fused, *clicks((5, 4, 4, POSITIVE), (5, 4, 8, NEGATIVE)), SETTINGS))
    assert out[5, 4, 4] > 2 and out[5, 4, 8] < -2


def test_a_negative_click_beside_a_positive_one_leaves_what_lies_farther_off() -> None:
    """At the border of the clicked structure: its voxel leaves the mask, and the rest stays."""
    fused = torch.ones(1, 3, *SHAPE)
    points = clicks((5, 4, 6, POSITIVE), (5, 4, 8, NEGATIVE))
    wide = Conditioning(reach=7.0, likeness=1.0, margin=5.0)
    out = difference(condition(answer(2), fused, *points, wide))
    assert out[5, 4, 6] > 0 > out[5, 4, 8]
    assert out[5, 4, 0] > 1.9 and out[11, 4, 6] > 1.9
    far = difference(condition(answer(2), fused, *clicks((5, 4, 0, POSITIVE), (5, 4, 13, NEGATIVE)), wide))
    assert far[5, 4, 7] < 0, "clicks far apart reach as far as ever: 6 voxels on"


def test_padding_and_points_outside_the_crop_change_nothing() -> None:
    fused = torch.ones(1, 3, *SHAPE)
    given = clicks((5, 4, 6, PADDING), (30, 4, 6, POSITIVE), (5, -3, 6, NEGATIVE))
    torch.testing.assert_close(condition(answer(0.5), fused, *given, SETTINGS), answer(0.5))


def test_a_coarser_fusion_grid_lies_corner_on_corner() -> None:
    """The first and the last voxel are on both grids: a click there is matched exactly."""
    fused = torch.ones(1, 3, 4, 4, 4)
    for corner in ((0, 0, 0), (11, 9, 13)):
        out = difference(condition(answer(-2), fused, *clicks((*corner, POSITIVE)), SETTINGS))
        assert out[corner] == pytest.approx(-2 + 6 / (1 + NUGGET), abs=1e-3)
        assert out[corner] == out.max()


def test_each_crop_of_a_batch_is_conditioned_by_its_own_clicks() -> None:
    logits, fused = answer(0).repeat(2, 1, 1, 1, 1), torch.ones(2, 3, *SHAPE)
    points, labels = torch.tensor([[[5.0, 4, 6]], [[2.0, 2, 2]]]), torch.tensor([[1], [0]])
    out = condition(logits, fused, points, labels, SETTINGS)
    alone = condition(answer(0), torch.ones(1, 3, *SHAPE), points[1:], labels[1:], SETTINGS)
    torch.testing.assert_close(out[1:], alone)
    assert out[0, 1, 5, 4, 6] > 1.5


def test_the_network_conditions_only_when_asked_to() -> None:
    network, crop = stub_network(), torch.randn(1, 1, 16, 16, 16)
    features, (points, labels) = network.encode(crop), clicks((5, 4, 6, POSITIVE))
    plain = network.decode(features, crop, points, labels=labels)
    torch.testing.assert_close(network(crop, points, labels), plain)
    bound = network.decode(features, crop, points, labels=labels, conditioning=Conditioning(reach=3.0, margin=50.0))
    assert difference(bound)[5, 4, 6] > difference(plain)[5, 4, 6] + 5
    without_labels = network.decode(features, crop, points, conditioning=Conditioning(reach=3.0, margin=50.0))
    assert difference(without_labels)[5, 4, 6] > difference(plain)[5, 4, 6] + 5


def test_lengths_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Conditioning(reach=0.0)

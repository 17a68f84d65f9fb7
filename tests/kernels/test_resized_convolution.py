"""The convolution of an enlarged map equals enlarging first: values, gradients, sizes of every kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.kernels.convolution import _resize_taps_as, resized_convolution

TOLERANCE = 1e-11  # double precision: only rounding is left
SIZES = [  # the map's own grid, and the one it is resized to
    ((5, 4, 3), (10, 8, 6)),  # twice, three different sides
    ((4, 3, 5), (16, 12, 20)),  # four times: the paper's fusion grid
    ((1, 3, 2), (2, 7, 4)),  # a single sample on an axis; no whole number
    ((3, 4, 5), (3, 4, 5)),  # nothing to enlarge
    ((7, 4, 5), (2, 4, 3)),  # made smaller: some samples are never looked at
]


def _plain(x: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.conv3d(F.interpolate(x, size=size, mode="trilinear", align_corners=True), weight, padding=1)


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_values_and_gradients(grid: tuple[int, ...], size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *grid, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    onto = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    before = onto.detach().clone()
    found, expected = resized_convolution(x, weight, onto), onto + _plain(x, weight, size)
    assert torch.equal(onto, before)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE
    towards = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad(found, (x, weight, onto), towards),
        torch.autograd.grad(expected, (x, weight, onto), towards),
        strict=True,
    ):
        assert (got - wanted).abs().max() < 10 * TOLERANCE


def test_one_tap_by_hand() -> None:
    """1, 3 enlarged to 1, 2, 3 along w; a kernel that takes the right neighbour gives 2, 3, 0."""
    x = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 1, 2)
    weight = torch.zeros(1, 1, 3, 3, 3)
    weight[0, 0, 1, 1, 2] = 1
    assert resized_convolution(x, weight, torch.zeros(1, 1, 1, 1, 3)).flatten().tolist() == [2, 3, 0]


def test_what_inference_kept_serves_training() -> None:
    x, weight = torch.ones(1, 1, 2, 3, 7), torch.ones(1, 1, 3, 3, 3, requires_grad=True)
    onto = torch.zeros(1, 1, 4, 6, 14)
    with torch.inference_mode():
        resized_convolution(x, weight, onto)
    resized_convolution(x, weight, onto).sum().backward()
    assert weight.grad is not None


def test_a_table_stays_where_it_is_for_a_recording_reads_it_there() -> None:
    first = _resize_taps_as(3, 6, torch.float32, torch.device("cpu"))
    for size in range(7, 50):
        _resize_taps_as(3, size, torch.float32, torch.device("cpu"))
    assert _resize_taps_as(3, 6, torch.float32, torch.device("cpu")) is first


def test_gradients_under_autocast() -> None:
    """bf16 keeps 8 bits: both ways agree with single precision to about one per cent."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 4, 5, 3, generator=generator, requires_grad=True)
    weight = torch.randn(6, 8, 3, 3, 3, generator=generator, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = resized_convolution(x, weight, torch.zeros(1, 6, 8, 10, 6, dtype=torch.bfloat16))
    expected = _plain(x, weight, (8, 10, 6))
    assert found.dtype == torch.bfloat16
    for got, wanted in zip(
        torch.autograd.grad(found.float().square().mean(), (x, weight)),
        torch.autograd.grad(expected.square().mean(), (x, weight)),
        strict=True,
    ):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() < 0.02 * wanted.norm()

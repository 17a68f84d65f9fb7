"""Automatic mode: its windows, the mask from the tumour's box alone, one reading of the scan, and flat windows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.known_model import FAR, block_scan, oblique, upright
from voxsam.interactive import automatic
from voxsam.interactive.automatic import (
    mask_of,
    mask_on_scan,
    predict,
    prepare,
    probabilities_on_scan,
    segment_automatically,
)
from voxsam.preprocess import Preprocessing
from voxsam.testing import stub_network, stub_scan
from voxsam.volume import Volume

SIDE = 8


class Known(nn.Module):
    """Its probability at a voxel is 0.5 + the normalised intensity there; it counts the windows it gets."""

    def __init__(self, spacing=(1.0, 1.0, 1.0), axes: str = "SAR") -> None:
        super().__init__()
        preprocessing = Preprocessing(axes=axes, spacing_mm=spacing, clip=(-1, 1), mean=0, sd=1)
        self.card = SimpleNamespace(name="known", preprocessing=preprocessing, automatic=True)
        self.config = SimpleNamespace(crop=SIDE)
        self.weight = nn.Parameter(torch.ones(()))
        self.windows = 0

    def forward(self, crops):
        assert crops.shape[1:] == (1, SIDE, SIDE, SIDE)
        self.windows += len(crops)
        probability = (0.5 + crops * self.weight).clamp(1e-4, 1 - 1e-4)
        return torch.cat([torch.zeros_like(probability), torch.logit(probability)], 1)


@pytest.mark.parametrize(("grid", "axes"), [(upright(20, 13, 17), "RAS"), (oblique((20, 13, 17)), "SAR")])
def test_the_mask_is_the_block_of_the_scan(grid, axes) -> None:
    volume = block_scan(grid, ((3, 9), (2, 5), (6, 16)))
    expected = volume.array > 0
    model = Known(axes=axes)
    probabilities = segment_automatically(model, volume, overlap=0.5)  # type: ignore[arg-type]
    np.testing.assert_allclose(probabilities.array, np.where(expected, 0.5 + FAR, 0.5 - FAR), atol=1e-5)
    np.testing.assert_array_equal(mask_of(probabilities).array, expected)
    assert probabilities.grid is volume.grid and mask_of(probabilities).modality == "SEG"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.7, 1.3)])
@pytest.mark.parametrize("boxes", [(), (((0, 4), (0, 3), (12, 17)), ((9, 12), (5, 9), (2, 7)))])
def test_the_box_of_the_tumour_gives_the_mask_of_all_probabilities(spacing, boxes) -> None:
    """Also where the tumour reaches the border of the scan, and where there is none."""
    volume = block_scan(oblique((20, 13, 17), spacing=(1.0, 1.2, 0.9)), *boxes)
    model = Known(spacing)
    prepared = prepare(model, volume)  # type: ignore[arg-type]
    probability = predict(model, prepared, overlap=0.5)  # type: ignore[arg-type]
    expected = mask_of(probabilities_on_scan(prepared, probability))
    found = mask_on_scan(prepared, probability)
    assert found.array.dtype == np.uint8 and found.header == volume.header
    np.testing.assert_array_equal(found.array, expected.array)
    assert expected.array.any() == bool(boxes)


def test_the_scan_is_read_into_the_model_grid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, read = [], automatic.read_crops
    monkeypatch.setattr(automatic, "read_crops", lambda *given: calls.append(given[1].shape) or read(*given))
    model = Known()
    segment_automatically(model, block_scan(upright(20, 13, 17), ((3, 9),) * 3), overlap=0.5)  # type: ignore[arg-type]
    assert len(calls) == 1 and model.windows > 8


def test_of_windows_of_one_value_only_the_first_is_computed_and_the_answer_is_the_same() -> None:
    """A block in one corner of air: most windows are flat."""
    network = stub_network(automatic=True)
    array = np.full(stub_scan().scan.grid.shape, -1000, np.int16)
    array[2:9, 3:9, 2:6] = 60
    volume = Volume(array, stub_scan().scan.grid, "CT")
    seen, forward = [], network.forward
    network.forward = lambda crops: seen.append(len(crops)) or forward(crops)  # type: ignore[assignment]
    found = segment_automatically(network, volume, overlap=0.5)
    few = sum(seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic, "_one_value", lambda crop: None)
        seen.clear()
        expected = segment_automatically(network, volume, overlap=0.5)
    np.testing.assert_array_equal(found.array, expected.array)
    assert few <= sum(seen) / 2


def test_windows_that_go_through_together_answer_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with flat windows among them."""
    network = stub_network(automatic=True)
    array = stub_scan().scan.array.copy()
    array[20:] = -1000
    prepared = prepare(network, Volume(array, stub_scan().scan.grid, "CT"))
    fractions: list[float] = []
    expected = predict(network, prepared, overlap=0.5, progress=lambda stage, fraction: fractions.append(fraction))
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    inferer = automatic.sliding_window_inference
    monkeypatch.setattr(
        automatic, "sliding_window_inference", lambda x, side, n, *rest, **more: inferer(x, side, 3, *rest, **more)
    )
    np.testing.assert_allclose(predict(network, prepared, overlap=0.5), expected, atol=1e-5)

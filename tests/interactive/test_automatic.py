"""Automatic mode: its windows, the mask from the tumour's box alone, a single pass over the scan, uniform windows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.known_model import FAR, block_scan, oblique, upright
from voxsam.interactive import automatic
from voxsam.interactive.automatic import predict, prepare, segment_automatically
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
    found = segment_automatically(model, volume, overlap=0.5)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.probabilities.array, np.where(expected, 0.5 + FAR, 0.5 - FAR), atol=1e-5)
    np.testing.assert_array_equal(found.mask.array, expected)
    assert found.grid is volume.grid and found.mask.modality == "SEG"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.7, 1.3)])
@pytest.mark.parametrize("boxes", [(), (((0, 4), (0, 3), (12, 17)), ((9, 12), (5, 9), (2, 7)))])
def test_the_box_of_the_tumour_gives_the_mask_of_all_probabilities(spacing, boxes) -> None:
    """Also where the tumour reaches the border of the scan, and where there is none."""
    volume = block_scan(oblique((20, 13, 17), spacing=(1.0, 1.2, 0.9)), *boxes)
    model = Known(spacing)
    prepared = prepare(model, volume)  # type: ignore[arg-type]
    found = predict(model, prepared, overlap=0.5)  # type: ignore[arg-type]
    expected = found.probabilities.array > 0.5
    assert found.mask.array.dtype == np.uint8 and found.mask.header == volume.header
    np.testing.assert_array_equal(found.mask.array, expected)
    assert expected.any() == bool(boxes)


def test_the_scan_is_read_into_the_model_grid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, read = [], automatic.read_crops
    monkeypatch.setattr(automatic, "read_crops", lambda *given: calls.append(given[1].shape) or read(*given))
    model = Known()
    segment_automatically(model, block_scan(upright(20, 13, 17), ((3, 9),) * 3), overlap=0.5)  # type: ignore[arg-type]
    assert len(calls) == 1 and model.windows > 8


def test_of_windows_of_one_value_only_the_first_is_computed_and_the_answer_is_the_same() -> None:
    """A block in one corner, the rest air: most windows are uniform."""
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
    np.testing.assert_array_equal(found.probabilities.array, expected.probabilities.array)
    assert few <= sum(seen) / 2


def test_windows_that_go_through_together_answer_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with uniform windows among them."""
    network = stub_network(automatic=True)
    array = stub_scan().scan.array.copy()
    array[20:] = -1000
    prepared = prepare(network, Volume(array, stub_scan().scan.grid, "CT"))
    fractions: list[float] = []
    expected = predict(network, prepared, overlap=0.5, progress=lambda stage, fraction: fractions.append(fraction))
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    monkeypatch.setattr(automatic, "WINDOWS_TOGETHER", {"cpu": 3})
    found = predict(network, prepared, overlap=0.5)
    np.testing.assert_allclose(found.probabilities.array, expected.probabilities.array, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 13, 17), (8, 8, 8), (5, 30, 7), (1, 9, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_windows_lie_where_those_of_monai_lie(shape, overlap: float) -> None:
    from monai.inferers import sliding_window_inference

    rng = np.random.default_rng(3)
    volume = Volume(rng.uniform(-0.4, 0.4, shape).astype(np.float32), upright(*shape))
    model = Known(axes="RAS")
    weight = torch.linspace(0.2, 1.0, SIDE**3).reshape((SIDE,) * 3)  # a voxel's prediction tells its place in a window

    def forward(crops):
        return torch.cat([torch.zeros_like(crops), crops * weight], 1)

    model.forward = forward  # type: ignore[method-assign]
    ((_, found),) = predict(model, prepare(model, volume), overlap=overlap).pieces  # type: ignore[arg-type]
    wanted = sliding_window_inference(
        torch.from_numpy(volume.array)[None, None],
        (SIDE,) * 3,
        1,
        lambda crops: forward(crops).softmax(1)[:, 1:],
        overlap,
        mode="constant",
    )
    np.testing.assert_allclose(found, wanted[0, 0], atol=1e-5)  # type: ignore[index]

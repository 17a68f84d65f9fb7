"""The released code's own results: features, prompted features, logits, masks, gradients and a whole scan.

Slow, because ViT-B is encoded; `.ci/run` runs those of features and clicks. test_small_golden.py has a small network.

Tolerances: float32 sums of a few thousand terms in another order differ by about 1e-5; gradients by 1e-3 relative.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from voxsam.interactive.session import Session
from voxsam.io import read_volume
from voxsam.kernels import install
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import VIT_B
from voxsam.preprocess import RELEASED
from voxsam.weights.import_checkpoints import USED_PROMPT_ENCODER, translate, translate_name

FEATURE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-4  # of the voxel count: 0.01 %
GRADIENT_TOLERANCE = 1e-3  # relative, for norms above 1e-3
LOSS_TOLERANCE = 1e-5
SIDE = 128
CLICKS = {"one": [(60, 70, 50)], "three": [(60, 70, 50), (10, 100, 127), (90, 3, 64)]}


def _generator(reference: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_released", reference / "make_released_checkpoint.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(shared_reference: Path) -> Iterator[VoxSAMNetwork]:
    released = _generator(shared_reference).released(0)
    parts = {
        "encoder": released["encoder_dict"],
        "prompt": released["feature_dict"][USED_PROMPT_ENCODER],
        "decoder": released["decoder_dict"],
    }
    network = VoxSAMNetwork(Card(name="released", config=VIT_B, preprocessing=RELEASED["colon"]))
    network.load_state_dict(translate(parts), assign=True)
    yield network.eval()


def _ellipsoid() -> np.ndarray:
    d, h, w = np.meshgrid(*[np.arange(float(SIDE))] * 3, indexing="ij")
    return ((d - 60) / 20) ** 2 + ((h - 70) / 14) ** 2 + ((w - 50) / 18) ** 2 < 1


@pytest.fixture(scope="module")
def crop() -> torch.Tensor:
    d, h, w = np.meshgrid(*[np.arange(float(SIDE))] * 3, indexing="ij")
    values = np.sin(d / 7) + np.cos(h / 11) * np.sin(w / 5) + 2 * _ellipsoid()
    values += 0.1 * np.random.Generator(np.random.PCG64(0)).standard_normal((SIDE,) * 3)
    return torch.from_numpy(values.astype(np.float32))[None, None]


@pytest.fixture(scope="module")
def golden(shared_reference: Path) -> Any:
    return np.load(shared_reference / "golden_seed0.npz")


@pytest.fixture(scope="module")
def features(network: VoxSAMNetwork, crop: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return network.encode(crop)


def _strided(feature: torch.Tensor) -> np.ndarray:
    """(1, c, d, h, w) as the golden file keeps it: every 16th channel, every 4th token, axes (c, h, w, d)."""
    return feature[0, ::16, ::4, ::4, ::4].permute(0, 2, 3, 1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("level", range(4))
def test_features(level: int, features: tuple[torch.Tensor, ...], golden: Any) -> None:
    assert np.abs(_strided(features[level]) - golden[f"features{level}"]).max() < FEATURE_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("clicks", CLICKS)
def test_clicks(
    clicks: str, network: VoxSAMNetwork, crop: torch.Tensor, features: tuple[torch.Tensor, ...], golden: Any
) -> None:
    points = torch.tensor([CLICKS[clicks]], dtype=torch.float32)
    with torch.inference_mode():
        prompted = network.prompt_encoder(features[-1], network.sample(features, points))
        logits = network.decode(features, crop, points)
    assert np.abs(_strided(prompted) - golden[f"prompted_{clicks}"]).max() < FEATURE_TOLERANCE
    strided = logits[0, :, ::4, ::4, ::4].numpy()
    assert np.abs(strided - golden[f"logits_{clicks}"]).max() < FEATURE_TOLERANCE
    voxels, expected = int((logits.softmax(1)[:, 1] > 0.5).sum()), int(golden[f"mask_voxels_{clicks}"])
    assert abs(voxels - expected) <= MASK_TOLERANCE * expected


@pytest.mark.slow  # minutes where the processor has no bf16; tests/kernels has it for small networks
def test_bfloat16_finds_the_same_mask(
    network: VoxSAMNetwork, crop: torch.Tensor, features: tuple[torch.Tensor, ...]
) -> None:
    """bf16 keeps 8 bits of mantissa: the mask, not the fourth digit of a logit, is what must stay."""
    points = torch.tensor([CLICKS["one"]], dtype=torch.float32)
    with torch.inference_mode():
        exact = network.decode(features, crop, points)
        halved = [f.bfloat16() for f in features]
        decoder = VoxSAMNetwork(network.card).eval()
        decoder.load_state_dict(network.state_dict())
        decoder.image_encoder = None  # type: ignore[assignment]  # the features are given
        rough = decoder.bfloat16().decode(tuple(halved), crop.bfloat16(), points)
    mask, expected = rough.argmax(1) > 0, exact.argmax(1) > 0
    dice = 2 * float((mask & expected).sum()) / float(mask.sum() + expected.sum())
    assert dice > 0.97


@pytest.mark.slow  # minutes; test_small_golden.py has every gradient of a small network, with the kernels and without
def test_gradients_and_loss(network: VoxSAMNetwork, crop: torch.Tensor, shared_reference: Path) -> None:
    """One training step's loss and the norm of every tuned tensor's gradient, blocks computed again on the way back.

    With the kernels, as every training has them: without, the attention's backward pass takes minutes.
    """
    from monai.losses import DiceCELoss

    network = copy.deepcopy(network)
    install(network)

    golden = json.loads((shared_reference / "golden_gradients_seed0.json").read_text())
    names = {
        translate_name(part, name): norm
        for part, key in (("encoder", "encoder"), ("prompt", "prompt3"), ("decoder", "decoder"))
        for name, norm in golden[key].items()
    }
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    network.image_encoder.recompute = True
    points = torch.tensor([CLICKS["three"]], dtype=torch.float32)
    criterion = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, lambda_dice=0.5, lambda_ce=0.5)
    loss = criterion(network(crop, points), torch.from_numpy(_ellipsoid())[None, None].float())
    loss.backward()
    network.image_encoder.recompute = False
    assert abs(loss.item() - golden["loss"]) < LOSS_TOLERANCE
    wrong = []
    for name, norm in names.items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        if norm > 1e-3 and abs(gradient.norm().item() / norm - 1) > GRADIENT_TOLERANCE:
            wrong.append((name, gradient.norm().item(), norm))
    network.zero_grad(set_to_none=True)
    assert not wrong
    assert len(names) == 159 + 58 + 10


@pytest.mark.slow
def test_whole_scan(network: VoxSAMNetwork, shared_reference: Path, shared_data: Path) -> None:
    """A released inference from file to mask: model grid, crop, probabilities on the crop and the file's own grid."""
    golden = np.load(shared_reference / "golden_scan_seed0.npz")
    session = Session(network, read_volume(shared_data / "organs_ct" / "ct.nii.gz"), follow=False)
    assert session.model_grid.shape == tuple(golden["grid_1mm_shape_dhw"])
    mask = session.click(tuple(golden["click_ijk"]))
    (window, encoded), *_ = session.predictor.encoded.kept.items()
    assert window.start == tuple(golden["crop_start_dhw"])
    crop = encoded.crop[0, 0, ::4, ::4, ::4].numpy()
    assert np.abs(crop - golden["crop_strided4"]).max() < 1e-3
    points = torch.tensor([[(SIDE // 2,) * 3]], dtype=torch.float32)
    with torch.inference_mode():
        logits = network.decode(encoded.features, encoded.crop, points, static=encoded.static)
    assert np.abs(logits[0, :, ::4, ::4, ::4].numpy() - golden["logits_strided4"]).max() < 1e-3
    expected = golden["probability_ijk"].astype(np.float32) > 0.5
    found = mask.array > 0
    assert found.shape == expected.shape
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) >= 0.998
    assert abs(int(found.sum()) - int(golden["mask_voxels"])) <= 0.002 * int(golden["mask_voxels"])

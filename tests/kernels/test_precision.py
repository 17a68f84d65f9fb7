"""bf16 and int8 as a user chooses them: nearly the same mask, the same parameters, clear messages otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxsam.errors import UnsupportedError
from voxsam.interactive.session import Session
from voxsam.io import read_volume
from voxsam.kernels import install
from voxsam.kernels.linear import precisions
from voxsam.testing import stub_network, stub_scan
from voxsam.weights import load_model, save_model

CPU = torch.device("cpu")
DICE_CHANGE = 0.005
LOWER = [
    pytest.param(name, marks=pytest.mark.skipif(name not in precisions(CPU), reason=f"no {name} instructions"))
    for name in ("bf16", "int8")
]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("precision", LOWER)
def test_the_probabilities_hardly_change(precision, tmp_path):
    given = stub_scan()
    save_model(stub_network(), tmp_path / "stub.safetensors")
    soft = {}
    for name in ("float32", precision):
        session = Session(load_model(tmp_path / "stub.safetensors", "cpu", name), given.scan)
        session.click(given.click)
        soft[name] = session.probabilities.array
    apart = np.abs(soft["float32"] - soft[precision])
    assert apart.max() > 0  # it is another arithmetic
    assert apart.mean() < 0.02


@pytest.mark.parametrize("precision", LOWER)
def test_the_parameters_stay_as_they_were(precision):
    network = stub_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    install(network, precision)
    with torch.inference_mode():
        network.encode(torch.randn(1, 1, 16, 16, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("case", ["STS_003", "STS_005"])
def test_dice_on_held_out_scans_changes_by_less_than_promised(precision, case, shared_data):
    scan = read_volume(shared_data / "sarcoma_ct" / "imagesTr" / f"{case}_0000.nii.gz")
    truth = read_volume(shared_data / "sarcoma_ct" / "labelsTr" / f"{case}.nii.gz", labels=True).array > 0
    click = np.argwhere(truth).mean(0)
    scores = {}
    for name in ("float32", precision):
        mask = Session(load_model("voxsam-tiny", "cpu", name), scan).click(click.tolist()).array > 0
        scores[name] = dice(mask, truth)
    assert scores["float32"] > 0.6
    assert abs(scores[precision] - scores["float32"]) < DICE_CHANGE


def test_words_that_are_no_precision_are_refused_before_the_model_is_read():
    with pytest.raises(UnsupportedError, match="precision 'fp8'; expected float32, bf16, int8; choose one of them"):
        load_model("no such file.safetensors", "cpu", "fp8")  # type: ignore[arg-type]

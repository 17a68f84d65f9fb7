"""Devices: the best one available, and a clear message where one is missing."""

from __future__ import annotations

import pytest
import torch
from checkpoint_cases import refusal, saved

from voxsam.errors import UnsupportedError
from voxsam.kernels import choose_device, keep_float32
from voxsam.weights import checkpoint, load_model


def test_an_unknown_device(tmp_path):
    path = saved(tmp_path)
    for device in ("gpu", "cuda:x", "cpu:1", ""):
        assert refusal(path, UnsupportedError, device) == (
            f"device {device!r}; expected auto, cpu, cuda or mps; choose one of them"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(tmp_path, device):
    message = refusal(saved(tmp_path), UnsupportedError, device)
    assert f"device '{device}': this machine, with PyTorch {torch.__version__}, has no NVIDIA GPU" in message
    assert "take --device cpu" in message


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_where_there_is_none(tmp_path):
    assert "has no Apple GPU that it can use" in refusal(saved(tmp_path), UnsupportedError, "mps")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == expected


def test_a_gpu_number_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(choose_device("cuda:1")) == "cuda:1"
    with pytest.raises(UnsupportedError, match="has no GPU number 2: it has 2, counted from 0"):
        choose_device("cuda:2")


def test_float32_on_an_nvidia_gpu_is_not_tf32(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    keep_float32(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    keep_float32(torch.device("cuda:1"))
    assert not torch.backends.cudnn.allow_tf32
    asked = []
    monkeypatch.setattr(checkpoint, "keep_float32", asked.append)
    load_model(saved(tmp_path), "cpu")
    assert asked == [torch.device("cpu")]

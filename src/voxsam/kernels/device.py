"""Which device a model runs on: the user's word to a torch.device, and what float32 means there."""

from __future__ import annotations

import torch

from voxsam.errors import UnsupportedError


def choose_device(name: str) -> torch.device:
    """The device of "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises UnsupportedError for another word, and for a device that this machine or this PyTorch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    require_device_name(name)
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise _absent(name, "NVIDIA GPU that it can use")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise _absent(name, f"GPU number {number}: it has {torch.cuda.device_count()}, counted from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise _absent(name, "Apple GPU that it can use")
    return torch.device(name)


def keep_float32(device: torch.device) -> None:
    """Let convolutions on an NVIDIA GPU keep float32's 24 bits, in this process from now on; else nothing.

    cuDNN's own default is TF32, with 11 bits. Matrix products keep float32 by torch's default.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def require_device_name(name: str) -> None:
    """Raises UnsupportedError for a word that is no device, on whatever machine."""
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UnsupportedError(f"device {name!r}", "auto, cpu, cuda or mps", "choose one of them")


def _absent(name: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"device {name!r}: this machine, with PyTorch {torch.__version__}, has no {what}",
        "a device that is there",
        "take --device cpu, or install a PyTorch built for the device",
    )

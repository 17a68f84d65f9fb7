"""How a block's linear layers are multiplied: plainly, or on a CPU by oneDNN with packed weights, in bf16 and int8 too.

A `Product` stands for one layer while a block runs and is then dropped: packing takes less than a hundredth of the
block's time, and the weights are in memory only once. Rows of x are tokens, k channels in, m channels out.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.errors import UnsupportedError

Precision = Literal["float32", "bf16", "int8"]
Activation = Literal["none", "relu", "gelu"]

X86 = ("x86_64", "AMD64")  # where packed products were measured to be faster
UNSIGNED_PEAK, SIGNED_PEAK = 255, 127  # of bytes; VNNI multiplies unsigned ones (activations) by signed (weights)


class Lower:
    """A module whose products may use a lower precision where no gradient is kept."""

    precision: Precision = "float32"


class Product(Protocol):
    """One linear layer, ready to be multiplied."""

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """(..., k) -> (..., m): activation(x W^T + b)."""
        ...

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., k), (..., m) -> (..., m): residual + x W^T + b, in the residual's precision."""
        ...


def product(linear: nn.Linear, rows: int, x: Tensor, precision: Precision = "float32") -> Product:
    """The fastest way to multiply `linear` by tensors like `x`, about `rows` tokens at a time.

    Plain where gradients are kept, under autocast, for float64, and off the CPU (a GPU model is cast as a whole): there
    `precision` is ignored.
    """
    training = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    if training or x.dtype != torch.float32 or not packs(x.device):
        return PlainProduct(linear)
    if precision == "int8":
        return Int8Product(linear, rows)
    return PackedProduct(linear, rows, torch.bfloat16 if precision == "bf16" else torch.float32)


def packs(device: torch.device) -> bool:
    """Whether this machine supports packed products."""
    return device.type == "cpu" and platform.machine() in X86 and torch.backends.mkldnn.is_available()


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """The precisions that `device` has instructions for: the lower ones are then faster, not only smaller.

    A processor's flags alone do not tell: an operating system, a virtual machine or ONEDNN_MAX_CPU_ISA may keep oneDNN
    from using what is there.
    """
    found: list[Precision] = ["float32"]
    wide = packs(device) and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN's own word: AVX-512, or better
    if device.type != "cpu" or (wide and torch.cpu._is_avx512_bf16_supported()):
        found.append("bf16")
    if wide and torch.cpu._is_vnni_supported() and _exact_bytes():
        found.append("int8")
    return tuple(found)


@cache
def _exact_bytes() -> bool:
    """Whether oneDNN sums products of bytes in 32 bits; without VNNI it sums pairs in 16, and large ones saturate."""
    with torch.inference_mode():
        layer = nn.Linear(64, 16, bias=False)
        layer.weight.fill_(1)
        return bool((Int8Product(layer, 1)(torch.ones(1, 64)) == 64).all())


def require_precision(precision: str, device: torch.device) -> None:
    """Raises UnsupportedError for an unknown precision, and for one that `device` lacks."""
    known = precisions(device)
    if precision not in get_args(Precision):
        raise UnsupportedError(f"precision {precision!r}", ", ".join(get_args(Precision)), "choose one of them")
    if precision not in known:
        raise UnsupportedError(
            f"precision {precision} on this {device.type.upper()}, which has no instructions for it",
            f"one of {', '.join(known)}",
            "leave --precision out",
        )


class PlainProduct:
    """torch's own linear; gradients flow."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        out = F.linear(x, self.linear.weight, self.linear.bias)
        if activation == "none":
            return out
        return F.gelu(out) if activation == "gelu" else F.relu(out)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self(x)


class PackedProduct:
    """oneDNN's product with its blocked weight layout; activation and residual are applied while still in cache.

    In bf16 the operands have 8 bits of mantissa and the sums 24.
    """

    def __init__(self, linear: nn.Linear, rows: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), rows)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        kind = "none" if activation == "gelu" else ""  # of gelu: the exact one
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, activation, [], kind)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        if residual.dtype != self.dtype:
            return residual + self(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


class Int8Product:
    """8-bit operands, 32-bit sums: weights scaled by the largest of each row, activations by their current range.

    The result is bf16.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        weight = linear.weight.detach()
        self.scale = (weight.abs().amax(1) / SIGNED_PEAK).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, [rows, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        low, high = (float(end) for end in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)  # 0 is one of the 256 steps
        step = max(high - low, torch.finfo(torch.float32).tiny) / UNSIGNED_PEAK
        zero = round(-low / step)
        # in float32: from 128 on bf16 has no halves, and every byte would be rounded up
        bytes_ = (x.float() / step).add_(zero + 0.5).clamp_(0, UNSIGNED_PEAK).to(torch.uint8)
        kind = "none" if activation == "gelu" else ""
        return torch.ops.onednn.qlinear_pointwise(
            bytes_,
            step,
            zero,
            self.weight,
            self.scale,
            self.zeros,
            self.bias,
            1.0,
            0,
            torch.bfloat16,
            activation,
            [],
            kind,
        )

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self(x)

"""A network from its card and its tensors, without initialising what is replaced at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from voxsam.errors import CheckpointError, UnsupportedError
from voxsam.extras import load_systems, needs_extra
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable

# Networks by the `system` of their card; voxsam.lab.systems adds those that VoxSAM is compared with.
BUILDERS: dict[str, Callable[[Card], Promptable]] = {"voxsam": VoxSAMNetwork}


class _Unfilled(TorchFunctionMode):
    """Leaves parameters unfilled: their memory is reserved, and never touched before the file's tensors replace it.

    The meta device would do the same to the buffers that are computed, not stored (tables of positions and of taps).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **kwargs)


def assemble(card: Card, tensors: Mapping[str, Tensor], origin: str) -> Promptable:
    """The network of `card` on the CPU, in eval mode, whose parameters are `tensors` themselves, not copies.

    Tensors of lower precision become float32. Raises CheckpointError if names or shapes do not fit the card; `origin`
    says in its message where the tensors are from.
    """
    if card.system not in BUILDERS:
        load_systems()
    if card.system not in BUILDERS:
        raise UnsupportedError(
            f"{origin}: a model of the system {card.system}",
            f"one of {', '.join(BUILDERS)}",
            "install what the model was made with",
        )
    try:
        with needs_extra("lab", f"a model of the system {card.system}"), _Unfilled():
            network = BUILDERS[card.system](card)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(
            f"{origin}: no network has its configuration ({error})", "sizes that fit together", "get the file again"
        ) from error
    check_tensors(network, tensors, origin)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval()


def check_tensors(network: Promptable, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises CheckpointError, naming the first, if `tensors` lack one of the network's, or one is unknown or unfit.

    Unfit is another shape, whole numbers, or a number that is NaN or infinite.
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    remedy = "check that the file is whole and was made for this configuration"
    size = f"the {len(wanted)} tensors of a {network.config.size} network"
    if missing:
        raise CheckpointError(f"{origin} lacks the tensor {_first(missing)}", size, remedy)
    if unexpected:
        raise CheckpointError(f"{origin} has a tensor that is not known, {_first(unexpected)}", size, remedy)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{origin}: the tensor {name} has shape {_by(tensor.shape)}", _by(wanted[name].shape), remedy
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{origin}: the tensor {name} holds {tensor.dtype}", "floating-point numbers", remedy)
        # The least and the greatest value carry a NaN on, and no copy of the tensor is made for them.
        if tensor.numel() and not all(map(math.isfinite, map(float, torch.aminmax(tensor)))):
            raise CheckpointError(
                f"{origin}: the tensor {name} has NaN or infinite numbers", "finite numbers", "get the file again"
            )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "() (one number)"

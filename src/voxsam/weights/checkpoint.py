"""Model files: one .safetensors file holds the tensors and, as JSON metadata, the Card. Never a pickle.

A *delta* holds only the tuned tensors. Its card names the base by the hash of the frozen tensors: any VoxSAM file with
the same frozen tensors will do, so every model made from one SAM file can be the base of every other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from voxsam.errors import CheckpointError, InputError, UnsupportedError
from voxsam.extras import load_systems, needs_extra
from voxsam.kernels import choose_device, install, keep_float32
from voxsam.kernels.linear import Precision, require_precision
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable
from voxsam.network.tuning import frozen_sha256, is_tuned
from voxsam.weights.file import METADATA_KEY, new_file, read_card, read_model
from voxsam.weights.registry import MODELS, PACKAGED_FOLDER, find_model, models_folder

HASH_SHOWN = 16  # digits of a hash in a message
MAX_AXES = 8  # whose lengths are shown in a message
UNSTORED_NUMBERS = 1 << 26  # that a network may create besides its stored tensors: tables of positions, say
# Networks by the `system` of their card; voxsam.lab.systems adds those that VoxSAM is compared with.
BUILDERS: dict[str, Callable[[Card], Promptable]] = {"voxsam": VoxSAMNetwork}


def save_model(network: Promptable, path: Path, *, delta_base: Path | None = None) -> None:
    """Write the network and its card to `path`, whole or not at all.

    With `delta_base`, the model file that the network was fine-tuned from, only the tuned tensors are written. Raises
    FileError if `path` cannot be written, CheckpointError if the frozen tensors are not those of `delta_base`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    frozen = frozen_sha256(tensors)
    update: dict[str, str | None] = {"frozen_sha256": frozen, "delta_of": None, "base_name": None}
    if delta_base is not None:
        base, base_tensors = read_model(Path(delta_base))
        if (base.delta_of or frozen_sha256(base_tensors)) != frozen:
            raise CheckpointError(
                f"the frozen tensors of the network are not those of {delta_base}",
                "the model file that the network was fine-tuned from",
                "give that file, or save the whole model",
            )
        update |= {"delta_of": frozen, "base_name": base.base_name or base.name}
        tensors = {name: tensor for name, tensor in tensors.items() if is_tuned(name)}
    card = network.card.model_copy(update=update)
    with new_file(Path(path)) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: card.model_dump_json()})


def average(sources: Sequence[str | Path], out: Path, *, half: bool = False) -> Card:
    """Write the mean of the weights of models that share an architecture; with `half`, in half precision.

    The card is that of the last model and lists the training cases of all; of several models, calibration and scores
    are left out, as they are those of other weights. Returns the card. Raises CheckpointError for models whose tensors
    differ in name or shape, UnsupportedError for several models with classes: they are fitted to one model.
    """
    networks = [read_network(source) for source in sources]
    states = [network.state_dict() for network in networks]
    for source, state in zip(sources, states, strict=True):
        for name in dict.fromkeys((*states[-1], *state)):
            shapes = [tuple(one[name].shape) if name in one else "none" for one in (state, states[-1])]
            if shapes[0] != shapes[1]:
                given = f"{source}, whose tensor {name} has shape {shapes[0]}; {sources[-1]}'s has {shapes[1]}"
                raise CheckpointError(given, "models of one architecture", "average runs of one recipe")
    card = networks[-1].card
    if len(networks) > 1:
        if any(network.card.classes for network in networks):
            raise UnsupportedError("the mean of models with classes", "models without", "choose one of them")
        card = card.model_copy(update={"calibration": None, "scores": {}})
        for network in networks:
            card = card.having_seen(network.card.seen)
    stored = torch.float16 if half else torch.float32
    tensors = {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(stored)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[-1].items()
    }
    update: dict[str, Any] = {"frozen_sha256": frozen_sha256(tensors), "delta_of": None, "base_name": None}
    card = card.model_copy(update=update)
    with new_file(Path(out)) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: card.model_dump_json()})
    return card


def load_model(source: str | Path, device: str = "auto", precision: Precision = "float32") -> Promptable:
    """Load the network of a model file, or of a named model, in eval mode on `device` (auto, cpu, cuda or mps).

    `precision` "bf16" or "int8" encodes faster, with a small error, where the machine has instructions for it;
    "float32" means no TF32 on a GPU (`keep_float32`). The base of a delta is looked for beside it, in the models folder
    and among the packaged models. Raises FileError, CheckpointError or UnsupportedError with what to do.
    """
    target = choose_device(device)
    require_precision(precision, target)
    keep_float32(target)
    network = read_network(source).to(target)
    install(network, precision)
    return network


def read_network(source: str | Path) -> Promptable:
    """Like `load_model`, but on the CPU and without the faster kernels: the bare network, plain torch throughout."""
    path = find_model(source)
    card, tensors = read_model(path)
    if card.delta_of is not None:
        tensors = {**_frozen_of_base(card, path), **tensors}
    return assemble(card, tensors, str(path))


def _frozen_of_base(card: Card, delta: Path) -> dict[str, Tensor]:
    """The frozen tensors that `delta` needs, from the first file that has them."""
    folders = [delta.absolute().parent, models_folder(), PACKAGED_FOLDER]
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        tensors = _frozen_with_hash(file, card.delta_of)
        if tensors is not None:
            return tensors
    name, remedy = card.base_name, f"copy the file of {card.base_name} there"
    if name in MODELS and MODELS[name].kind == "sam":
        remedy = (
            f"run `voxsam weights fetch {name}`, then `voxsam weights import {folders[1] / MODELS[name].file}"
            f" --kind sam --profile kits -o {folders[1] / name}.safetensors`"
        )
    raise CheckpointError(
        f"{delta} holds the tuned tensors only, and its base {name}"
        f" (frozen tensors {str(card.delta_of)[:HASH_SHOWN]}...) was not found",
        f"a VoxSAM file with these tensors in {folders[0]} or {folders[1]}",
        remedy,
    )


def _frozen_with_hash(file: Path, wanted: str | None) -> dict[str, Tensor] | None:
    """The frozen tensors of `file` if they have the hash `wanted`; the card's word is checked."""
    try:
        card = read_card(file)
        if card.delta_of is not None or card.frozen_sha256 not in (None, wanted):
            return None
        tensors = {name: tensor for name, tensor in read_model(file)[1].items() if not is_tuned(name)}
    except InputError:
        return None  # whatever else is in the folder is no base
    return tensors if frozen_sha256(tensors) == wanted else None


# A network from its card and its tensors


class _Unfilled(TorchFunctionMode):
    """Leaves parameters uninitialised: their memory is reserved, but not touched before the file's tensors replace it.

    Raises MemoryError once more than `most` numbers are asked for. The meta device would reserve nothing at all, but it
    leaves buffers that are computed rather than stored (tables of positions and of taps) without values, and its
    arithmetic imports torch._dynamo, which takes seconds.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        made = (torch.empty if func is torch.randn else func)(*args, **kwargs)
        if func in (torch.empty, torch.randn, torch.zeros, torch.ones, torch.full):
            self.left -= made.numel()
            if self.left < 0:
                raise MemoryError("it asks for more numbers than the file holds")
        return made


def assemble(card: Card, tensors: Mapping[str, Tensor], origin: str) -> Promptable:
    """The network of `card` on the CPU, in eval mode, with `tensors` themselves, not copies, as its parameters.

    Tensors of lower precision become float32. Raises UnsupportedError for an unknown system, CheckpointError if names
    or shapes do not fit the card; `origin` says in messages where the tensors are from.
    """
    if card.system not in BUILDERS:
        load_systems()
    if card.system not in BUILDERS:
        raise UnsupportedError(
            f"{origin}: a model of the system {card.system}",
            f"one of {', '.join(BUILDERS)}",
            "install what the model was made with",
        )
    most = UNSTORED_NUMBERS + 2 * sum(tensor.numel() for tensor in tensors.values())  # a few are computed from two
    try:
        with needs_extra("lab", f"a model of the system {card.system}"), _Unfilled(most):
            network = BUILDERS[card.system](card)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(
            f"{origin}: no network has its configuration ({error})", "sizes that fit together", "get the file again"
        ) from error
    check_tensors(network, tensors, origin)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval()


def check_tensors(network: Promptable, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises CheckpointError, naming the first, if a tensor of the network is missing, or one is unknown or unfit.

    Unfit are another shape, a type that is not floating point, and NaN or infinite numbers.
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
        # The minimum and maximum propagate a NaN, and need no copy of the tensor.
        if tensor.numel() and not all(map(math.isfinite, map(float, torch.aminmax(tensor)))):
            raise CheckpointError(
                f"{origin}: the tensor {name} has NaN or infinite numbers", "finite numbers", "get the file again"
            )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "() (one number)" if len(shape) <= MAX_AXES else f"{len(shape)} axes"

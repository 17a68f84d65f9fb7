"""Model files: one .safetensors file holds the tensors and, as JSON metadata, the Card. Never a pickle.

A *delta* holds the tuned tensors only. Its card names the base by the hash of the frozen tensors: any VoxSAM file with
the same frozen tensors serves, so every model made from one SAM file can be the base of every other.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from voxsam.errors import CheckpointError, InputError
from voxsam.kernels import install
from voxsam.kernels.device import choose_device, keep_float32
from voxsam.kernels.linear import Precision, require_precision
from voxsam.network.card import Card
from voxsam.network.promptable import Promptable
from voxsam.network.tuning import frozen_sha256, is_tuned
from voxsam.weights.assemble import assemble
from voxsam.weights.files import new_file
from voxsam.weights.model_file import METADATA_KEY, read_card, read_model
from voxsam.weights.registry import MODELS, PACKAGED_FOLDER, find_model, models_folder

HASH_SHOWN = 16  # digits of a hash in a message


def save_model(network: Promptable, path: Path, *, delta_base: Path | None = None) -> None:
    """Write the network and its card to `path`, whole or not at all.

    With `delta_base`, the model file that the network was fine-tuned from, only the tuned tensors are written. Raises
    FileError if `path` cannot be written, CheckpointError if the frozen tensors are not those of `delta_base`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    frozen = frozen_sha256(tensors)
    update: dict[str, str | None] = {"frozen_sha256": frozen, "delta_of": None, "base_name": None}
    if delta_base is not None:
        update |= {"delta_of": frozen, "base_name": _checked_base_name(Path(delta_base), frozen)}
        tensors = {name: tensor for name, tensor in tensors.items() if is_tuned(name)}
    card = network.card.model_copy(update=update)
    with new_file(Path(path)) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: card.model_dump_json()})


def load_model(source: str | Path, device: str = "auto", precision: Precision = "float32") -> Promptable:
    """The network of a model file, or of a model's name, in eval mode on `device` (auto, cpu, cuda or mps).

    `precision` "bf16" or "int8" encodes faster, with a small error, where the machine has instructions for it;
    "float32" is no TF32 on a GPU (`keep_float32`). Of a delta, the base is searched beside it, in the models folder and
    among the packaged models. Raises FileError, CheckpointError or UnsupportedError with what to do.
    """
    target = choose_device(device)
    require_precision(precision, target)
    keep_float32(target)
    path = find_model(source)
    card, tensors = read_model(path)
    if card.delta_of is not None:
        tensors = {**_frozen_of_base(card, path), **tensors}
    network = assemble(card, tensors, str(path)).to(target)
    install(network, precision)
    return network


def _checked_base_name(base: Path, frozen: str) -> str:
    """The name of the model in `base`, whose frozen tensors must have the hash `frozen`."""
    card, tensors = read_model(base)
    if (card.delta_of or frozen_sha256(tensors)) != frozen:
        raise CheckpointError(
            f"the frozen tensors of the network are not those of {base}",
            "the model file that the network was fine-tuned from",
            "give that file, or save the whole model",
        )
    return card.base_name or card.name


def _frozen_of_base(card: Card, delta: Path) -> dict[str, Tensor]:
    """The frozen tensors that `delta` needs, from the first file that has them."""
    folders = [delta.absolute().parent, models_folder(), PACKAGED_FOLDER]
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        tensors = _frozen_with_hash(file, card.delta_of)
        if tensors is not None:
            return tensors
    raise CheckpointError(
        f"{delta} holds the tuned tensors only, and its base {card.base_name}"
        f" (frozen tensors {str(card.delta_of)[:HASH_SHOWN]}...) was not found",
        f"a VoxSAM file with these tensors in {folders[0]} or {folders[1]}",
        _how_to_get(card, folders[1]),
    )


def _frozen_with_hash(file: Path, wanted: str | None) -> dict[str, Tensor] | None:
    """The frozen tensors of `file` if they have the hash `wanted`; the hash that a card states is checked."""
    try:
        card = read_card(file)
        if card.delta_of is not None or card.frozen_sha256 not in (None, wanted):
            return None
        tensors = {name: tensor for name, tensor in read_model(file)[1].items() if not is_tuned(name)}
    except InputError:
        return None  # whatever else lies in the folder is no base
    return tensors if frozen_sha256(tensors) == wanted else None


def _how_to_get(card: Card, folder: Path) -> str:
    name = card.base_name
    if name in MODELS and MODELS[name].kind == "sam":
        return (
            f"run `voxsam weights fetch {name}`, then `voxsam weights import {folder / MODELS[name].file} --kind sam"
            f" --profile kits -o {folder / name}.safetensors`"
        )
    return f"copy the file of {name} there"

"""The network that a recipe starts with: newly initialised, or with the tensors of a trained model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.errors import CheckpointError, InputError, UnsupportedError
from voxsam.kernels import install
from voxsam.lab.training.recipe import Recipe
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import LEVELS
from voxsam.network.tuning import freeze
from voxsam.weights.checkpoint import BUILDERS, load_model
from voxsam.weights.import_checkpoints import from_sam, is_sam, load_sam, read_sam
from voxsam.weights.registry import find_model, sam_file

PROMPTS = "prompt_encoder"  # prefix of these tensors at every level; absent from an automatic model
NECKS = "image_encoder.necks."
OPTIONAL = "prompt_encoder.marks."  # tensors of an extension: absent from a start model without it
SLICES, DEPTH, FUSE = (
    "image_encoder.patch_embedding.slice_weight",
    "image_encoder.depth_positions",
    "mask_decoder.fuse.weight",
)
MAPS = "refinement.at2.enter.weight"


def make_network(recipe: Recipe) -> Promptable:
    """Make the network that the recipe starts with.

    Raises InputError for sizes that do not fit together, UnsupportedError for an unknown system or unsupported keys.
    """
    if recipe.system not in BUILDERS:
        raise UnsupportedError(f"system {recipe.system}", f"one of {', '.join(BUILDERS)}", "change it in the recipe")
    card = Card(
        name=recipe.name,
        system=recipe.system,
        options=recipe.options,
        config=recipe.model,
        preprocessing=recipe.preprocessing,
        description=recipe.description,
        conditioning=None if recipe.automatic else recipe.conditioning,
        mirrored=recipe.mirrored and not recipe.automatic,
        automatic=recipe.automatic,
        recipe=recipe.model_dump(mode="json", exclude={"description"}),
    )
    try:
        network = BUILDERS[recipe.system](card)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"no network has the recipe's sizes ({reason})", "sizes that fit together", "correct `model`"
        ) from error
    if not (network.clicks or recipe.automatic):
        given = f"prompts: {recipe.prompts} for the system {recipe.system}, which takes no clicks"
        raise UnsupportedError(given, "prompts: none", "change `prompts` in the recipe")
    if recipe.start_from is not None and recipe.start_part == "sam":
        start_sam(network, recipe.start_from)
    elif recipe.start_from is not None:
        start(network, recipe.start_from)
    install(network)  # training uses the fast kernels, too: their gradients are tested
    if isinstance(network, VoxSAMNetwork):
        network.image_encoder.recompute = recipe.recompute
        return freeze(network) if recipe.tune == "adapters" else network
    if recipe.recompute or recipe.tune == "adapters":
        raise UnsupportedError(f"recompute or adapters of {recipe.system}", "both off", "change them in the recipe")
    return network


def start(network: Promptable, model: str) -> None:
    """Load the tensors of a trained model; tensors that an extension adds keep their initial values.

    For another crop size the table of depth positions is interpolated. Additional image channels start so that the
    prediction is the model's if all show its image. An automatic network drops the prompt encoder; one with clicks that
    starts from an automatic model gets a new one. Raises CheckpointError for a model of other sizes.
    """
    own, before = network.state_dict(), load_model(model, "cpu")
    tensors = {
        name: _fitted(name, tensor, own[name], network.config.channels) if name in own else tensor
        for name, tensor in before.state_dict().items()
        if not (network.card.automatic and name.startswith(PROMPTS))
    }
    unfit = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    optional = PROMPTS if before.card.automatic else OPTIONAL
    missing = [name for name in own if name not in tensors and not name.startswith(optional)]
    if unfit or missing:
        raise CheckpointError(
            f"{model} does not fit the recipe's network ({(unfit + missing)[0]})",
            "a model of the same sizes",
            "change `model` or `start_from` in the recipe",
        )
    network.load_state_dict(tensors, strict=False)
    network.card = network.card.having_seen(before.card.seen)


def start_sam(network: Promptable, source: str) -> None:
    """Load SAM's tensors from SAM's own file or from a model made from it; everything added is newly initialised.

    So networks with different adapters start alike, and those on slices with what the ones on volumes were made from.
    The 2D neck is newly initialised if the model has none. Raises CheckpointError for a network of other sizes,
    UnsupportedError for one without SAM's tensors.
    """
    if not isinstance(network, VoxSAMNetwork):
        raise UnsupportedError(f"start_part: sam for the system {network.card.system}", "all", "leave it out")
    path = sam_file(source) or find_model(source)
    if is_sam(path):
        load_sam(network, read_sam(path), str(path))
        return
    slices, own = network.config.tokens == "slices", network.state_dict()
    wanted = {name: tensor.shape for name, tensor in own.items() if from_sam(name, slices)}
    before = load_model(path, "cpu")
    given = before.state_dict()
    if before.config.tokens != network.config.tokens:  # different necks that share some tensor names
        given = {name: tensor for name, tensor in given.items() if not name.startswith(NECKS)}
    tensors = {name: given[name] for name, shape in wanted.items() if name in given and given[name].shape == shape}
    missing = [name for name in wanted if name not in tensors and not name.startswith(NECKS)]
    if missing:
        raise CheckpointError(
            f"{source} does not fit the recipe's network ({missing[0]})",
            "SAM's file, or a model of the same sizes",
            "change `model` or `start_from` in the recipe",
        )
    network.load_state_dict(tensors, strict=False)
    network.card = network.card.having_seen(before.card.seen)


def _fitted(name: str, tensor: Tensor, own: Tensor, channels: int) -> Tensor:
    """The tensor, fitted to another number of tokens, image channels or click maps where it depends on them."""
    shape = own.shape
    if tensor.shape == shape:
        return tensor
    if name == MAPS and tensor.shape[2:] == shape[2:] and tensor.shape[1] < shape[1]:
        return torch.cat([tensor, own[:, tensor.shape[1] :]], 1)  # additional maps come last
    if name == DEPTH and tensor.shape[1:] == shape[1:]:
        return F.interpolate(tensor.T[None], size=shape[0], mode="linear")[0].T
    if name == SLICES and shape[1] == channels * tensor.shape[1]:
        return tensor.repeat(1, channels) / channels
    if name == FUSE and tensor.shape[1] == LEVELS * len(tensor) + 1 and shape[1] == tensor.shape[1] + channels - 1:
        levels, crop = tensor[:, :-1], tensor[:, -1:]
        return torch.cat([levels, crop.repeat(1, channels, 1, 1, 1) / channels], 1)
    return tensor

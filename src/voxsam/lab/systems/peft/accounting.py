"""What a comparison of adapters counts: the paper's number of tuned parameters, and all that is really trained."""

from __future__ import annotations

from typing import NamedTuple

import torch

from voxsam.errors import UnsupportedError
from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.start import make_network
from voxsam.network.network import VoxSAMNetwork


class Tuned(NamedTuple):
    """Numbers that training changes."""

    paper: int  # in the image encoder, as Table 2 counts them
    trained: int  # everywhere


def tuned(recipe: Recipe) -> Tuned:
    """Both numbers of the network that a recipe trains; nothing is computed and no file is read.

    The paper counts the image encoder. Of adapters on SAM's 2D encoder it leaves out the neck, though it is trained;
    of its own it counts the necks, which are more than half of its 15.21 M, and of full fine-tuning everything. Raises
    UnsupportedError for a system that is not VoxSAM's own network.
    """
    with torch.device("meta"):
        network = make_network(recipe.model_copy(update={"start_from": None}))
    if not isinstance(network, VoxSAMNetwork):
        raise UnsupportedError(f"the tuned encoder of {recipe.system}", "voxsam", "count its parameters")
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    left_out = "image_encoder.necks." if recipe.tune == "adapters" and recipe.model.tokens == "slices" else "-"
    counted = (n for name, n in sizes.items() if name.startswith("image_encoder.") and not name.startswith(left_out))
    return Tuned(sum(counted), sum(sizes.values()))

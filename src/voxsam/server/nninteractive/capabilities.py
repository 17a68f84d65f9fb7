"""What the loaded model can do, in the protocol's words; clients switch their tools on and off by it."""

from __future__ import annotations

from typing import Any

import voxsam
from voxsam.errors import UnsupportedError
from voxsam.network.card import Card

PROTOCOL_VERSION = "2.6.0"  # of the nnInteractive package whose wire protocol this is
PROMPTS = {"points": "positive", "bbox2d": "box", "bbox3d": "box", "lasso": "positive", "scribble": "scribble"}
NO_LICENCE = "!!MISSING!!"  # the protocol's word for it
SCRIBBLE_VOXELS = 2  # thickness that is asked for: a scribble becomes points, so a thin one suffices


def capabilities(card: Card) -> dict[str, Any]:
    """The answer to /capabilities, every key that clients read, and what VoxSAM adds: model, prompts, server.

    A network of nnInteractive takes interactions as input channels; VoxSAM has none, so those entries only keep
    clients happy that show or count them.
    """
    prompts = card.prompts
    return {
        "supported_interactions": {kind: prompt in prompts for kind, prompt in PROMPTS.items()},
        "supports_initial_label": "hint" in prompts,
        "supports_zero_shot_label_refinement": "hint" in prompts,
        "supports_undo": True,
        "do_autozoom": True,
        "preferred_scribble_thickness": [SCRIBBLE_VOXELS] * 3,
        "interaction_decay": 1.0,  # old clicks count as much as new ones
        "patch_size": [card.config.crop] * 3,
        "channel_mapping": {"prev_seg": 0, "bbox2d": [1, 2], "bbox3d": [1, 2], "lasso": [1, 2], "points": [3, 4]}
        | {"scribble": [5, 6]},
        "num_interaction_channels": 7,
        "inference_session_version": PROTOCOL_VERSION,
        "license": card.description.get("licence", NO_LICENCE),
        "model": card.name,
        "prompts": list(prompts),
        "server": f"VoxSAM {voxsam.__version__}",
    }


def require(card: Card, prompt: str, positive: bool = True) -> None:
    """Raises UnsupportedError if the model does not take a prompt ("positive", "box", "scribble", "hint"), or none
    that is negative."""
    needed = prompt if positive else "negative"
    if needed not in card.prompts:
        raise UnsupportedError(
            f"a {needed} prompt for the model {card.name}",
            f"one of {', '.join(card.prompts)}" if card.prompts else "no prompt: the model segments without clicks",
            "use what /capabilities lists, or another model",
        )

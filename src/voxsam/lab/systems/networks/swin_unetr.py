"""Swin-UNETR (Hatamizadeh et al., BrainLes 2021): MONAI's, with its self-supervised weights if their file is given."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from voxsam.errors import CheckpointError
from voxsam.lab.systems.networks.parts import CLASSES, Options, Size, cube, require_crop, require_library
from voxsam.weights.pickles import read_pickle

STEP = 32  # voxels of the crop for each token of the deepest map
EXPECTED = "MONAI's model_swinvit.pt: a self-supervised Swin transformer"


class SwinUNETROptions(Options):
    """The defaults are the original's: 62,186,708 parameters for any crop."""

    once: ClassVar[tuple[str, ...]] = ("weights",)

    width: PositiveInt = Field(48, multiple_of=12, description="channels of the first stage; they double at each stage")
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (2, 2, 2, 2), description="blocks in each of the four stages"
    )
    heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (3, 6, 12, 24), description="heads of the attention in each stage"
    )
    window: PositiveInt = Field(7, description="side of the attention windows, tokens")
    recompute: bool = Field(False, description="keep the inputs of blocks only: less memory, more time")
    weights: str | None = Field(None, description="file of self-supervised weights to begin with: model_swinvit.pt")


def build(size: Size, channels: int, options: SwinUNETROptions) -> nn.Module:
    """Swin-UNETR. Raises UnsupportedError for a crop whose sides are no multiples of 32, or all 32, or without einops;
    FileError or CheckpointError for weights that are not of its transformer.
    """
    from monai.networks.nets import SwinUNETR

    require_crop(size, cube(STEP), "swin-unetr", several=True)
    require_library("einops", "swin-unetr", "pip install einops")
    network = SwinUNETR(
        in_channels=channels,
        out_channels=CLASSES,
        feature_size=options.width,
        depths=options.depths,
        num_heads=options.heads,
        window_size=options.window,
        use_checkpoint=options.recompute,
    )
    if options.weights is not None:
        load_self_supervised(network.swinViT, Path(options.weights))
    return network


def load_self_supervised(transformer: nn.Module, path: Path) -> None:
    """Fill the transformer with the tensors of MONAI's file; those of the tasks it was trained by are left out.

    The file is a dictionary with "state_dict", whose names begin with "module." and whose MLPs are called fc1 and fc2.
    Raises FileError if it cannot be read, CheckpointError if it is of another kind or lacks a tensor of this size.
    """
    state = read_pickle(path, EXPECTED).get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no state_dict", EXPECTED, "give the file as it was downloaded")
    tensors = {}
    for name, own in transformer.named_parameters():
        theirs = "module." + name.replace("mlp.linear", "mlp.fc")
        tensor = state.get(theirs)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path} lacks the tensor {theirs}", EXPECTED, "give the file as it was downloaded")
        if tensor.shape != own.shape:
            given, expected = (" x ".join(map(str, shape)) for shape in (tensor.shape, own.shape))
            remedy = "leave width, depths, heads, window and the number of channels as they were trained"
            raise CheckpointError(f"{path}: {theirs} has shape {given}", expected, remedy)
        tensors[name] = tensor
    transformer.load_state_dict(tensors, strict=False)  # what is not among the parameters is computed


OPTIONS = SwinUNETROptions

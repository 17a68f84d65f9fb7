"""Small networks, and small checkpoints in the layouts of the released code, of SAM and of Hugging Face."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from voxsam.errors import CheckpointError
from voxsam.kernels import install
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import ModelConfig
from voxsam.network.tuning import is_tuned
from voxsam.preprocess import Preprocessing
from voxsam.weights.checkpoint import load_model, save_model
from voxsam.weights.file import METADATA_KEY

PREPROCESSING = Preprocessing(axes="SAR", spacing_mm=(3.0, 2.0, 1.5), clip=(-57, 175), mean=65.2, sd=32.7)
# All numbers differ, where the rules for sizes allow it, so that swapped axes do not fit. No named size has this width:
# the importers take it for vit_b only because the tests say so.
SMALL = ModelConfig(
    size="vit_b",
    width=24,
    depth=4,
    heads=3,
    mlp_ratio=2,
    adapter_width=10,
    crop=20,
    patch=16,
    window=2,
    position_grid=6,
    global_blocks=(1,),
    feature_width=16,
    head_width=7,
    queries=3,
    prompt_layers=2,
    prompt_heads=4,
    prompt_mlp=18,
)


def small_card(**changes: object) -> Card:
    """A card of the small network."""
    return Card(name="small", config=SMALL, preprocessing=PREPROCESSING).model_copy(update=changes)


def small_network(seed: int = 0, **changes: object) -> VoxSAMNetwork:
    """The small network with random values in every tensor."""
    torch.manual_seed(seed)
    network = VoxSAMNetwork(small_card(**changes))
    install(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network.eval()


def tuned_names(network: VoxSAMNetwork) -> list[str]:
    """The names of the tuned parameters, in the network's order."""
    return [name for name, _ in network.named_parameters() if is_tuned(name)]


def answer(network: VoxSAMNetwork) -> Tensor:
    """Logits for one crop and click, with the kernels: they depend on every tensor and on every computed table."""
    install(network)
    crop = torch.sin(torch.arange(20.0**3)).reshape(1, 1, 20, 20, 20)
    with torch.no_grad():
        return network(crop, torch.tensor([[[4.0, 9.0, 15.0]]]))


def saved(folder: Path, network: VoxSAMNetwork | None = None, name: str = "model.safetensors") -> Path:
    """A model file of `network`, or of the small one."""
    path = folder / name
    save_model(network or small_network(), path)
    return path


def rewritten(path: Path, tensors: dict[str, torch.Tensor | None] | None = None, **fields: object) -> Path:
    """The model file with some tensors (None: left out) and some fields of its card replaced."""
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()[METADATA_KEY]) | fields
        state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    state = {name: tensor for name, tensor in (state | (tensors or {})).items() if tensor is not None}
    save_file(state, path, {METADATA_KEY: json.dumps(card)})
    return path


def refusal(source: str | Path, error: type[Exception] = CheckpointError, device: str = "cpu") -> str:
    """The one line in which load_model refuses `source`."""
    with pytest.raises(error) as caught:
        load_model(source, device)
    message = str(caught.value)
    assert "\n" not in message
    return message


def released_contents(config: ModelConfig = SMALL, seed: int = 0) -> dict[str, object]:
    """What the released code saves: three parts, with what it builds and never uses, and training state."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "epoch": 7,
        "best_val_loss": 0.375,
        "encoder_dict": _fill(_encoder(config), generator),
        "feature_dict": [_fill(_prompt(config), generator) for _ in range(4)],
        "decoder_dict": _fill(_decoder(config), generator),
        "encoder_opt": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 4e-4}]},
    }


def sam_contents(config: ModelConfig = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """A SAM file in Meta's naming: the 2D encoder, its neck, and the prompt encoder and mask decoder in short."""
    ours = ("slice_embed", "depth_embed", "adapter", "neck_3d", "rel_pos_d", ".lr", "attn_mask")
    encoder = {name: shape for name, shape in _encoder(config).items() if not any(word in name for word in ours)}
    shapes = {f"image_encoder.{name}": shape for name, shape in encoder.items()}
    shapes |= {"image_encoder.neck.0.weight": (16, config.width, 1, 1), "image_encoder.neck.1.bias": (16,)}
    shapes |= {"prompt_encoder.no_mask_embed.weight": (1, 16), "mask_decoder.iou_token.weight": (1, 16)}
    return _fill(shapes, torch.Generator().manual_seed(seed))


def hugging_face_name(name: str) -> str:
    """SamModel's name of a tensor of Meta's image encoder, as transformers names it."""
    name = name.replace("image_encoder.", "vision_encoder.").replace("patch_embed.proj", "patch_embed.projection")
    name = name.replace(".blocks.", ".layers.").replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")
    for old, new in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2")):
        name = name.replace(f"neck.{old}.", f"neck.{new}.")
    return name


def _fill(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _linear(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _encoder(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, c.position_grid, c.position_grid, c.width),
        "depth_embed": (1, c.token_grid, c.width),
        "patch_embed.proj.weight": (c.width, 3, c.patch, c.patch),
        "patch_embed.proj.bias": (c.width,),
        "slice_embed.weight": (c.width, 1, 1, 1, c.patch),
        "slice_embed.bias": (c.width,),
    }
    for i in range(c.depth):
        block = f"blocks.{i}"
        rows = 2 * c.position_grid - 1 if i in c.global_blocks else 27
        shapes |= _norm(f"{block}.norm1", c.width) | _norm(f"{block}.norm2", c.width)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (rows, c.width // c.heads) for axis in "hwd"}
        shapes |= {f"{block}.attn.lr": ()} | _linear(f"{block}.attn.qkv", c.width, 3 * c.width)
        shapes |= _linear(f"{block}.attn.proj", c.width, c.width)
        hidden = c.mlp_ratio * c.width
        shapes |= _linear(f"{block}.mlp.lin1", c.width, hidden) | _linear(f"{block}.mlp.lin2", hidden, c.width)
        shapes |= _linear(f"{block}.adapter.linear1", c.width, c.adapter_width)
        shapes |= _linear(f"{block}.adapter.linear2", c.adapter_width, c.width)
        shapes |= {f"{block}.adapter.conv.weight": (c.adapter_width, 1, 3, 3, 3)}
        shapes |= {f"{block}.adapter.conv.bias": (c.adapter_width,)}
        if i % 2 == 0:
            shapes[f"{block}.attn_mask"] = (27, 8, 8)
    for i in range(4):
        neck, f = f"neck_3d.{i}", c.feature_width
        shapes |= {f"{neck}.0.weight": (f, c.width, 1, 1, 1), f"{neck}.2.weight": (f, f, 3, 3, 3)}
        shapes |= _norm(f"{neck}.1", f) | _norm(f"{neck}.3", f)
    return shapes


def _prompt(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    f = c.feature_width
    shapes: dict[str, tuple[int, ...]] = {"positional_encoding_gaussian_matrix": (3, f // 2)}
    for i in range(c.prompt_layers):
        layer = f"transformer.layers.{i}"
        shapes[f"{layer}.global_query"] = (1, c.queries, f)
        widths = {"self_attn": f, "cross_attn_token_to_image": f // 2, "cross_attn_image_to_token": f // 2}
        for name, inner in widths.items():
            for letter in "qkv":
                shapes |= _linear(f"{layer}.{name}.{letter}_proj", f, inner)
            shapes |= _linear(f"{layer}.{name}.out_proj", inner, f)
        shapes |= _linear(f"{layer}.mlp.lin1", f, c.prompt_mlp) | _linear(f"{layer}.mlp.lin2", c.prompt_mlp, f)
        for number in (1, 2, 3, 4):
            shapes |= _norm(f"{layer}.norm{number}", f)
    return shapes


def _decoder(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    m = c.head_width
    shapes: dict[str, tuple[int, ...]] = {}
    for level in (2, 3, 4, 5):
        shapes[f"mlahead.head{level}.0.weight"] = (m, c.feature_width, 3, 3, 3)
        shapes[f"mlahead.head{level}.3.weight"] = (m, m, 3, 3, 3)
    return shapes | {"cls.0.weight": (m, 4 * m + 1, 3, 3, 3), "cls.3.weight": (2, m, 3, 3, 3)}


class Trap:
    """Pickled, it asks whoever unpickles it to make a folder at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)

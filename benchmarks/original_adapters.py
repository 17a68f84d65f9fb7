"""The compared adapters against their originals: one forward pass with the same weights, and the largest difference.

    python -m benchmarks.original_adapters st ~/st-adapter              # a clone of github.com/linziyi96/st-adapter
    python -m benchmarks.original_adapters med ~/Med-Tuning-Official    # github.com/jessie-chen99/Med-Tuning-Official
    python -m benchmarks.original_adapters samed ~/SAMed                # github.com/hitachinsk/SAMed
    python -m benchmarks.original_adapters masam ~/MA-SAM               # github.com/cchen-cc/MA-SAM

The clone's code is imported and run: read it first. Of ST-Adapter and Med-Tuning only the module is compared, of SAMed
and MA-SAM the whole image encoder of SAM with their adapters, slice by slice. All weights are random, including those
initialised to zero, and both see the same inputs in evaluation mode.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import voxsam.lab.systems  # noqa: F401
from voxsam.network.adapters import ADAPTERS, BlockHook
from voxsam.network.image_encoder import ImageEncoder
from voxsam.network.sizes import ModelConfig
from voxsam.weights.import_checkpoints import encoder_tensors, sam_name, translate_tensor

TOLERANCE = 1e-5  # of the largest value, in float32
DEPTH, SIDE = 6, 18  # tokens; two of SAM's windows of 14, padded
CONFIG = ModelConfig(
    size="small",
    width=32,
    depth=4,
    heads=2,
    adapter_width=384,
    tokens="slices",
    crop=SIDE * 16,
    stride=16,
    patch=16,
    position_grid=SIDE,
    global_blocks=(1, 3),
    feature_width=16,
)
Pair = tuple[Tensor, Tensor]  # our output and theirs

ST = {"fc1": "attention.down", "conv": "attention.conv", "fc2": "attention.up"}
MED = {
    r"dconv_3_(\d)": lambda m: f"near.{int(m[1]) - 1}",
    r"dconv_5_(\d)": lambda m: f"wide.{int(m[1]) - 1}",
    r"bn_3": "near.2",
    r"bn_5": "wide.2",
    r"down_projection": "down",
    r"up_projection": "up",
    r"attn_conv": "earlier",
    r"attn_11conv": "join",
    r"^conv\.": "mix.",
    r"frequen_": "frequency_",
}
IN_SAM = {
    r"ImageEncoderViT\.": "",
    r"FacTu": "shared_adapter.down",
    r"FacTv": "shared_adapter.up",
    r"\.Block\.": ".",
    r"\.attn\.Attention\.": ".attn.",
    r"attn\.qkv\.linear_a_([qv])": lambda m: f"adapter.{_LETTERS[m[1]]}_down",
    r"attn\.qkv\.linear_b_([qv])": lambda m: f"adapter.{_LETTERS[m[1]]}_up",
    r"attn\.qkv\.([qv])_FacTs": lambda m: f"adapter.{_LETTERS[m[1]]}",
    r"adapter_(linear_)?(down|up|conv|norm)(_2)?": lambda m: f"adapter.{'mlp' if m[3] else 'attention'}.{m[2]}",
    r"attn\.qkv\.qkv": "attn.qkv",
}
_LETTERS = {"q": "query", "v": "value"}


def compare_st(clone: Path) -> Pair:
    """Compare the module before attention; its class token is dropped, and its input cloned because it changes it."""
    _stand_in("configs", CLIP_VIT_B16_PATH="", CLIP_VIT_L14_PATH="", DWCONV3D_DISABLE_CUDNN=True)
    theirs = _from(clone, "models_adapter").Adapter(CONFIG.width, CONFIG.adapter_width, (3, 1, 1))
    hook = _hook("st", _scattered(theirs), ST)
    x = _tokens()
    flat = torch.cat([torch.zeros(DEPTH, 1, CONFIG.width), x.flatten(0, 1).flatten(1, 2)], 1)
    expected = theirs(flat.clone(), DEPTH)[:, 1:].reshape(x.shape)
    return hook.before_attention(x, "float32"), expected


def compare_med(clone: Path) -> Pair:
    """Compare two modules, one of them at the end of a stage, each with the mix carried over from an earlier stage."""
    train = types.SimpleNamespace(TRAIN=types.SimpleNamespace(input_size=DEPTH))
    _stand_in("configs")
    _stand_in("configs.config", get_cfg_defaults=lambda: train)
    module = _from(clone, "models.model_base.insert_blocks")
    x, handed = _tokens(), torch.randn(1, CONFIG.adapter_width, DEPTH, SIDE, SIDE)
    ratio = CONFIG.width / CONFIG.adapter_width
    found, expected = [], []
    for depth, ends in ((4, True), (8, False)):  # with four blocks each ends a stage, with eight the first does not
        theirs = module.MedAdapter_for_ViT(CONFIG.width, CONFIG.width, ratio, ends)
        hook = _hook("med", _scattered(theirs), MED, depth=depth, crop=DEPTH * 16)
        found += hook.after_block(x, handed, "float32")
        answer, attention = theirs(x.flatten(0, 1).flatten(1, 2), handed)
        expected += [answer.reshape(x.shape), attention]
    return torch.cat([one.flatten() for one in found]), torch.cat([one.flatten() for one in expected])


def compare_samed(clone: Path) -> Pair:
    """Compare SAM's image encoder with LoRA of rank 4."""
    _stand_in("segment_anything", build_sam=None, SamPredictor=None, sam_model_registry=None)
    module = _from(clone, "sam_lora_image_encoder")
    sam = _sam(clone)
    module.LoRA_Sam(sam, 4)
    return _encoders("samed", _scattered(sam.image_encoder), lambda images: sam.image_encoder(images))


def compare_masam(clone: Path) -> Pair:
    """Compare SAM's image encoder with factors of rank 32 and convolutions along depth."""
    clone = clone / "MA-SAM"
    _stand_in("segment_anything", build_sam=None, SamPredictor=None, sam_model_registry=None)
    module = _from(clone, "sam_fact_tt_image_encoder")
    sam = _sam(clone)
    module.Fact_tt_Sam(sam, 32)
    return _encoders("masam", _scattered(sam.image_encoder), lambda images: sam.image_encoder(images, DEPTH))


COMPARE: dict[str, Callable[[Path], Pair]] = {
    "st": compare_st,
    "med": compare_med,
    "samed": compare_samed,
    "masam": compare_masam,
}


def _sam(clone: Path) -> Any:
    """Their copy of SAM, with only a small image encoder."""
    module = importlib.import_module("segment_anything.modeling.image_encoder")
    sam = nn.Module()
    sam.image_encoder = module.ImageEncoderViT(
        img_size=SIDE * 16,
        embed_dim=CONFIG.width,
        depth=CONFIG.depth,
        num_heads=CONFIG.heads,
        out_chans=CONFIG.feature_width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=CONFIG.global_blocks,
    )
    return sam


def _encoders(adapter: str, theirs: nn.Module, answer: Callable[[Tensor], Tensor]) -> Pair:
    """The deepest level of our encoder, and their output for the same slices."""
    renamed = {_renamed(name, IN_SAM): tensor for name, tensor in theirs.state_dict().items()}
    added = {name: tensor for name, tensor in renamed.items() if "adapter" in name}
    sams = encoder_tensors({f"image_encoder.{n}": t for n, t in renamed.items() if n not in added}, adapter)
    state = {}
    for name, tensor in sams.items():
        new = sam_name(name, adapter)
        assert new is not None
        state[new.removeprefix("image_encoder.")] = translate_tensor(new, tensor)
    ours = ImageEncoder(CONFIG.model_copy(update={"adapter": adapter})).eval()
    ours.load_state_dict({**state, **added})
    slices = torch.randn(DEPTH, 1, SIDE * 16, SIDE * 16).cumsum(3) / 4
    crop = slices.repeat_interleave(16, 0).transpose(0, 1)[None]
    return ours(crop)[-1][0].transpose(0, 1), answer(slices.repeat(1, 3, 1, 1))


def _hook(adapter: str, theirs: nn.Module, names: dict[str, Any], **changes: object) -> BlockHook:
    """Our adapter of the first block with their weights."""
    hook = ADAPTERS[adapter].make(CONFIG.model_copy(update={"adapter": adapter, **changes}), 0, None)
    shapes = hook.state_dict()
    renamed = {_renamed(name, names): tensor for name, tensor in theirs.state_dict().items()}
    hook.load_state_dict({name: tensor.reshape(shapes[name].shape) for name, tensor in renamed.items()})
    return hook.eval()


def _renamed(name: str, names: dict[str, Any]) -> str:
    for pattern, new in names.items():
        name = re.sub(pattern, new, name)
    return name


def _scattered(network: nn.Module) -> nn.Module:
    """Fill every tensor with random numbers: initial zeros and ones could hide a mistake."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                spread = 0.2 if tensor.ndim < 2 or "pos" in name else tensor[0].numel() ** -0.5
                tensor.normal_(0, spread).add_(1 if "norm" in name and name.endswith("weight") else 0)
    return network.eval()


def _tokens() -> Tensor:
    return torch.randn(1, DEPTH, SIDE, SIDE, CONFIG.width)


def _from(clone: Path, name: str) -> Any:
    """Import a module of the clone with only torch and numpy of its requirements."""
    sys.path.insert(0, str(clone))
    _stand_in("icecream", ic=print)
    if "segment_anything" in sys.modules:  # its own __init__ would import torchvision
        sys.modules["segment_anything"].__path__ = [str(clone / "segment_anything")]
    return importlib.import_module(name)


def _stand_in(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", choices=COMPARE)
    parser.add_argument("clone", type=Path, help="folder of the original's repository")
    options = parser.parse_args()
    if not options.clone.is_dir():
        parser.error(f"{options.clone}: no such folder; expected a clone of the original; git clone it first")
    torch.manual_seed(0)
    with torch.inference_mode():
        found, expected = COMPARE[options.adapter](options.clone)
    largest, difference = float(expected.abs().max()), float((found - expected).abs().max())
    report = {"adapter": options.adapter, "largest value": largest, "largest difference": difference}
    print(json.dumps({**report, "agrees": difference < TOLERANCE * largest}, indent=2))


if __name__ == "__main__":
    main()

"""VoxSAM's networks against the originals: one forward pass with the same weights, and the largest difference.

    python -m benchmarks.originals transbts ~/TransBTS          # a clone of github.com/Wenxuan-1119/TransBTS
    python -m benchmarks.originals unetrpp ~/unetr_plus_plus    # github.com/Amshaker/unetr_plus_plus
    python -m benchmarks.originals nnformer ~/3DUX-Net          # github.com/MASILab/3DUX-Net: its copy of nnFormer
    python -m benchmarks.originals nnformer-first ~/nnFormer    # github.com/282857341/nnFormer
    python -m benchmarks.originals ux-net ~/3DUX-Net

The clone's code is imported and run: read it first. The original gets random weights, including those initialised to
zero; they are renamed by the tables below, and both see the same crop in evaluation mode. Where a fault of the original
is fixed here, the difference is reported with the option that keeps the fault, and with the fault fixed ("mended").
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.networks.layers import DropPath
from torch import Tensor, nn

from voxsam.lab.systems.networks import Size, network_kind, storable

TOLERANCE = 1e-4  # of logits, in float32


@dataclass(frozen=True)
class Original:
    """How to build an original network, and how to rename its tensors, by regular expressions applied in turn."""

    system: str
    make: Callable[[], nn.Module]  # once its clone is on the module path
    size: Size
    names: Mapping[str, str]
    channels: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)  # our options that give the same network
    fault: Mapping[str, Any] = field(default_factory=dict)  # our options that keep the original's fault
    unused: str = "$^"  # tensors that the original never uses


def _transbts() -> nn.Module:
    module = importlib.import_module("models.TransBTS.TransBTS_downsample8x_skipconnection")
    network = module.BTS(128, 8, 4, 2, 512, 8, 4, 4096, 0.1, 0.1)
    network.endconv = nn.Conv3d(16, 2, 1)  # the original always has four classes
    network.Softmax = nn.Identity()
    network.Unet.InitConv.dropout = 0.0  # a fault: it also drops channels in evaluation
    return network


def _unetrpp() -> nn.Module:
    module = importlib.import_module("unetr_pp.network_architecture.synapse.unetr_pp_synapse")
    depths, dims = [3, 3, 3, 3], [32, 64, 128, 256]
    return module.UNETR_PP(1, 2, [64, 128, 128], num_heads=4, depths=depths, dims=dims, do_ds=False)


def _nnformer_copy() -> nn.Module:
    module = importlib.import_module("networks.nnFormer.nnFormer_seg")
    return module.nnFormer([64, 160, 160], num_classes=2, patch_size=[2, 4, 4], window_size=[8, 8, 6, 4])


def _nnformer_first() -> nn.Module:
    module = importlib.import_module("nnformer.network_architecture.nnFormer_tumor")
    return module.nnFormer(
        [128, 128, 128], 96, 1, 2, num_heads=[6] * 4, patch_size=[4, 4, 4], window_size=[4, 4, 8, 4],
        deep_supervision=False,
    )  # fmt: skip


def _ux_net() -> nn.Module:
    return importlib.import_module("networks.UXNet_3D.network_backbone").UXNET(1, 2)


BLOCK = {r"\.conv1\.": ".0.", r"\.bn1\.": ".1.", r"\.conv2\.": ".3.", r"\.bn2\.": ".4."}
NNFORMER = {
    r"model_down\.patch_embed\.proj(\d)\.(conv|norm)(\d)": lambda m: _patch_layer(m[2], int(m[1]), int(m[3])),
    r"model_down\.patch_embed\.norm": "embed.norms.3",
    r"model_down\.norm(\d)": r"stages.\1.norm",
    r"model_down\.layers\.(\d)\.downsample\.reduction": r"stages.\1.down",
    r"model_down\.layers\.(\d)\.downsample\.norm": r"stages.\1.down_norm",
    r"model_down\.layers": "stages",
    r"decoder\.layers\.(\d)\.Upsample": r"decoder.\1",
    r"decoder\.layers\.(\d)\.blocks\.0": r"decoder.\1.ask",
    r"decoder\.layers\.(\d)\.blocks\.(\d)": lambda m: f"decoder.{m[1]}.blocks.{int(m[2]) - 1}",
    r"attn\.relative_position_bias_table": "positions.table",
    r"attn\.(q?kv)": "qkv",
    r"attn\.proj": "proj",
    r"mlp\.fc1": "mlp.0",
    r"mlp\.fc2": "mlp.2",
    r"final\.0\.up": "head",
}
ORIGINALS = {
    "transbts": Original(
        "transbts",
        _transbts,
        (128, 128, 128),
        {
            r"Unet\.InitConv\.conv": "stem.0",
            r"Unet\.EnDown(\d)\.conv": lambda m: f"downs.{int(m[1]) - 1}",
            r"Unet\.EnBlock1\.": "Unet.EnBlock1_1.",
            r"Unet\.EnBlock(\d)_(\d)\.(\w+)": lambda m: (
                f"levels.{int(m[1]) - 1}.{int(m[2]) - 1}.branch."
                + {"bn1": "0", "conv1": "2", "bn2": "3", "conv2": "5"}[m[3]]
            ),
            r"^bn\.": "embed.0.",
            r"^conv_x\.": "embed.2.",
            r"position_encoding\.position_embeddings": "transformer.positions",
            r"transformer\.net\.(\d)\.": lambda m: f"transformer.layers.{int(m[1]) // 2}.{int(m[1]) % 2}.",
            r"fn\.norm": "branch.0",
            r"fn\.fn\.net\.0": "branch.1",
            r"fn\.fn\.net\.3": "branch.4",
            r"fn\.fn\.": "branch.1.",
            r"Enblock8_1": "join.0",
            r"Enblock8_2": "join.1.branch.0",
            r"DeUp(\d)\.conv1": lambda m: f"ups.{4 - int(m[1])}.narrow",
            r"DeUp(\d)\.conv2": lambda m: f"ups.{4 - int(m[1])}.up",
            r"DeUp(\d)\.conv3": lambda m: f"ups.{4 - int(m[1])}.merge",
            r"DeBlock(\d)": lambda m: f"ups.{4 - int(m[1])}.block.branch.0",
            **BLOCK,
            r"endconv": "head",
        },  # type: ignore[arg-type]
        channels=4,
        unused="linear_encoding|pre_head_ln",
    ),
    "unetrpp": Original(
        "unetrpp",
        _unetrpp,
        (64, 128, 128),
        {
            r"unetr_pp_encoder\.downsample_layers\.(\d)\.0\.conv": r"downs.\1.0",
            r"unetr_pp_encoder\.downsample_layers": "downs",
            r"unetr_pp_encoder\.stages": "stages",
            r"decoder([345])\.transp_conv\.conv": lambda m: f"ups.{int(m[1]) - 3}",
            r"decoder([345])\.decoder_block\.0": lambda m: f"up_stages.{int(m[1]) - 3}",
            r"decoder2\.transp_conv\.conv": "last_up",
            r"decoder2\.decoder_block\.0": "last",
            r"encoder1": "skip",
            r"out1\.conv\.conv": "head",
            r"gamma": "scale",
            r"pos_embed": "positions",
            r"epa_block\.temperature2": "attention.temperature_space",
            r"epa_block\.temperature": "attention.temperature_channels",
            r"epa_block\.E\.": "attention.project.",
            r"epa_block\.out_proj\.": "attention.out_space.",
            r"epa_block\.out_proj2\.": "attention.out_channels.",
            r"epa_block": "attention",
            r"conv51": "convolutions.0",
            r"conv8\.1": "convolutions.2",
        },  # type: ignore[arg-type]
        fault={"original_order": True},
        unused=r"epa_block\.F\.",  # E under another name
    ),
    "nnformer": Original(
        "nnformer",
        _nnformer_copy,
        (64, 160, 160),
        NNFORMER,  # type: ignore[arg-type]
        fault={"original_index": True},
        unused="relative_position_index",
    ),
    "nnformer-first": Original(
        "nnformer",
        _nnformer_first,
        (128, 128, 128),
        NNFORMER,  # type: ignore[arg-type]
        options={"width": 96, "heads": (6,) * 4, "patch": (4, 4, 4), "windows": (4, 4, 8, 4)},
        fault={"original_index": True},
        unused="relative_position_index",
    ),
    "ux-net": Original(
        "ux-net",
        _ux_net,
        (64, 160, 160),
        {
            r"uxnet_3d\.downsample_layers": "downs",
            r"uxnet_3d\.stages": "stages",
            r"uxnet_3d\.norm(\d)": r"norms.\1",
            r"gamma": "scale",
            r"dwconv": "depthwise",
            r"pwconv1": "expand",
            r"pwconv2": "reduce",
            r"encoder(\d)": lambda m: f"skips.{int(m[1]) - 1}",
            r"decoder1": "last",
            r"decoder(\d)": lambda m: f"ups.{int(m[1]) - 2}",
            r"^out\.": "head.",
        },  # type: ignore[arg-type]
    ),
}


def _patch_layer(kind: str, project: int, number: int) -> str:
    """The name of a convolution or norm of nnFormer's patch embedding, which has two parts of two each."""
    return f"embed.{'convolutions' if kind == 'conv' else 'norms'}.{2 * project + number - 3}"


def compare(original: Original, clone: Path) -> dict[str, Any]:
    """Compare an original with our network: the largest differences of the logits, and their range."""
    _import_from(clone)
    torch.manual_seed(0)
    theirs = scatter(original.make()).eval()
    crop = torch.randn(1, original.channels, *original.size)
    report: dict[str, Any] = {"size": original.size, "parameters": sum(p.numel() for p in theirs.parameters())}
    with torch.inference_mode():
        expected = theirs(crop)
    tensors = renamed(original, theirs.state_dict())
    del theirs
    report |= {"logits": [float(expected.min()), float(expected.max())]}
    kinds = {"as it is": original.fault, "mended": {}} if original.fault else {"as it is": {}}
    for kind, options in kinds.items():
        network = network_kind(original.system)
        ours = network.build(original.size, original.channels, network.options(**{**original.options, **options}))
        storable(ours).load_state_dict({name: tensors[name].view(t.shape) for name, t in ours.state_dict().items()})
        assert len(tensors) == len(ours.state_dict())
        with torch.inference_mode():
            report[f"largest difference, {kind}"] = float((ours.eval()(crop) - expected).abs().max())
    report["agrees"] = report["largest difference, as it is"] < TOLERANCE
    return report


def scatter(network: nn.Module) -> nn.Module:
    """Randomise parameters that could hide a mistake: scales near 0, biases and positions of 0, norms of 1."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn_like(parameter)
            if name.endswith(("gamma", "temperature", "temperature2")):
                parameter.copy_(noise)
            elif parameter.ndim == 1 or "pos" in name:
                parameter.add_(0.2 * noise)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return network


def renamed(original: Original, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's tensors under our names."""
    out = {}
    for name, tensor in state.items():
        if re.search(original.unused, name):
            continue
        for pattern, replacement in original.names.items():
            name = re.sub(pattern, replacement, name)
        assert name not in out, name
        out[name] = tensor.float()
    return out


def _import_from(clone: Path) -> None:
    """Put the clone on the module path, and stand-ins for timm, which would import torchvision."""
    sys.path.insert(0, str(clone))
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath, layers.trunc_normal_ = DropPath, nn.init.trunc_normal_  # type: ignore[attr-defined]
    layers.to_3tuple = lambda x: tuple(x) if isinstance(x, (list, tuple)) else (x,) * 3  # type: ignore[attr-defined]
    for name in ("timm", "timm.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules.setdefault("timm.models.layers", layers)


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=ORIGINALS)
    parser.add_argument("clone", type=Path, help="folder of the original's repository")
    options = parser.parse_args()
    if not options.clone.is_dir():
        parser.error(f"{options.clone}: no such folder; expected a clone of the original; git clone it first")
    print(json.dumps(compare(ORIGINALS[options.network], options.clone), indent=2))


if __name__ == "__main__":
    main()

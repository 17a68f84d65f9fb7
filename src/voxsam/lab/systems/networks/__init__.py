"""The networks of Table 1, and others beyond it: crops in, two logits per voxel out.

Each file holds `OPTIONS`, a class, and `build(size, channels, options)`, which makes the network for crops of `size`
(D, H, W); `BUILT_BY` says which file holds which system. The files are imported when one of their networks is built.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

BUILT_BY = {
    "nnunet-network": "nnunet",
    "resenc-unet": "resenc",
    "transbts": "transbts",
    "nnformer": "nnformer",
    "swin-unetr": "swin_unetr",
    "unetr": "unetr",
    "unetrpp": "unetrpp",
    "ux-net": "ux_net",
    "segresnet": "segresnet",
    "mednext": "mednext",
}


def file_of(system: str) -> ModuleType:
    """The file that holds the network of that system."""
    return import_module(f"{__name__}.{BUILT_BY[system]}")

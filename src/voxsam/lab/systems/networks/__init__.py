"""The networks of Table 1, and others beyond it: crops in, two logits per voxel out.

`FILES` says which file holds which system; each file's NETWORKS says how it is built. They are imported when one of
their networks is.
"""

from __future__ import annotations

from importlib import import_module

from voxsam.lab.systems.networks.parts import NetworkKind

FILES = {
    "nnunet-network": "nnunet",
    "resenc-unet": "nnunet",
    "transbts": "transbts",
    "nnformer": "nnformer",
    "swin-unetr": "of_monai",
    "unetr": "of_monai",
    "unetrpp": "unetrpp",
    "ux-net": "ux_net",
    "segresnet": "of_monai",
    "mednext": "of_monai",
}


def network_kind(system: str) -> NetworkKind:
    """How the network of that system is built."""
    return import_module(f"{__name__}.{FILES[system]}").NETWORKS[system]

"""The exact parameter counts of the published networks, for one image and two classes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from voxsam.lab.systems.networks import network_kind, of_libraries

PAPER = (64, 160, 160)  # the crop of the paper's baselines
PLAN = {"strides": [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)], "kernels": [(1, 3, 3), *[(3, 3, 3)] * 5]}
CUBE = (128, 128, 128)
COUNTS = [
    ("nnunet-network", (40, 224, 224), PLAN, 30_703_498),
    ("nnunet-network", PAPER, {}, 30_785_994),
    ("nnunet-network", CUBE, {}, 31_195_594),
    ("resenc-unet", CUBE, {}, 102_349_770),
    ("transbts", PAPER, {}, 32_263_826),
    ("transbts", CUBE, {}, 32_789_650 - 67_072),  # less what the original never uses
    ("nnformer", PAPER, {}, 149_486_426),
    ("nnformer", PAPER, {"original_index": True}, 149_486_426),
    ("nnformer", (96, 96, 96), {}, 149_465_498),
    ("swin-unetr", PAPER, {}, 62_186_708),
    ("unetr", PAPER, {}, 92_943_586),
    ("unetrpp", PAPER, {}, 55_700_458),
    ("unetrpp", CUBE, {}, 65_616_490),
    ("unetrpp", (96, 96, 96), {}, 39_409_834),
    ("ux-net", PAPER, {}, 53_005_922),
    ("segresnet", CUBE, {}, 18_796_002),
    ("mednext", CUBE, {}, 5_550_914),
    ("mednext", CUBE, {"variant": "M"}, 17_533_506),
    ("mednext", CUBE, {"variant": "L"}, 61_726_754),
]


@pytest.mark.parametrize(("system", "size", "options", "count"), COUNTS)
def test_it_has_so_many_parameters(system: str, size: tuple[int, int, int], options: dict, count: int) -> None:
    kind = network_kind(system)
    on_meta = system != "swin-unetr"  # which reads numbers of tensors as it is built
    with torch.device("meta") if on_meta else nullcontext():
        network = kind.build(size, 1, kind.options(**options))
    assert sum(p.numel() for p in network.parameters()) == count


def test_nnunets_plan_halves_an_axis_as_long_as_four_voxels_are_left() -> None:
    planned = of_libraries.planned_strides
    assert planned(PAPER) == [(2, 2, 2)] * 4 + [(1, 2, 2)]
    assert planned(CUBE) == [(2, 2, 2)] * 5
    assert planned((8, 14, 40)) == [(2, 2, 2), (1, 1, 2), (1, 1, 2)]  # 4, 7 (odd), 5 (odd)

"""Each network overfits one crop of a phantom: it can represent a tumour, and its gradients lead there."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from tests.lab.systems.networks.tiny import CROP, network, phantom_crop
from voxsam.lab.systems.networks import FILES

ENOUGH = 0.9  # Dice in evaluation mode
STEPS, EVERY = 150, 5
SMALL = dict.fromkeys(("nnunet-network", "resenc-unet", "segresnet", "transbts"), (24, 24, 24))  # to be quicker
SIZES = {**SMALL, "unetr": (16, 32, 32), "swin-unetr": (32, 32, 64)}  # at 32^3 its deepest map is one voxel


@pytest.mark.slow
@pytest.mark.parametrize("system", sorted(FILES))
def test_it_overfits_a_phantom(system: str) -> None:
    size = SIZES.get(system, (CROP, CROP, CROP))
    crop, truth = phantom_crop(size)
    fraction = float(truth.mean())
    assert 0.01 < fraction < 0.3
    plain = network(system, size=size)
    optimiser = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    best = 0.0
    for step in range(1, STEPS + 1):
        plain.train()
        optimiser.zero_grad()
        loss(plain(crop), truth).backward()
        optimiser.step()
        if step % EVERY == 0:
            with torch.inference_mode():
                mask = plain.eval()(crop).argmax(1, keepdim=True)
            best = max(best, float(2 * (mask * truth).sum() / (mask.sum() + truth.sum())))
            if best > ENOUGH:
                return
    raise AssertionError(f"{system}: Dice {best:.2f} after {STEPS} steps")

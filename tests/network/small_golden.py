"""A small network with seeded values, and one training step on it: the source of test_small_golden's numbers.

`python -m tests.network.small_golden` computes and prints them in float64; they change only for a reason (docs/log.md).
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor

from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import TINY
from voxsam.preprocess import RELEASED

PROFILES = ("released", "paper")
SIDES = (32, 24, 40)  # no multiple of the window on two axes


def golden_network(profile: str) -> VoxSAMNetwork:
    """TINY at half its width in the arithmetic of a profile; each tensor is a sine of its own, not drawn by torch."""
    config = TINY.in_profile(profile).model_copy(  # type: ignore[arg-type]
        update={"size": "golden", "width": 64, "depth": 4, "adapter_width": 32, "crop": 32}
    )
    network = VoxSAMNetwork(Card(name="golden", config=config, preprocessing=RELEASED["kits"]))
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + number % 7 / 10) + number)
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_((wave * scale * 1.4).reshape(parameter.shape))
            if parameter.ndim == 1 and ".norm" in list(dict(network.named_parameters()))[number]:
                parameter.add_(1)
    return network.eval()


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """A crop, two clicks of either sign, and a ball as the truth."""
    d, h, w = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in SIDES), indexing="ij")
    ball = ((d - 15) / 9) ** 2 + ((h - 10) / 7) ** 2 + ((w - 22) / 11) ** 2 < 1
    crop = torch.sin(d / 3) + torch.cos(h / 4) * torch.sin(w / 2) + 2 * ball
    return crop[None, None], torch.tensor([[[15.0, 10.0, 22.0], [3.0, 20.5, 5.0]]]), ball[None].long()


def measure(network: VoxSAMNetwork) -> dict[str, list[float] | dict[str, float]]:
    """Samples of features and logits, and the norm of each tensor's gradient, for one cross-entropy.

    In the precision of the network: float64 gives the same numbers on every processor.
    """
    crop, points, truth = golden_inputs()
    dtype = next(network.parameters()).dtype
    crop, points = crop.to(dtype), points.to(dtype)
    labels = torch.tensor([[1, 0]])
    with torch.no_grad():
        features = network.encode(crop)
        logits = network.decode(features, crop, points, labels=labels)
    found: dict[str, list[float] | dict[str, float]] = {
        f"level {number}": level.flatten()[:: level.numel() // 8].tolist() for number, level in enumerate(features, 1)
    }
    found["logits"] = logits.flatten()[:: logits.numel() // 16].tolist()
    network.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network(crop, points, labels), truth)
    loss.backward()
    found["loss"] = [loss.item()]
    found["gradients"] = {n: float(p.grad.norm()) for n, p in network.named_parameters() if p.grad is not None}
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


if __name__ == "__main__":
    values = {profile: measure(golden_network(profile).double()) for profile in PROFILES}
    text = json.dumps(values, indent=1)
    print(json.dumps(json.loads(text, parse_float=lambda number: _rounded(float(number))), indent=1))

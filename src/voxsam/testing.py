"""Stubs for tests, of VoxSAM and of programs built on it: a tiny network and a small scan, quick to make.

The network is a real one with random weights: its masks mean nothing, but its shapes, files and errors are those of any
model. The scan is a phantom on an anisotropic, oblique grid, so that swapped axes show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxsam.phantoms import make_phantom
from voxsam.volume import Volume

if TYPE_CHECKING:
    from voxsam.network.network import VoxSAMNetwork

STUB_SHAPE = (44, 36, 22)
STUB_SPACING_MM = (3.0, 3.5, 6.0)
STUB_TURN_DEGREES = -12.0  # of the grid about its own first axis, as with a tilted gantry


@dataclass(frozen=True)
class StubScan:
    """A scan (int16 HU), the true mask of its tumour (uint8), and an index (i, j, k) inside the tumour."""

    scan: Volume
    truth: Volume
    click: tuple[int, int, int]


def stub_network(seed: int = 0, *, polarity: bool = True, automatic: bool = False, name: str = "stub") -> VoxSAMNetwork:
    """A VoxSAMNetwork of some 80,000 random weights, the same for the same seed, in eval mode on the CPU.

    With `polarity=False` it takes no negative clicks, as the released models; with `automatic=True` no clicks at all.
    """
    import torch

    from voxsam.kernels import install
    from voxsam.network.card import Card
    from voxsam.network.network import VoxSAMNetwork
    from voxsam.network.sizes import TINY
    from voxsam.preprocess import Preprocessing

    sizes = {"width": 16, "depth": 4, "heads": 2, "adapter_width": 8, "crop": 16, "position_grid": 4, "window": 2}
    head = {"feature_width": 16, "head_width": 8, "queries": 2, "prompt_heads": 2, "prompt_mlp": 16}
    config = TINY.model_copy(update={"size": "stub", "polarity": polarity, "marks": False, **sizes, **head})
    preprocessing = Preprocessing(spacing_mm=(6.0, 6.0, 6.0), clip=(-200.0, 300.0), mean=40.0, sd=60.0)
    description = {"data": "none: random weights", "licence": "Apache-2.0"}
    card = Card(name=name, config=config, preprocessing=preprocessing, description=description, automatic=automatic)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VoxSAMNetwork(card)
        for parameter in network.parameters():  # some are 0 at first, which would give every click the same mask
            torch.nn.init.normal_(parameter, std=0.2)
    install(network)  # as load_model does
    return network.eval()


def stub_scan(seed: int = 0) -> StubScan:
    """A phantom of 44 x 36 x 22 voxels of 3 x 3.5 x 6 mm, on axes that are permuted and oblique to the world's."""
    phantom = make_phantom(seed, STUB_SHAPE, STUB_SPACING_MM, "PLS")
    grid = phantom.scan.grid.turned(0, STUB_TURN_DEGREES)
    return StubScan(Volume(phantom.scan.array, grid, "CT"), Volume(phantom.label.array, grid, "SEG"), phantom.click)

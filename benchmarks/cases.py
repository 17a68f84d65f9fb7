"""The measured cases, one per process: `python -m benchmarks.cases NAME SETTINGS` prints its numbers as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from benchmarks.clicking import all_clicks, two_clicks
from benchmarks.machine import PRODUCTS, SMALL_PRODUCTS, matrix_product_rates, peak_memory_bytes, peak_rate
from benchmarks.operations import encoder_operations
from benchmarks.reading import big_scan, measure_reading
from benchmarks.reference import ReferenceNetwork
from voxsam.errors import InputError
from voxsam.kernels import install
from voxsam.kernels.linear import precisions
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import SIZES, TINY, ModelConfig
from voxsam.phantoms import Phantom, make_phantom
from voxsam.preprocess import RELEASED, Preprocessing
from voxsam.weights import load_model

Numbers = dict[str, object]

SCAN_SPACING_MM = 2.0
SHORT_S = 5.0  # an encoding faster than this is repeated, and the fastest counts
TINY_PREPROCESSING = Preprocessing(clip=(-120, 200), mean=35, sd=40, spacing_mm=(3, 3, 3), interpolation="area")


class Settings(BaseModel):
    """The settings shared by all cases of a run. `quick`: small inputs, to see that everything works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "vit_b"
    crop: int = 128
    threads: int = 1
    seed: int = 0
    quick: bool = False
    enlarged: int = 4  # the large scan is 128 x 128 x 75 voxels times this on each axis

    @property
    def config(self) -> ModelConfig:
        """The named size for this crop. Raises pydantic's ValidationError if the stride does not divide the crop."""
        return ModelConfig.model_validate({**SIZES[self.size].model_dump(), "crop": self.crop})


def build(form: type[VoxSAMNetwork], config: ModelConfig, preprocessing: Preprocessing, seed: int) -> VoxSAMNetwork:
    """A network with random weights, the same for a seed in either implementation; VoxSAM's own with its kernels."""
    torch.manual_seed(seed)
    network = form(Card(name=f"{config.size}, random", config=config, preprocessing=preprocessing)).eval()
    for name, parameter in network.named_parameters():
        if "rel_pos_" in name and parameter.ndim == 2:  # initialised to 0, which would hide a wrong bias
            nn.init.normal_(parameter, std=0.1)
    if form is VoxSAMNetwork:
        install(network)
    return network


def encoder(settings: Settings) -> Numbers:
    """The image encoder alone, and the rate of matrix products just before and after it, in the same process."""
    products = SMALL_PRODUCTS if settings.quick else PRODUCTS
    before = matrix_product_rates(products)
    network = build(VoxSAMNetwork, settings.config, RELEASED["colon"], settings.seed)
    crop = torch.randn(1, 1, *[settings.crop] * 3)
    best = _time_encoder(network, crop)
    for _ in range(2 if best["encoder_s"] < SHORT_S else 0):
        best = min(best, _time_encoder(network, crop), key=lambda numbers: numbers["encoder_s"])
    after = matrix_product_rates(products)
    operations = encoder_operations(settings.config, crop.shape[2:])
    return {
        **best,
        "blocks_operations": operations.blocks,
        "encoder_operations": operations.encoder,
        "matrix_product_rates": {shape: max(before[shape], after[shape]) for shape in before},
        "peak_rate": peak_rate(torch.get_num_threads()),
    }


def _time_encoder(network: VoxSAMNetwork, crop: torch.Tensor) -> dict[str, float]:
    """Seconds of one encoding, and of only its blocks."""
    started, in_blocks = [0.0], [0.0]

    def enter(*_: object) -> None:
        started[0] = time.perf_counter()

    def leave(*_: object) -> None:
        in_blocks[0] += time.perf_counter() - started[0]

    hooks = [hook for b in network.image_encoder.blocks for hook in _both_hooks(b, enter, leave)]
    start = time.perf_counter()
    with torch.inference_mode():
        network.encode(crop)
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return {"encoder_s": whole, "blocks_s": in_blocks[0]}


def _both_hooks(block: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> tuple:
    return block.register_forward_pre_hook(enter), block.register_forward_hook(leave)


def voxsam(settings: Settings) -> Numbers:
    """VoxSAM's clicks in one crop, and a click that moves it."""
    network = build(VoxSAMNetwork, settings.config, RELEASED["colon"], settings.seed)
    return all_clicks(network, _scan_around(settings))


def short(settings: Settings) -> Numbers:
    """VoxSAM's first click and the next one, measured like the reference implementation."""
    network = build(VoxSAMNetwork, settings.config, RELEASED["colon"], settings.seed)
    return two_clicks(network, _scan_around(settings))


def reference(settings: Settings) -> Numbers:
    """The reference implementation's first click, and the next one reusing the encoder's features."""
    network = build(ReferenceNetwork, settings.config, RELEASED["colon"], settings.seed)
    return two_clicks(network, _scan_around(settings))


def precision(settings: Settings) -> Numbers:
    """The first click in every precision that this machine has, on the same weights and scan.

    One uncounted click warms up the process.
    """
    network, scan = build(VoxSAMNetwork, settings.config, RELEASED["colon"], settings.seed), _scan_around(settings)
    found: Numbers = {}
    two_clicks(network, scan)
    for name in precisions(torch.device("cpu")):
        install(network, name)
        found[name] = two_clicks(network, scan)
    return found


def _scan_around(settings: Settings) -> Phantom:
    """A phantom scan with some room around the crop."""
    side = int(max(1.5 * settings.crop, 128) / SCAN_SPACING_MM)
    return make_phantom(settings.seed, (side,) * 3, (SCAN_SPACING_MM,) * 3)


def tiny(settings: Settings) -> Numbers:
    """The packaged voxsam-tiny on a scan of 512 x 512 x 300 voxels that is already in memory."""
    network, weights = _packaged(settings)
    phantom = big_scan(settings.seed, 1 if settings.quick else settings.enlarged)
    return {**all_clicks(network, phantom), "scan_shape": list(phantom.scan.array.shape), "weights": weights}


def reading(settings: Settings) -> Numbers:
    """Reading such a scan from a .nii.gz file, up to the first crop of voxsam-tiny."""
    card = _packaged(settings)[0].card
    return measure_reading(card.preprocessing, card.config.crop, settings.seed, settings.quick)


def _packaged(settings: Settings) -> tuple[Promptable, str]:
    try:
        return load_model("voxsam-tiny", "cpu"), "packaged"
    except InputError:
        return build(VoxSAMNetwork, TINY, TINY_PREPROCESSING, settings.seed), "random"


CASES: dict[str, Callable[[Settings], Numbers]] = {
    "encoder": encoder,
    "voxsam": voxsam,
    "short": short,
    "reference": reference,
    "precision": precision,
    "tiny": tiny,
    "reading": reading,
}


def run_case(name: str, settings: Settings) -> Numbers:
    """The numbers of a case measured in this process, and the process's peak memory."""
    torch.set_num_threads(settings.threads)
    return {**CASES[name](settings), "peak_memory_bytes": peak_memory_bytes()}


if __name__ == "__main__":
    print(json.dumps(run_case(sys.argv[1], Settings.model_validate_json(sys.argv[2]))))

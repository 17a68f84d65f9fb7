"""What is done on a GPU before the first click: kernels are chosen, and the parts of a click are recorded.

Each choice is measured on this machine, and a way is taken only if it gives the plain way's numbers (`fastest`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.kernels.choose import fastest
from voxsam.kernels.cuda_graph import Graphed, Record, record_on_gpu
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import PADDING, POSITIVE
from voxsam.network.promptable import Promptable

COUNTS = (4, 8, 16, 32)  # clicks are filled up to one of them, so that few kinds of input are recorded
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest value: other kernels add in another order
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}

Click = Callable[[], Tensor]


def warm_up(model: Promptable) -> dict[str, str]:
    """Make the model ready for clicks on its GPU; what was chosen, by name. On other devices nothing is done.

    The model answers as before, and faster. Call it when device and precision are final; it takes seconds.
    """
    device = next(model.parameters()).device
    if not isinstance(model, VoxSAMNetwork) or device.type != "cuda":
        return {}
    if device.index not in (None, torch.cuda.current_device()):
        return {}  # recordings are replayed on the current device
    return choose_ways(model, record_on_gpu)


def choose_ways(network: VoxSAMNetwork, record: Record) -> dict[str, str]:
    """Lay the decoder's weights out, and let the parts of a click be replayed, each as far as it is faster."""
    parameter = next(network.parameters())
    tolerance = TOLERANCE.get(parameter.dtype, TOLERANCE[torch.bfloat16])
    side = network.config.crop
    noise = torch.randn(1, network.config.channels, side, side, side, generator=torch.Generator().manual_seed(0))
    crop = noise.to(parameter.device, parameter.dtype)
    with torch.inference_mode():
        features = network.encode(crop)
        static = network.static(features, crop)
        point = torch.full((1, 1, 3), side / 2, device=crop.device)
        points, _, labels = filled_up(point, None, None)

        def click() -> Tensor:
            return network.decode(features, crop, points, labels=labels, static=static)

        ways = {name: lambda name=name: _laid_out(network, name, click) for name in LAYOUTS}
        layout = fastest(ways, tolerance, "layout")
        _laid_out(network, layout, click)
        return {"layout": layout, **_choose_parts(network, click, tolerance, record)}


def _laid_out(network: VoxSAMNetwork, layout: str, click: Click) -> Tensor:
    """What `click` answers with the decoder's convolutions in a layout, which they keep."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter in network.mask_decoder.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=LAYOUTS[layout])
    return click()


def _choose_parts(network: VoxSAMNetwork, click: Click, tolerance: float, record: Record) -> dict[str, str]:
    """Each part of a click recorded ("graph") or not ("plain"), one after the other; what was chosen, by name."""
    prompting = [name for name, _ in network.named_children() if name.startswith("prompt_encoder")]
    chosen = {}
    for name, method in (("mask_decoder", "fused"), ("mask_decoder", "forward"), *((n, "forward") for n in prompting)):
        part, whole = network.get_submodule(name), f"{name}.{method}"
        ways = _ways(part, method, click, record)
        chosen[whole] = fastest(ways, tolerance, whole)
        ways[chosen[whole]]()
    if any(chosen[f"{name}.forward"] == "graph" for name in prompting):
        network.decode = _filling_up(network.decode)  # type: ignore[method-assign]
    return chosen


def _ways(part: nn.Module, method: str, click: Click, record: Record) -> dict[str, Click]:
    """`click` with a part's own method, and with its recording; each leaves the part as it used it."""
    graphed = Graphed(part, getattr(part, method), record)

    def plain() -> Tensor:
        part.__dict__.pop(method, None)  # the class's own method again
        return click()

    def replayed() -> Tensor:
        setattr(part, method, graphed)
        return click()

    return {"plain": plain, "graph": replayed}


def _filling_up(decode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Promptable.decode with its clicks filled up."""

    def filling_up(
        features: tuple[Tensor, ...],
        crops_B1DHW: Tensor,
        points: Tensor | None = None,
        *,
        prompt_features: Tensor | None = None,
        labels: Tensor | None = None,
        **more: object,
    ) -> Tensor:
        if points is not None and not torch.is_grad_enabled():
            points, prompt_features, labels = filled_up(points, prompt_features, labels)
        return decode(features, crops_B1DHW, points, prompt_features=prompt_features, labels=labels, **more)

    return filling_up


def filled_up(
    points_BN3: Tensor, prompt_features_BNC: Tensor | None, labels_BN: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The same clicks with others behind them that are labelled as padding, up to the next of COUNTS."""
    count = points_BN3.shape[1]
    more = min((n for n in COUNTS if n >= count), default=count) - count
    if labels_BN is None:
        labels_BN = torch.full(points_BN3.shape[:2], POSITIVE, dtype=torch.long, device=points_BN3.device)
    prompt_features = None if prompt_features_BNC is None else F.pad(prompt_features_BNC, (0, 0, 0, more))
    return F.pad(points_BN3, (0, 0, 0, more)), prompt_features, F.pad(labels_BN, (0, more), value=PADDING)

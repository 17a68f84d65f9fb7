"""Warm-up on a GPU before the first click: kernels are chosen, and the parts of a click recorded as CUDA graphs.

Each choice is measured on the machine, and a way is taken only if it reproduces the reference's numbers (`fastest`).
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import PADDING, POSITIVE
from voxsam.network.promptable import Promptable

LOG = logging.getLogger("voxsam.weights")
COUNTS = (4, 8, 16, 32)  # clicks are padded to one of these, so that few kinds of input are recorded
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest value: other kernels sum in another order
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}

REPEATS = 5  # of each way, of which the fastest counts
KEPT = 4  # kinds of input; each recording holds the memory of its intermediate results
WARM_UPS = 3  # runs before the recording, in which libraries choose their kernels

Work = Callable[[], Tensor]
Replay = Callable[[], object]
Record = Callable[[Work], tuple[Replay, Tensor]]
Way = Callable[[], Tensor]


def warm_up(model: Promptable) -> dict[str, str]:
    """Make the model ready for clicks on its GPU; returns what was chosen, by name. Does nothing on other devices.

    The model predicts as before, but faster. Call it once device and precision are final; it takes seconds.
    """
    device = next(model.parameters()).device
    if not isinstance(model, VoxSAMNetwork) or device.type != "cuda":
        return {}
    if device.index not in (None, torch.cuda.current_device()):
        return {}  # recordings are replayed on the current device
    return choose_ways(model, record_on_gpu)


def choose_ways(network: VoxSAMNetwork, record: Record) -> dict[str, str]:
    """Choose the layout of the decoder's weights, and let the parts of a click be replayed, each if that is faster."""
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


def _laid_out(network: VoxSAMNetwork, layout: str, click: Way) -> Tensor:
    """Put the decoder's convolutions in a layout, which they keep, and return what `click` returns."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter in network.mask_decoder.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=LAYOUTS[layout])
    return click()


def _choose_parts(network: VoxSAMNetwork, click: Way, tolerance: float, record: Record) -> dict[str, str]:
    """Choose for each part of a click in turn: recorded ("graph") or not ("plain"); returns the choices by name."""
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


def _ways(part: nn.Module, method: str, click: Way, record: Record) -> dict[str, Way]:
    """`click` with a part's own method, and with its recording; each leaves the part as it has used it."""
    graphed = Graphed(part, getattr(part, method), record)

    def plain() -> Tensor:
        part.__dict__.pop(method, None)  # the class's own method again
        return click()

    def replayed() -> Tensor:
        setattr(part, method, graphed)
        return click()

    return {"plain": plain, "graph": replayed}


def _filling_up(decode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Promptable.decode with its clicks padded (`filled_up`)."""

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
    """The same clicks, followed by others that are labelled as padding, up to the next of COUNTS."""
    count = points_BN3.shape[1]
    more = min((n for n in COUNTS if n >= count), default=count) - count
    if labels_BN is None:
        labels_BN = torch.full(points_BN3.shape[:2], POSITIVE, dtype=torch.long, device=points_BN3.device)
    prompt_features = None if prompt_features_BNC is None else F.pad(prompt_features_BNC, (0, 0, 0, more))
    return F.pad(points_BN3, (0, 0, 0, more)), prompt_features, F.pad(labels_BN, (0, more), value=PADDING)


# The fastest of several ways


def fastest(ways: Mapping[str, Way], tolerance: float, of: str = "") -> str:
    """The name of the fastest of those ways that return what the first one does.

    A way that raises, or differs from the first by more than `tolerance` of its largest value, is not taken, so that a
    fault of a driver or compiler costs speed and never a mask. The reason is logged to "voxsam.weights" at level INFO;
    `of` names what is being chosen. The first way's own errors are raised.
    """
    (first, plain), *others = ways.items()
    expected = plain()
    seconds = {first: _seconds(plain)}
    for name, way in others:
        try:
            if _close(way(), expected, tolerance):
                seconds[name] = _seconds(way)
            else:
                LOG.info("%s: %s is not taken, its result is another than that of %s", of, name, first)
        except Exception as error:  # whatever it is, the first way works
            LOG.info("%s: %s is not taken, it failed", of, name, exc_info=error)
    LOG.info("%s: seconds %s", of, seconds)
    return min(seconds, key=seconds.__getitem__)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the results agree to `tolerance` of the largest value; False for another shape, and for NaN."""
    if found.shape != expected.shape:
        return False
    return bool((found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max())


def _seconds(way: Way) -> float:
    """Seconds of the fastest of a few runs, each until the device has finished."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = way()
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)
        best = min(best, time.perf_counter() - start)
    return best


# Recordings


def record_on_gpu(work: Work) -> tuple[Replay, Tensor]:
    """A function that replays `work` on the tensors that it reads now, and the tensor that its result will be in.

    Raises RuntimeError if it does what cannot be recorded, such as waiting for the GPU; the thread is then back on its
    own stream.
    """
    own = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(own)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    own.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # torch.cuda.graph stays on its stream if ending a recording fails: the outer `with` leaves it.
    with torch.cuda.stream(own), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return graph.replay, result


def end_of_replay(device: torch.device) -> torch.cuda.Event | None:
    """The event that marks the end of a replay on a GPU; None elsewhere, where it has ended when it returns."""
    return torch.cuda.Event() if device.type == "cuda" else None


@dataclass(frozen=True, eq=False)
class _Recording:
    inputs: list[Any]  # its own tensors, which a replay reads, and other inputs
    replay: Replay
    result: Tensor
    weights: tuple[int, ...]
    end: torch.cuda.Event | None

    def __call__(self, given: list[Any]) -> Tensor:
        """The result for these inputs, once another thread's stream has finished with the recording."""
        if self.end is not None:
            self.end.wait()
        for own, new in zip(self.inputs, given, strict=True):
            if isinstance(own, Tensor):
                own.copy_(new)
        self.replay()
        result = self.result.clone()
        if self.end is not None:
            self.end.record()
        return result

    def finish(self) -> None:
        """Wait until nothing reads its tensors any more."""
        if self.end is not None:
            self.end.synchronize()


class Graphed:
    """Callable like `work`, a part of `module` that takes tensors, tuples of them, numbers or None; returns a tensor.

    Recorded again when shapes, types or the addresses of the module's weights and buffers change. With gradients it is
    `work` itself. Threads take turns, and so do their streams. `record` is a seam for tests, which have no GPU.
    """

    def __init__(self, module: nn.Module, work: Callable[..., Tensor], record: Record = record_on_gpu) -> None:
        self.work = work
        self._module, self._record = module, record
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Tensor:
        """What `work(*inputs)` returns, in a tensor of its own."""
        if torch.is_grad_enabled():
            return self.work(*inputs)
        given, structure = tree_flatten(inputs)
        with self._lock, torch.inference_mode():
            return self._recorded(given, structure)(given)

    def _recorded(self, given: list[Any], structure: Any) -> _Recording:
        kind = (structure, *((i.shape, i.dtype, i.device) if isinstance(i, Tensor) else i for i in given))
        held = itertools.chain(self._module.parameters(), self._module.buffers())
        weights = tuple(tensor.data_ptr() for tensor in held)
        found = self._kept.get(kind)
        if found is None or found.weights != weights:
            if found is not None:
                found.finish()
            own = [i.clone() if isinstance(i, Tensor) else i for i in given]
            inputs = tree_unflatten(own, structure)
            replay, result = self._record(lambda: self.work(*inputs))
            found = self._kept[kind] = _Recording(own, replay, result, weights, end_of_replay(result.device))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)[1].finish()
        self._kept.move_to_end(kind)
        return found

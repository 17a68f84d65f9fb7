"""A function of tensors as a CUDA graph: recorded once for each kind of input, then replayed with a single launch."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

KEPT = 4  # kinds of input; each recording holds the memory of its intermediate results
WARM_UPS = 3  # runs before the recording, in which libraries choose their kernels

Work = Callable[[], Tensor]
Replay = Callable[[], object]
Record = Callable[[Work], tuple[Replay, Tensor]]


def record_on_gpu(work: Work) -> tuple[Replay, Tensor]:
    """What replays `work` on the tensors that it reads now, and the tensor that its answer will be in.

    Raises RuntimeError if it does what cannot be recorded, such as waiting for the GPU; the thread is then on its own
    stream again.
    """
    own = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(own)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    own.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # torch.cuda.graph stays on its stream where ending a recording fails: the outer `with` leaves it.
    with torch.cuda.stream(own), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        answer = work()
    return graph.replay, answer


def end_of_replay(device: torch.device) -> torch.cuda.Event | None:
    """What marks on a GPU where a replay has ended; None elsewhere, where it has ended when it returns."""
    return torch.cuda.Event() if device.type == "cuda" else None


@dataclass(frozen=True, eq=False)
class _Recording:
    inputs: list[Any]  # tensors of its own, that a replay reads; what else there is
    replay: Replay
    answer: Tensor
    weights: tuple[int, ...]
    end: torch.cuda.Event | None

    def __call__(self, given: list[Any]) -> Tensor:
        """The answer for these inputs, after what another thread's stream has still to do with the recording."""
        if self.end is not None:
            self.end.wait()
        for own, new in zip(self.inputs, given, strict=True):
            if isinstance(own, Tensor):
                own.copy_(new)
        self.replay()
        answer = self.answer.clone()
        if self.end is not None:
            self.end.record()
        return answer

    def finish(self) -> None:
        """Wait until nothing reads its tensors any more."""
        if self.end is not None:
            self.end.synchronize()


class Graphed:
    """Calls like `work`, a part of `module` that takes tensors, tuples of them, numbers or None, and returns a tensor.

    Recorded anew when shapes, types or the place of the module's weights and buffers change. With gradients it is
    `work` itself. Threads take turns, and so do their streams. `record` is the seam for tests, which have no GPU.
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
            replay, answer = self._record(lambda: self.work(*inputs))
            found = self._kept[kind] = _Recording(own, replay, answer, weights, end_of_replay(answer.device))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)[1].finish()
        self._kept.move_to_end(kind)
        return found

"""A function of tensors as a CUDA graph: recorded once for each kind of input, then replayed with a single launch."""

from __future__ import annotations

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

    Raises RuntimeError if it does what cannot be recorded, such as waiting for the GPU.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        answer = work()
    return graph.replay, answer


@dataclass(frozen=True, eq=False)
class _Recording:
    inputs: list[Any]  # tensors of its own, that a replay reads; what else there is
    replay: Replay
    answer: Tensor
    weights: tuple[int, ...]


class Graphed:
    """Calls like `work`, a part of `module` that takes tensors, tuples of them, numbers or None, and returns a tensor.

    Recorded anew when shapes, types or the place of the module's weights change. With gradients it is `work` itself.
    Threads take turns. `record` is the seam for tests, which have no GPU.
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
            recording = self._recorded(given, structure)
            for own, new in zip(recording.inputs, given, strict=True):
                if isinstance(own, Tensor):
                    own.copy_(new)
            recording.replay()
            return recording.answer.clone()

    def _recorded(self, given: list[Any], structure: Any) -> _Recording:
        kind = (structure, *((i.shape, i.dtype, i.device) if isinstance(i, Tensor) else i for i in given))
        weights = tuple(tensor.data_ptr() for tensor in self._module.state_dict().values())
        found = self._kept.get(kind)
        if found is None or found.weights != weights:
            own = [i.clone() if isinstance(i, Tensor) else i for i in given]
            inputs = tree_unflatten(own, structure)
            replay, answer = self._record(lambda: self.work(*inputs))
            found = self._kept[kind] = _Recording(own, replay, answer, weights)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(kind)
        return found

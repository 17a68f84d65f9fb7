"""Requirements of CUDA graphs, as far as a CPU can check them: operations, streams, and current weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from voxsam.kernels import warm_up as module
from voxsam.kernels.warm_up import Graphed, Replay, Work, record_on_gpu
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import PADDING
from voxsam.network.sizes import TINY, VIT_B, ModelConfig
from voxsam.testing import stub_network

SMALL = {"width": 16, "depth": 4, "heads": 2, "adapter_width": 8, "crop": 16, "position_grid": 4, "window": 2}
HEAD = {"feature_width": 16, "head_width": 8, "queries": 2, "prompt_heads": 2, "prompt_mlp": 16}
CONFIGS = {
    "tiny": TINY.model_copy(update={**SMALL, **HEAD}),
    "vit_b": VIT_B.model_copy(update={**SMALL, **HEAD}),
    "positional": TINY.model_copy(update={**SMALL, **HEAD, "prompt_kind": "positional", "marks": False}),
    "two levels": TINY.model_copy(update={**SMALL, **HEAD, "prompt_levels": (3, 4)}),
}


class Held(TorchDispatchMode):
    """Refuses operations that copy from host to device memory or wait for the GPU: no graph can hold them."""

    refused = ("aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in self.refused:
            raise RuntimeError(f"{func.name()} cannot be recorded")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("work", [lambda: torch.tensor([1, 2]), lambda: int(torch.ones(1)), torch.ones(2).nonzero])
def test_what_cannot_be_recorded_is_seen(work) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be recorded"), Held():
        work()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_of_a_click_can_be_recorded(config: ModelConfig, dtype: torch.dtype) -> None:
    """As in a recording, it has run once before, which makes the tables that are kept."""
    network = VoxSAMNetwork(Card(name="r", config=config, preprocessing=stub_network().card.preprocessing)).eval()
    network = network.to(dtype)
    crop, points = torch.randn(1, 1, 16, 16, 16, dtype=dtype), torch.rand(1, 4, 3) * 15
    labels = torch.tensor([[1, 0 if config.polarity else 1, 1, PADDING]])
    with torch.no_grad():  # where inference_mode hides the two operations that wait
        features = network.encode(crop)
        static, prompt_features = network.static(features, crop), network.sample(features, points)
        parts = [m for name, m in network.named_children() if name.startswith("prompt_encoder")]
        assert len(parts) == len(config.prompt_levels)
        prompted = network.prompted(features)
        for held in (nullcontext(), Held()):
            with held:
                for part, level, look in zip(parts, prompted, prompt_features.chunk(len(parts), -1), strict=True):
                    part(level, look, labels, points)
                network.mask_decoder(network.mask_decoder.fused(static, prompted), (16, 16, 16))


# Streams


class FakeGPU:
    """The part of torch.cuda that `record_on_gpu` uses: each thread's current stream, and a recording that fails."""

    def __init__(self) -> None:
        self.on = "own"

    def current_stream(self) -> FakeStream:
        return FakeStream(self.on)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.on = self.on, stream.name
        try:
            yield
        finally:
            self.on = before

    @contextmanager
    def graph(self, graph: object, capture_error_mode: str) -> Iterator[None]:
        """Like torch.cuda.graph: ending a failed recording raises before it leaves its stream."""
        self.on = "recording"
        yield
        raise RuntimeError("operation failed due to a previous error during capture")


class FakeStream:
    def __init__(self, name: str = "aside") -> None:
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        pass


def test_a_thread_is_on_its_own_stream_again_after_a_recording_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, seen = FakeGPU(), []
    for name in ("current_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)

    def work() -> Tensor:
        seen.append(gpu.on)
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="during capture"):
        record_on_gpu(work)
    assert seen == ["aside"] * module.WARM_UPS + ["recording"]
    assert gpu.on == "own"


class Noted(list):
    """An event that adds what is done with it to a common list of notes."""

    def wait(self) -> None:
        self.append("wait")

    def record(self) -> None:
        self.append("record")

    def synchronize(self) -> None:
        self.append("finish")


def test_a_replay_waits_for_the_one_before_on_whatever_stream_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Noted()
    monkeypatch.setattr(module, "end_of_replay", lambda device: noted)

    def record(work: Work) -> tuple[Replay, Tensor]:
        return lambda: noted.append("replay"), work()

    graphed = Graphed(nn.Identity(), lambda x: x + 1, record)
    with torch.inference_mode():
        for _ in range(2):
            graphed(torch.zeros(2))
        assert noted == ["wait", "replay", "record"] * 2
        for rows in range(3, 3 + module.KEPT):  # the first recording makes room
            graphed(torch.zeros(rows))
    assert noted.count("finish") == 1


def test_where_there_is_no_gpu_there_is_no_event() -> None:
    assert module.end_of_replay(torch.device("cpu")) is None


# What a recording reads


def test_a_buffer_that_moved_is_recorded_anew_though_it_is_not_saved() -> None:
    part, recorded = nn.Module(), []
    part.register_buffer("table", torch.ones(2), persistent=False)
    assert not part.state_dict()

    def record(work: Work) -> tuple[Replay, Tensor]:
        recorded.append(1)
        answer = work()
        return lambda: None, answer

    graphed = Graphed(part, lambda x: x * part.table, record)
    with torch.inference_mode():
        graphed(torch.ones(2))
        graphed(torch.ones(2))
        assert len(recorded) == 1
        part.table = torch.full((2,), 3.0)
        assert graphed(torch.ones(2)).tolist() == [3, 3]
    assert len(recorded) == 2

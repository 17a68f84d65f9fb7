"""The warm-up of a GPU before the first click, as far as a CPU can check it; and one test for a GPU."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from torch import Tensor, nn

from voxsam.interactive.session import Session
from voxsam.kernels import warm_up as module
from voxsam.kernels.warm_up import KEPT, Graphed, Replay, Work, fastest
from voxsam.network.network import VoxSAMNetwork
from voxsam.testing import stub_network, stub_scan

TOLERANCE = 1e-5


def fake_record(work: Work) -> tuple[Replay, Tensor]:
    """Like a recording on a GPU: the result is always in the same tensor, and a replay reads the inputs given to it."""
    answer = work().clone()
    return lambda: answer.copy_(work()), answer


# Choosing


def _slow(seconds: float, answer: Tensor) -> Tensor:
    time.sleep(seconds)
    return answer


def test_the_fastest_way_with_the_same_answer_is_chosen() -> None:
    answer = torch.tensor([1.0, -2.0])
    ways = {"plain": lambda: _slow(0.004, answer), "slower": lambda: _slow(0.008, answer), "faster": lambda: answer}
    assert fastest(ways, TOLERANCE) == "faster"
    assert fastest({"plain": lambda: answer, "slower": ways["slower"]}, TOLERANCE) == "plain"


@pytest.mark.parametrize("wrong", [[1.0, -2.1], [float("nan"), -2.0], [1.0, -2.0, 0.0]])
def test_a_way_with_another_answer_is_never_chosen(wrong: list[float]) -> None:
    ways = {"plain": lambda: _slow(0.002, torch.tensor([1.0, -2.0])), "wrong": lambda: torch.tensor(wrong)}
    assert fastest(ways, 1e-2) == "plain"
    assert fastest(ways, 0.1) == ("wrong" if wrong == [1.0, -2.1] else "plain")


def test_a_way_that_fails_is_never_chosen_and_why_is_logged_and_the_first_may_not_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails() -> Tensor:
        raise RuntimeError("no such kernel")

    assert fastest({"plain": lambda: torch.ones(1), "broken": fails}, TOLERANCE) == "plain"
    with caplog.at_level(logging.INFO, "voxsam.weights"):
        fastest({"plain": lambda: torch.ones(1), "broken": fails, "wrong": lambda: torch.zeros(1)}, TOLERANCE, "part")
    assert "part: broken is not taken, it failed" in caplog.text and "no such kernel" in caplog.text
    assert "part: wrong is not taken, its result is another than that of plain" in caplog.text
    with pytest.raises(RuntimeError, match="no such kernel"):
        fastest({"broken": fails, "fine": lambda: torch.ones(1)}, TOLERANCE)


# Recording


def _counted() -> tuple[nn.Linear, Graphed, list[int]]:
    linear, recorded = nn.Linear(3, 2), []

    def work(pair: tuple[Tensor, Tensor], scale: float) -> Tensor:
        return linear(pair[0] + pair[1]) * scale

    def record(work: Work) -> tuple[Replay, Tensor]:
        recorded.append(1)
        return fake_record(work)

    return linear, Graphed(linear, work, record), recorded


def test_a_replay_answers_for_its_own_inputs_and_no_later_one_changes_an_answer() -> None:
    linear, graphed, recorded = _counted()
    pairs = [(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(3)]
    with torch.no_grad():
        answers = [graphed(pair, 2.0) for pair in pairs]
        for pair, answer in zip(pairs, answers, strict=True):
            torch.testing.assert_close(answer, linear(pair[0] + pair[1]) * 2)
    assert len(recorded) == 1


def test_another_shape_number_or_place_of_the_weights_is_recorded_anew() -> None:
    linear, graphed, recorded = _counted()
    with torch.inference_mode():
        for rows, scale in ((4, 1.0), (5, 1.0), (4, 3.0), (4, 1.0)):
            x = torch.randn(rows, 3)
            torch.testing.assert_close(graphed((x, x), scale), linear(2 * x) * scale)
        assert len(recorded) == 3
        linear.weight.data = linear.weight.data.clone() + 1  # moved: a recording would read freed memory
        torch.testing.assert_close(graphed((x, x), 1.0), linear(2 * x))
        assert len(recorded) == 4
        for rows in range(10, 10 + 2 * KEPT):
            graphed((torch.zeros(rows, 3), torch.zeros(rows, 3)), 1.0)
    assert len(graphed._kept) == KEPT


def test_with_gradients_it_is_the_plain_work() -> None:
    linear, graphed, recorded = _counted()
    graphed((torch.ones(1, 3), torch.ones(1, 3)), 1.0).sum().backward()
    assert linear.weight.grad is not None and not recorded


# The whole network


@pytest.mark.parametrize("polarity", [True, False])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 40])
def test_clicks_that_are_filled_up_change_nothing(polarity: bool, count: int) -> None:
    network = stub_network(polarity=polarity)
    crop = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    points = torch.rand(1, count, 3, generator=torch.Generator().manual_seed(3)) * 15
    labels = (torch.arange(count)[None] % 3 != 1).long() if polarity else None
    with torch.inference_mode():
        features = network.encode(crop)
        prompt_features = network.sample(features, points)
        expected = network.decode(features, crop, points, prompt_features=prompt_features, labels=labels)
        more = module.filled_up(points, prompt_features, labels)
        found = network.decode(features, crop, more[0], prompt_features=more[1], labels=more[2])
    assert more[0].shape[1] == (4 if count <= 4 else 8 if count == 7 else 40)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("changes", [{"prompt_kind": "positional"}, {"prompt_levels": (3, 4)}])
def test_the_papers_other_prompts_are_filled_up_and_replayed_too(
    changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = stub_network().card
    torch.manual_seed(4)
    network = VoxSAMNetwork(card.model_copy(update={"config": card.config.model_copy(update=changes)})).eval()
    crop, points = torch.randn(1, 1, 16, 16, 16), torch.tensor([[[3.0, 4, 5], [9, 2, 11], [8, 8, 8]]])
    labels = torch.tensor([[1, 0, 1]])
    with torch.inference_mode():
        features = network.encode(crop)
        expected = network.decode(features, crop, points, labels=labels)
        monkeypatch.setattr(module, "fastest", _always("graph"))
        chosen = module.choose_ways(network, fake_record)
        assert chosen.pop("layout") in module.LAYOUTS
        assert chosen.keys() == {"mask_decoder.fused", "mask_decoder.forward", *_prompt_encoders(network)}
        assert set(chosen.values()) == {"graph"}
        for _ in range(2):
            found = network.decode(features, crop, points, labels=labels)
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def _prompt_encoders(network: VoxSAMNetwork) -> list[str]:
    return [f"{name}.forward" for name, _ in network.named_children() if name.startswith("prompt_encoder")]


def test_a_part_that_cannot_be_recorded_stays_as_it_is_and_the_others_are_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prompt encoder fails as on a GPU: then clicks need no padding either."""
    network, prompted = stub_network(), []
    original = network.prompt_encoder.forward

    def noting(_: object, *inputs: Tensor) -> Tensor:
        prompted.append(1)
        return original(*inputs)

    def record(work: Work) -> tuple[Replay, Tensor]:
        prompted.clear()
        recording = fake_record(work)
        if prompted:
            raise RuntimeError("operation not permitted when stream is capturing")
        return recording

    def first_that_works(ways: dict, tolerance: float, of: str) -> str:
        try:
            ways["graph" if "graph" in ways else "contiguous"]()
        except RuntimeError:
            return "plain"
        return "graph" if "graph" in ways else "contiguous"

    monkeypatch.setattr(type(network.prompt_encoder), "forward", noting)
    monkeypatch.setattr(module, "fastest", first_that_works)
    chosen = module.choose_ways(network, record)
    assert chosen == {
        "layout": "contiguous",
        "mask_decoder.fused": "graph",
        "mask_decoder.forward": "graph",
        "prompt_encoder.forward": "plain",
    }
    assert "forward" in network.mask_decoder.__dict__
    assert "forward" not in network.prompt_encoder.__dict__ and "decode" not in network.__dict__


def _always(name: str) -> object:
    """In place of `fastest`: every way runs, and the one of this name is taken where there is one."""

    def choose(ways: dict, tolerance: float, of: str) -> str:
        answers = {way: run() for way, run in ways.items()}
        first = next(iter(answers.values()))
        for answer in answers.values():
            torch.testing.assert_close(answer, first, atol=tolerance, rtol=tolerance)
        return name if name in ways else next(iter(ways))

    return choose


@pytest.mark.parametrize("taken", ["graph", "channels_last_3d", "plain"])
def test_a_session_answers_as_before_whatever_was_chosen(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = stub_scan()
    i, j, k = given.click

    def answers(network: VoxSAMNetwork) -> list[Tensor]:
        session, found = Session(network, given.scan, follow=False), []
        for step in range(6):
            session.click((i + step % 2, j, k), positive=step != 2)
            found.append(torch.from_numpy(session.probabilities.array.copy()))
        return found

    expected = answers(stub_network())
    network, keys = stub_network(), list(stub_network().state_dict())
    monkeypatch.setattr(module, "fastest", _always(taken))
    chosen = module.choose_ways(network, fake_record)
    assert taken in chosen.values()
    assert ("fused" in network.mask_decoder.__dict__) == (taken == "graph") == ("decode" in network.__dict__)
    assert list(network.state_dict()) == keys
    for one, other in zip(answers(network), expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
    network(torch.zeros(1, 1, 16, 16, 16), torch.ones(1, 1, 3)).sum().backward()  # it can still be trained


def test_on_a_cpu_nothing_is_done() -> None:
    network = stub_network()
    assert module.warm_up(network) == {}
    assert "decode" not in network.__dict__


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_answer_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    given = stub_scan()
    expected = Session(stub_network(), given.scan, follow=False)
    network = stub_network().to("cuda", dtype)
    chosen = module.warm_up(network)
    assert chosen.keys() == {"layout", "mask_decoder.fused", "mask_decoder.forward", "prompt_encoder.forward"}
    found = Session(network, given.scan, follow=False)
    for session in (expected, found):
        session.click(given.click)
        session.click((given.click[0] + 1, *given.click[1:]), positive=False)
    difference = abs(found.probabilities.array - expected.probabilities.array)
    assert difference.max() < 1e-3 if dtype == torch.float32 else difference.mean() < 0.05

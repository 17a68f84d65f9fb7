"""The hooks of a block: on every path through it, each sees the whole grid at its place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from voxsam.errors import UnsupportedError
from voxsam.kernels import block as kernels
from voxsam.kernels.block import FastBlock
from voxsam.network.adapters import ADAPTERS, AdapterKind, BlockHook, NoAdapter, adapter_kind
from voxsam.network.block import Block
from voxsam.network.image_encoder import ImageEncoder
from voxsam.testing import stub_network

CONFIG = stub_network().config
SLICES = CONFIG.model_copy(update={"tokens": "slices"})
GRID = (3, 5, 4)  # no multiple of the window of 2
WIDTH = CONFIG.width
TOLERANCE = 1e-5


class Noting(BlockHook):
    """Notes the calls, and adds a number that differs by place and token."""

    places = ("before_attention", "after_attention", "before_mlp", "after_mlp", "after_block")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        generator = torch.Generator().manual_seed(0)
        self.added = {place: torch.randn(*GRID, WIDTH, generator=generator) for place in self.places}

    def _note(self, place: str, x: Tensor) -> Tensor:
        self.calls.append(place)
        return x + self.added[place]

    def before_attention(self, x_BDHWc: Tensor) -> Tensor:
        return self._note("before_attention", x_BDHWc)

    def after_attention(self, y_BDHWc: Tensor) -> Tensor:
        return self._note("after_attention", y_BDHWc)

    def before_mlp(self, x_BDHWc: Tensor) -> Tensor:
        return self._note("before_mlp", x_BDHWc)

    def after_mlp(self, y_BDHWc: Tensor) -> Tensor:
        return self._note("after_mlp", y_BDHWc)

    def after_block(self, x_BDHWc: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._note("after_block", x_BDHWc), carried + 1 if carried is not None else torch.zeros(())


class Shifted(BlockHook):
    """Adds something computed from the normed token to query and value, but not to key."""

    between = False

    def change_qkv(self, normed_ntc: Tensor, qkv_ntk: Tensor) -> Tensor:
        return qkv_ntk + torch.cat([normed_ntc, torch.zeros_like(normed_ntc), 2 * normed_ntc], -1)


KIND: dict[str, type[Block]] = {}


@pytest.fixture(autouse=True, params=[Block, FastBlock])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on the block as it is, and on the fast one, in several chunks of which the last is not full."""
    monkeypatch.setitem(KIND, "block", request.param)
    monkeypatch.setattr(kernels, "CHUNK_TOKENS", 24)


def make(hook: BlockHook, number: int = 0, config=CONFIG) -> Block:
    torch.manual_seed(3)
    block = KIND["block"](config, number, hook)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


def tokens() -> Tensor:
    return torch.randn(2, *GRID, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", [CONFIG, SLICES], ids=["volume", "slices"])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("gradients", [True, False])
def test_each_place_is_reached_in_order_and_adds_what_it_says(config, number: int, gradients: bool) -> None:
    """Against a block without hooks, whose two halves are told apart by setting its mlp to 0."""
    hook, x = Noting(), tokens()
    block, plain = make(hook, number, config), make(NoAdapter(), number, config)
    attention_alone = make(NoAdapter(), number, config)
    for parameter in attention_alone.mlp.parameters():
        nn.init.zeros_(parameter)
    add = hook.added
    with torch.no_grad():
        before = x + add["before_attention"]
        between = attention_alone(before)[0] + add["after_attention"] + add["before_mlp"]
        mlp = plain.mlp(plain.norm2(between))
        expected = between + mlp + add["after_mlp"] + add["after_block"]
    with torch.set_grad_enabled(gradients):
        found, carried = block(x)
        again, carried = block(x, carried)
    assert hook.calls == list(Noting.places) * 2
    assert torch.equal(found, again)
    assert carried is not None and float(carried) == 1
    assert float((found.detach() - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("config", [CONFIG, SLICES], ids=["volume", "slices"])
@pytest.mark.parametrize("gradients", [True, False])
def test_query_and_value_change_as_weights_that_are_changed_alike(config, gradients: bool) -> None:
    block, plain, x = make(Shifted(), config=config), make(NoAdapter(), config=config), tokens()
    eye = torch.eye(WIDTH)
    with torch.no_grad():
        plain.attention.qkv.weight += torch.cat([eye, 0 * eye, 2 * eye])
        expected = plain(x)[0]
        unchanged = make(NoAdapter(), config=config)(x)[0]
    with torch.set_grad_enabled(gradients):
        found = block(x)[0].detach()
    assert float((found - expected).abs().max()) < TOLERANCE * float(expected.abs().max())
    assert float((found - unchanged).abs().max()) > 0.1


def test_a_block_leaves_the_tokens_that_it_is_given_as_they_are() -> None:
    x = tokens()
    before = x.clone()
    with torch.inference_mode():
        make(NoAdapter())(x)
    assert torch.equal(x, before)


def test_every_design_that_acts_between_attention_and_the_end_says_so() -> None:
    """`between` is declared, not detected: a design without it is safe, and one that denies it has no such method."""
    acting = ("after_attention", "before_mlp", "after_mlp")
    assert BlockHook.between
    for name, kind in ADAPTERS.items():
        config = CONFIG.model_copy(update={"adapter": name})
        hook = kind.make(config, 0, kind.shared(config) if kind.shared else None)
        acts = any(getattr(type(hook), place) is not getattr(BlockHook, place) for place in acting)
        assert hook.between or not acts, name


def test_what_a_block_hands_on_reaches_the_next_and_what_is_shared_is_the_encoders(monkeypatch) -> None:
    class Counting(BlockHook):
        def __init__(self, shared: nn.Module | None) -> None:
            super().__init__()
            self._shared = (shared,)
            self.heard: Tensor | None = None

        def after_block(self, x_BDHWc: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
            self.heard = carried
            shared = self._shared[0]
            assert isinstance(shared, nn.Linear)
            return x_BDHWc, shared.weight.sum() if carried is None else carried + 1

    kind = AdapterKind(lambda config, number, shared: Counting(shared), lambda config: nn.Linear(3, 1, bias=False))
    monkeypatch.setitem(ADAPTERS, "counting", kind)
    encoder = ImageEncoder(CONFIG.model_copy(update={"adapter": "counting"}))
    assert encoder.shared_adapter is not None
    nn.init.constant_(encoder.shared_adapter.weight, 2)
    with torch.inference_mode():
        encoder(torch.zeros(1, 1, 8, 8, 8))
    heard = [block.adapter.heard for block in encoder.blocks]
    assert heard[0] is None and [float(one) for one in heard[1:]] == [6, 7, 8]
    assert [name for name in encoder.state_dict() if "adapter" in name] == ["shared_adapter.weight"]


def test_an_adapter_that_is_not_known_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"the adapter other; expected one of none, spatial.*; check its name"):
        adapter_kind("other")

"""VoxSAM's models as systems: the same mask as in a session, whatever was predicted before; refusals."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import PromptError, UnsupportedError
from voxsam.interactive.automatic import segment_automatically
from voxsam.interactive.session import Session
from voxsam.lab.evaluation.systems import AutomaticSystem, SessionSystem
from voxsam.prompts import Point
from voxsam.testing import StubScan, stub_network, stub_scan


@pytest.fixture(scope="module")
def stub() -> StubScan:
    return stub_scan()


@pytest.fixture(scope="module")
def points(stub: StubScan) -> list[Point]:
    i, j, k = stub.click
    places = ((i, j, k), (i + 2, j, k), (i, j + 2, k - 1), (i - 1, j, k))
    return [Point.at_index(stub.scan.grid, at, number != 2) for number, at in enumerate(places)]


def test_a_system_answers_as_a_session_does(stub: StubScan, points: list[Point]) -> None:
    session = Session(stub_network(), stub.scan, keep_clicked=False)
    first, all_of_them = session.prompt(points[0]), session.prompt(*points[1:])
    opened = SessionSystem(stub_network()).open(stub.scan)
    assert (opened.segment(points[:1]).array == first.array).all() and first.array.any()
    assert (opened.segment(points).array == all_of_them.array).all()
    assert (first.array != all_of_them.array).any()


def test_a_mask_does_not_depend_on_what_was_asked_before(stub: StubScan, points: list[Point]) -> None:
    fresh = SessionSystem(stub_network()).open(stub.scan).segment(points[:3]).array
    opened = SessionSystem(stub_network()).open(stub.scan)
    for asked in (points[:1], points[:2], points, points[1:2], points[:1]):
        opened.segment(asked)
    assert (opened.segment(points[:3]).array == fresh).all()


def test_clicks_that_do_not_fit_one_crop_are_left_out(stub: StubScan, points: list[Point]) -> None:
    # The crop is 96 mm wide, the scan 132 mm: a click in each corner does not fit.
    corners = [Point.at_index(stub.scan.grid, at) for at in ((0, 0, 0), (43, 35, 21))]
    apart = [corners[0], corners[1], *corners[:1]]
    with pytest.raises(PromptError, match="mm apart with one crop"):
        Session(stub_network(), stub.scan, follow=False).prompt(*apart)
    opened = SessionSystem(stub_network(), follow=False).open(stub.scan)
    near = Point.at_index(stub.scan.grid, (2, 1, 1))
    kept = opened.segment([corners[0], near]).array
    assert (opened.segment([corners[0], corners[1], near]).array == kept).all()
    assert (opened.segment(corners).array == opened.segment(corners[:1]).array).all()


def test_an_automatic_system_is_the_sliding_window(stub: StubScan) -> None:
    network = stub_network(automatic=True)
    expected = segment_automatically(network, stub.scan).mask
    answer = AutomaticSystem(network).open(stub.scan).segment([])
    assert (answer.array == expected.array).all() and answer.grid.close_to(stub.scan.grid)
    assert 0 < np.count_nonzero(answer.array) < answer.array.size


def test_a_model_of_one_channel_gets_the_first_of_several(stub: StubScan, points: list[Point]) -> None:
    other = stub.scan.with_array(-stub.scan.array)
    alone, first = (SessionSystem(stub_network()).open(given) for given in (stub.scan, (stub.scan, other)))
    assert (first.segment(points).array == alone.segment(points).array).all()
    automatic = AutomaticSystem(stub_network(automatic=True))
    assert (automatic.open((stub.scan, other)).segment([]).array == automatic.open(stub.scan).segment([]).array).all()


def test_names_and_abilities() -> None:
    system, released = SessionSystem(stub_network()), SessionSystem(stub_network(polarity=False, name="released"))
    assert (system.name, system.takes_clicks, system.takes_negative) == ("stub", True, True)
    assert (released.name, released.takes_negative) == ("released", False)
    assert system.parameters == sum(p.numel() for p in stub_network().parameters())
    assert AutomaticSystem(stub_network(automatic=True)).takes_clicks is False


def test_the_wrong_kind_of_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="clicks for the model stub; expected no clicks: .* add --auto"):
        SessionSystem(stub_network(automatic=True))
    with pytest.raises(UnsupportedError, match="--auto with the model stub; .*leave out --auto"):
        AutomaticSystem(stub_network())

"""A remote system against a real VoxSAM server: its masks are those of the same model without a server."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

pytest.importorskip("nnInteractive")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "server"))

from serving import running

from voxsam.errors import InputError, UnsupportedError
from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate_scan
from voxsam.lab.evaluation.systems import SessionSystem
from voxsam.lab.systems.common_loop import compared_system
from voxsam.lab.systems.compared import Job
from voxsam.lab.systems.remote import RemoteSystem
from voxsam.prompts import Point
from voxsam.server.settings import Settings as ServerSettings
from voxsam.testing import StubScan, stub_network, stub_scan

SETTINGS = EvaluationSettings(clicks=(1, 3), trials=1, corrective=3)


@pytest.fixture(scope="module")
def stub() -> StubScan:
    return stub_scan()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running(ServerSettings(), stub_network()) as http:
        yield str(http.base_url)


def loaded(tmp_path: Path, **options) -> RemoteSystem:
    job, compared = Job(tmp_path, tmp_path, options=options), compared_system("remote")
    compared.check(job)
    compared.train(job, lambda line: None)
    assert compared.tuned_parameters(job) is None
    return compared.load(job)  # type: ignore[return-value]


def test_the_same_scores_as_without_a_server(server: str, stub: StubScan, tmp_path: Path):
    system, tumour = loaded(tmp_path, address=server), stub.truth.array > 0
    assert (system.name, system.takes_clicks, system.parameters) == ("nnInteractive server", True, None)
    there = list(evaluate_scan(system, "a", [stub.scan], tumour, SETTINGS))
    here = list(evaluate_scan(SessionSystem(stub_network()), "a", [stub.scan], tumour, SETTINGS))
    assert there == here
    assert len({row.scores.dice for row in there}) > 2 and max(row.scores.dice for row in there) > 0.01


def test_a_mask_does_not_depend_on_what_was_asked_before(server: str, stub: StubScan, tmp_path: Path):
    opened = loaded(tmp_path, address=server).open(stub.scan)
    i, j, k = stub.click
    one = [Point.at_index(stub.scan.grid, (i, j, k))]
    two = [*one, Point.at_index(stub.scan.grid, (i, j + 3, k), False)]
    first = opened.segment(one).array
    both = opened.segment(two).array
    assert (first != both).any() and first.any() and not np.shares_memory(first, both)
    assert (opened.segment(one).array == first).all()


def test_two_opened_scans_do_not_mix(server: str, stub: StubScan, tmp_path: Path):
    system = loaded(tmp_path, address=server, title="ours", negative=False)
    assert (system.name, system.takes_negative) == ("ours", False)
    flipped = stub.scan.with_array(np.ascontiguousarray(stub.scan.array[::-1]))
    click = [Point.at_index(stub.scan.grid, stub.click)]
    one, two = system.open(stub.scan), system.open(flipped)
    first, second = one.segment(click), two.segment(click)
    assert (first.array != second.array).any()
    assert (one.segment(click).array == first.array).all()
    assert first.grid == stub.scan.grid


def test_a_session_ends_with_its_scan(stub: StubScan):
    with running(ServerSettings(), stub_network()) as http:
        system = RemoteSystem(str(http.base_url), None, "one")
        opened = system.open(stub.scan)
        assert len(http.service.sessions.open) == 1
        del opened
        assert len(http.service.sessions.open) == 0


def test_a_server_that_is_not_there(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"{address} does not answer .*; expected a running nnInteractive server"):
        loaded(tmp_path, address=address)


def test_a_key_that_the_server_wants(tmp_path: Path):
    with running(ServerSettings(key=SecretStr("secret")), stub_network()) as http:
        address = str(http.base_url)
        with pytest.raises(InputError, match=r"refused \(401.*give the server's `api_key`"):
            loaded(tmp_path, address=address)
        assert loaded(tmp_path, address=address, api_key="secret").address == address


def test_what_the_server_refuses_is_told_in_its_words(stub: StubScan):
    with running(ServerSettings(), stub_network(polarity=False)) as http:
        opened = RemoteSystem(str(http.base_url), None, "one").open(stub.scan)
        click = Point.at_index(stub.scan.grid, stub.click, positive=False)
        with pytest.raises(InputError, match="a negative prompt for the model stub"):
            opened.segment([click])


def test_a_model_without_clicks_is_refused(tmp_path: Path):
    with (
        running(ServerSettings(), stub_network(automatic=True)) as http,
        pytest.raises(UnsupportedError, match="its model takes no clicks"),
    ):
        loaded(tmp_path, address=str(http.base_url))


def test_an_address_that_is_none(tmp_path: Path):
    for options in ({}, {"address": "localhost:80"}):
        with pytest.raises(InputError, match="of a remote system; expected http://HOST:PORT"):
            loaded(tmp_path, **options)

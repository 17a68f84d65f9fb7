"""One server with a small network of random weights, for all tests that need no other."""

from __future__ import annotations

import pytest
from nninteractive_server import running

from voxsam.testing import stub_network


@pytest.fixture(scope="session")
def network():
    return stub_network()


@pytest.fixture(scope="session")
def server(network):
    with running(network) as server:
        yield server

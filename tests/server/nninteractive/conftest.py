"""One server with the small network, for all tests that need no other server."""

from __future__ import annotations

import pytest
from nninteractive_server import running


@pytest.fixture(scope="session")
def server(network):
    with running(network) as server:
        yield server

"""Servers for the tests: a real uvicorn on a free local port, with a model of random weights."""

from __future__ import annotations

import pytest
from serving import running

from voxsam.io import write_volume
from voxsam.server.settings import Settings
from voxsam.testing import stub_network, stub_scan


@pytest.fixture(scope="session")
def network():
    """A small model with random weights."""
    return stub_network()


@pytest.fixture(scope="session")
def phantom():
    """A small scan on an anisotropic, oblique grid."""
    return stub_scan()


@pytest.fixture(scope="session")
def scans(tmp_path_factory, phantom):
    """A folder to serve, with the phantom in it and in a subfolder."""
    folder = tmp_path_factory.mktemp("scans")
    write_volume(phantom.scan, folder / "ct.nii.gz")
    (folder / "other").mkdir()
    write_volume(phantom.scan, folder / "other" / "Meier Hans.nrrd")
    return folder


@pytest.fixture
def server(tmp_path, network, scans):
    """A client of a server with the folder `scans`, all other settings as by default."""
    with running(Settings(state=tmp_path / "state", folders=(scans,)), network) as client:
        yield client

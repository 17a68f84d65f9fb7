"""One server for all tests of the page, which are skipped only if the browser or the built page is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.page.running import STATIC, Server, Viewer
from voxsam.io import read_volume, write_volume
from voxsam.testing import stub_scan


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest) -> tuple[Path, tuple[int, int, int]]:
    """A real CT (a phantom where there is none) and a voxel in its tumour."""
    try:
        data = request.getfixturevalue("shared_data") / "sarcoma_ct"
    except pytest.skip.Exception:
        return request.getfixturevalue("phantoms") / "phantom.nii.gz", stub_scan().click
    inside = np.argwhere(read_volume(data / "labelsTr" / "STS_003.nii.gz", labels=True).array)
    middle = inside[np.linalg.norm(inside - inside.mean(0), axis=1).argmin()]
    return data / "imagesTr" / "STS_003_0000.nii.gz", tuple(middle.tolist())


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with phantom.nii.gz, small enough to be opened in a moment."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_volume(stub_scan().scan, folder / "phantom.nii.gz")
    return folder


@pytest.fixture(scope="session")
def server(case: tuple[Path, tuple], phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (STATIC / "index.html").is_file():
        pytest.skip("the page is not built: run `make viewer` (it needs Node.js)")
    running = Server(tmp_path_factory.mktemp("server") / "state", phantoms, case[0].parent)
    running.start()
    yield running
    running.close()


@pytest.fixture
def viewer(browser, server: Server) -> Iterator[Viewer]:
    """The page, before a scan is open. Errors on it, or requests to anyone else, fail the test."""
    tab = Viewer(browser, server.address).go()
    yield tab
    tab.close()
    assert tab.faults == []

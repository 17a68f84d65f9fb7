"""Fixtures of all tests: real scans and a browser, if available; `--shuffle SEED` runs the tests in a random order."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", metavar="SEED", help="run files, and the tests in each, in an order drawn by SEED")


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("shuffle")
    return seed and f"order: --shuffle {seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, because they share fixtures; run files with slow tests first."""
    seed = config.getoption("shuffle")
    if not seed:
        return
    draw, files = random.Random(seed), {item.path: [] for item in items}
    for item in items:
        files[item.path].append(item)
    order = draw.sample(sorted(files), len(files))
    order.sort(key=lambda path: all(item.get_closest_marker("slow") is None for item in files[path]))
    items[:] = [item for path in order for item in draw.sample(files[path], len(files[path]))]


def _shared() -> Path:
    return Path(os.environ.get("VOXSAM_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans (set VOXSAM_SHARED to the folder that holds `data/`); CI always has it."""
    folder = _shared() / "data"
    if not folder.is_dir():
        pytest.skip("real scans are absent: set VOXSAM_SHARED to the folder that holds data/ and reference/")
    return folder


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of reference values of the released code (golden files and the checkpoint generator)."""
    folder = _shared() / "reference"
    if not folder.is_dir():
        pytest.skip("reference values are absent: set VOXSAM_SHARED to the folder that holds data/ and reference/")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium, run by Playwright, for every test of a page."""
    pytest.importorskip("playwright", reason="Playwright is absent: pip install playwright")
    from tests.page.running import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("Chromium is absent: install the system's package (Debian: chromium)")
    with chromium() as running:
        yield running

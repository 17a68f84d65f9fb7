"""Fixtures shared by all tests: where the real scans lie, if they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


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

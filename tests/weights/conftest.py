"""Fixtures of the tests of model files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def models_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder of its own, and no packaged models, for one test."""
    home = tmp_path_factory.mktemp("models")
    monkeypatch.setenv("VOXSAM_HOME", str(home))
    monkeypatch.setattr("voxsam.weights.checkpoint.PACKAGED_FOLDER", home / "packaged")
    return home

"""A project of three small scans on anisotropic, oblique grids, and the input that readers would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxsam.io import write_volume
from voxsam.project import Project
from voxsam.testing import StubScan, stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

CASES = ("a", "b", "deep__c")


@pytest.fixture(scope="session")
def given() -> dict[str, StubScan]:
    """The scan, mask and click of each case."""
    return {case: stub_scan(seed) for seed, case in enumerate(CASES)}


@pytest.fixture(scope="session")
def scans(given: dict[str, StubScan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scans: a.nii.gz, b_0000.nii.gz, deep/c.mha."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "deep").mkdir()
    for case, name in zip(CASES, ("a.nii.gz", "b_0000.nii.gz", "deep/c.mha"), strict=True):
        write_volume(given[case].scan, folder / name)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of random weights."""
    path = tmp_path_factory.mktemp("models") / "first.safetensors"
    save_model(stub_network(name="first"), path)
    return path


@pytest.fixture
def project(scans: Path, model: Path, tmp_path: Path) -> Project:
    """A new project of those scans."""
    return Project.new(tmp_path / "project", scans, start=str(model))

"""Fixtures of the cohort tests: a folder of scans, clicks in them, and models."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxsam.io import write_volume
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, a table with a click in each (the second in mm), and two models."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["scan,i,j,k,x_mm,y_mm,z_mm"]
    for seed in SEEDS:
        given = stub_scan(seed)
        write_volume(given.scan, folder / f"s{seed}.nii.gz")
        at = given.scan.grid.index_to_world(given.click) if seed == 1 else given.click
        numbers = ",".join(f"{float(n):.4f}" if seed == 1 else str(n) for n in at)
        lines.append(f"s{seed}.nii.gz,,,,{numbers}" if seed == 1 else f"s{seed}.nii.gz,{numbers},,,")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    save_model(stub_network(), folder / "clicks.safetensors")
    save_model(stub_network(automatic=True), folder / "auto.safetensors")
    return folder

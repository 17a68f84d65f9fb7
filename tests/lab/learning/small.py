"""A project of small bodies with one bright ball each, and a start model that trains in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxsam.geometry import Grid
from voxsam.io import write_volume
from voxsam.project import Project
from voxsam.prompts import Point
from voxsam.testing import stub_network
from voxsam.volume import Volume
from voxsam.weights.checkpoint import save_model

SHAPE, SPACING_MM = (40, 44, 22), (4.0, 3.5, 6.0)
CENTRE = (20, 18, 10)


def body(seed: int) -> tuple[Volume, Volume]:
    """Soft tissue of 60 HU in air, with noise and a ball of 160 HU and 44 mm around CENTRE; and the ball's mask."""
    rng = np.random.default_rng(seed)
    grid = Grid.from_spacing(SHAPE, SPACING_MM, axes="LPS")
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    ball = (((index - CENTRE) * SPACING_MM) ** 2).sum(-1) < 22**2
    wide = ((index[..., :2] - np.array(SHAPE[:2]) / 2) * SPACING_MM[:2] / (75, 72)) ** 2
    array = np.where(wide.sum(-1) < 1, 60.0, -1000.0) + 100 * ball + rng.normal(0, 5, SHAPE)
    return Volume(np.rint(array).astype(np.int16), grid, "CT"), Volume(ball.astype(np.uint8), grid, "SEG")


def start_model(path: Path) -> Path:
    """A model file "first" with random weights."""
    save_model(stub_network(name="first"), path)
    return path


def write_scans(folder: Path, count: int) -> None:
    """s0.nii.gz, s1.nii.gz, ..."""
    folder.mkdir()
    for seed in range(count):
        write_volume(body(seed)[0], folder / f"s{seed}.nii.gz")


def make_project(folder: Path, count: int = 5) -> Project:
    """A project whose scans s0, s1, ... are all done, with one click each."""
    write_scans(folder / "scans", count)
    project = Project.new(folder / "project", folder / "scans", str(start_model(folder / "first.safetensors")))
    for seed in range(count):
        scan, mask = body(seed)
        project.done(f"s{seed}", mask, [Point.at_index(scan.grid, CENTRE)], scan=scan)
    return project

"""Cohorts on Ray: what the driver does itself, what reaches the workers, and the same masks as without Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from voxsam.batch import run
from voxsam.batch import worker as cohort_worker
from voxsam.batch.listing import ScanTask, list_cohort
from voxsam.batch.run import run_cohort
from voxsam.batch.worker import BatchOptions, ScanResult, Worker
from voxsam.cli import main
from voxsam.errors import UnsupportedError
from voxsam.io import read_volume


def _failing(jobs: Sequence[ScanTask], output: Path) -> Iterator[ScanResult]:
    """A runner that makes no mask."""
    return (ScanResult(job.name, str(job.images[0]), "failed") for job in jobs)


@pytest.fixture
def handed_out(monkeypatch: pytest.MonkeyPatch) -> list[BatchOptions]:
    """The settings that a run gives to Ray's workers; Ray itself is not there, and every scan fails."""
    seen: list[BatchOptions] = []
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    def rows(jobs: Sequence[ScanTask], output: Path, settings: BatchOptions) -> Iterator[ScanResult]:
        seen.append(settings)
        return _failing(jobs, output)

    monkeypatch.setattr(run, "_rows_by_ray", rows)
    return seen


def test_without_ray_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'voxsam\[ray\]'"):
        run.ray_runner(BatchOptions())


def test_rays_worker_gives_the_rows_of_its_share(folder: Path, tmp_path: Path) -> None:
    """The function that Ray calls on another machine is called here."""
    jobs = list_cohort(folder / "clicks.csv", tmp_path, clicks=True)
    worker = run._RayWorker(BatchOptions(str(folder / "clicks.safetensors"), "cpu"), jobs, tmp_path)
    rows = [ScanResult(**json.loads(text)) for text in worker({"id": np.array([2, 0])})["row"]]
    assert [(row.name, row.status) for row in rows] == [("s2", "done"), ("s0", "done")]


def test_the_workers_find_the_model_in_any_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_out: list[BatchOptions]
) -> None:
    monkeypatch.chdir(folder)
    run.ray_runner(BatchOptions("clicks.safetensors", "cpu"))([], tmp_path)
    run.ray_runner(BatchOptions("voxsam-tiny", "cpu"))([], tmp_path)
    assert [settings.model for settings in handed_out] == [str(folder / "clicks.safetensors"), "voxsam-tiny"]


def test_the_threads_reach_the_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_out: list[BatchOptions]
) -> None:
    words = ["--model", str(folder / "clicks.safetensors"), "--device", "cpu", "--ray", "--threads", "1"]
    jobs, segment, used = list_cohort(folder / "clicks.csv", tmp_path, clicks=True), Worker._segment, []
    monkeypatch.setattr(Worker, "_segment", lambda *given: used.append(torch.get_num_threads()) or segment(*given))
    before = torch.get_num_threads()
    try:
        assert main(["batch", str(folder / "clicks.csv"), "-o", str(tmp_path / "out"), *words]) == 1
        torch.set_num_threads(2)  # another process, on a machine of two cores
        run._RayWorker(handed_out[0], jobs, tmp_path)({"id": np.array([0])})
        assert used == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_driver_needs_no_gpu_and_warms_nothing_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[object] = []
    monkeypatch.setattr(cohort_worker, "warm_up", warmed.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("voxsam.batch.run.precisions", lambda device: ("float32",))
    jobs = list_cohort(folder / "clicks.csv", tmp_path, clicks=True)
    settings = BatchOptions(str(folder / "clicks.safetensors"), "cuda", "bf16")
    assert len(run_cohort(jobs, tmp_path, settings, runner=_failing).failed) == len(jobs) and not warmed
    with pytest.raises(UnsupportedError, match="'abacus'"):
        run_cohort(jobs, tmp_path, BatchOptions(settings.model, "abacus"), runner=_failing)
    with pytest.raises(UnsupportedError, match="'half'"):
        run_cohort(jobs, tmp_path, BatchOptions(settings.model, "cuda", "half"), runner=_failing)  # type: ignore[arg-type]


def test_a_worker_warms_up_once_and_only_for_a_scan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[object] = []
    monkeypatch.setattr(cohort_worker, "warm_up", warmed.append)
    jobs = list_cohort(folder / "clicks.csv", tmp_path, clicks=True)
    worker = Worker(BatchOptions(str(folder / "clicks.safetensors"), "cpu"))
    assert list(worker.run([], tmp_path)) == [] and not warmed
    for job in jobs[:2]:
        list(worker.run([job], tmp_path))
    assert warmed == [worker.model]


@pytest.mark.slow
def test_ray_makes_the_same_masks(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    settings = BatchOptions(str(folder / "clicks.safetensors"), "cpu")
    jobs = list_cohort(folder / "clicks.csv", tmp_path / "ray", clicks=True)
    expected = run_cohort(jobs, tmp_path / "plain", settings)
    outcome = run_cohort(jobs, tmp_path / "ray", settings, runner=run.ray_runner(settings))
    assert [row.volume_ml for row in outcome.rows] == [row.volume_ml for row in expected.rows]
    for job in jobs:
        one, other = (read_volume(tmp_path / kind / f"{job.name}.nii.gz", labels=True) for kind in ("plain", "ray"))
        np.testing.assert_array_equal(one.array, other.array)

"""A cohort from end to end: the same masks as one by one, resumed, spoiled by no failure; the command line."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from voxsam.automatic import mask_of, segment_automatically
from voxsam.cli import main
from voxsam.cohort import on_ray
from voxsam.cohort.ledger import TABLE, read_table
from voxsam.cohort.listing import Job, list_cohort
from voxsam.cohort.overlap import AHEAD
from voxsam.cohort.run import Outcome, run_cohort
from voxsam.cohort.worker import Row, Settings, Worker, threads_beside
from voxsam.errors import PromptError, UnsupportedError
from voxsam.io import read_volume, write_volume
from voxsam.model.checkpoint import save_model
from voxsam.session import Session
from voxsam.testing import stub_network, stub_scan

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, a table of a click in each (the second in mm), and two models."""
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


def _run(folder: Path, output: Path, **changes: object) -> Outcome:
    settings = Settings(str(folder / "clicks.safetensors"), "cpu")
    settings = replace(settings, **{k: v for k, v in changes.items() if k != "again"})  # type: ignore[arg-type]
    source = folder if settings.automatic else folder / "clicks.csv"
    jobs = list_cohort(source, output, not settings.automatic)
    return run_cohort(jobs, output, settings, again=bool(changes.get("again")))


@pytest.mark.parametrize("ahead", [0, AHEAD])
def test_the_masks_are_those_of_a_session_for_each_scan(folder: Path, tmp_path: Path, ahead: int) -> None:
    outcome = _run(folder, tmp_path, ahead=ahead)
    assert [(row.name, row.status, row.error) for row in outcome.rows] == [(f"s{n}", "done", "") for n in SEEDS]
    volumes = []
    for seed, row in zip(SEEDS, outcome.rows, strict=True):
        given = stub_scan(seed)
        expected = Session(stub_network(), given.scan).click(given.click)
        found = read_volume(tmp_path / f"s{seed}.nii.gz", labels=True)
        np.testing.assert_array_equal(found.array, expected.array)
        assert found.grid.close_to(given.scan.grid)
        assert row.volume_ml == pytest.approx(expected.volume_ml, abs=1e-3)
        volumes.append(row.volume_ml)
    assert len(set(volumes)) == len(SEEDS) and min(volumes) > 0


def test_automatic_masks_are_those_of_segment_automatically(folder: Path, tmp_path: Path) -> None:
    outcome = _run(folder, tmp_path, automatic=True, model=str(folder / "auto.safetensors"), overlap=0.3)
    assert [row.name for row in outcome.rows] == ["s0", "s1", "s2"] and not outcome.failed
    scan = stub_scan(1).scan
    expected = mask_of(segment_automatically(stub_network(automatic=True), scan, overlap=0.3))
    found = read_volume(tmp_path / "s1.nii.gz", labels=True)
    np.testing.assert_array_equal(found.array, expected.array)
    assert 0 < found.array.mean() < 1


def test_what_is_finished_is_kept_and_what_changed_is_made_again(folder: Path, tmp_path: Path) -> None:
    first = _run(folder, tmp_path)
    os.utime(tmp_path / "s0.nii.gz", (1, 1))
    (tmp_path / "s2.nii.gz").unlink()
    second = _run(folder, tmp_path)
    assert (first.made, second.made) == (3, 1)
    assert (tmp_path / "s0.nii.gz").stat().st_mtime == 1
    assert (tmp_path / "s2.nii.gz").is_file() and [row.name for row in second.rows] == ["s0", "s1", "s2"]
    assert _run(folder, tmp_path).made == 0
    assert _run(folder, tmp_path, follow=False).made == 3  # made in another way
    assert _run(folder, tmp_path, follow=False, again=True).made == 3


def test_a_row_that_a_crash_cut_off_is_made_again(folder: Path, tmp_path: Path) -> None:
    _run(folder, tmp_path)
    table = tmp_path / TABLE
    text = table.read_text()
    table.write_text(text[: len(text) - 30])  # in the middle of the last line
    assert set(read_table(tmp_path)) == {"s0", "s1"}
    assert _run(folder, tmp_path).made == 1
    assert set(read_table(tmp_path)) == {"s0", "s1", "s2"}


def test_an_interrupted_run_leaves_whole_files_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, segment = [], Worker._segment

    def stopped(worker: Worker, job: Job, opened: object) -> object:
        calls.append(job.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return segment(worker, job, opened)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "_segment", stopped)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, tmp_path)
    monkeypatch.undo()
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"s0.nii.gz", "s1.nii.gz", TABLE}, "no temporary file, and no third mask"
    for name in left - {TABLE}:
        assert read_volume(tmp_path / name, labels=True).array.any()
    outcome = _run(folder, tmp_path)
    assert 1 <= outcome.made <= 3 and not outcome.failed


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((0.2, 0.5, 0.2), 3), ((0.2, 45.0, 0.2), 4), ((1.0, 40.0, 0.5), 4), ((None, None, None), 4)],
)
def test_files_get_a_core_of_their_own_where_they_take_long_beside_the_network(seconds: tuple, expected: int) -> None:
    reading, segmenting, writing = seconds
    row = Row("a", "a.nii", "done", reading_s=reading, segmenting_s=segmenting, writing_s=writing)
    assert threads_beside(row, 4) == expected
    assert threads_beside(row, 1) == 1


def test_the_threads_are_as_before_when_a_run_ends(folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    _run(folder, tmp_path)
    assert torch.get_num_threads() == before


def test_one_broken_scan_costs_its_own_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 2):
        (tmp_path / f"s{seed}.nii.gz").write_bytes((folder / f"s{seed}.nii.gz").read_bytes())
    (tmp_path / "s1.nii.gz").write_bytes(b"no gzip at all")
    i, j, k = stub_scan(0).click
    lines = ["scan,i,j,k", f"s0.nii.gz,{i},{j},{k}", "s1.nii.gz,1,2,3", "s2.nii.gz,999,0,0"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    words = ["--model", str(folder / "clicks.safetensors"), "--device", "cpu"]
    assert main(["batch", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), *words]) == 1
    said = capsys.readouterr().out
    assert "s1 failed: s1.nii.gz is not a gzip file" in said and "1 made, 2 failed" in said
    with open(tmp_path / "out" / TABLE, newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {"s0": "done", "s1": "failed", "s2": "failed"}
    assert "outside the scan" in rows["s2"]["error"] and float(rows["s0"]["volume_ml"]) > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"s0.nii.gz", TABLE}


def test_a_click_outside_the_mask_is_remarked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = stub_scan(0).scan.with_array(np.zeros_like(stub_scan(0).scan.array, dtype=np.uint8), "SEG")
    monkeypatch.setattr(Session, "prompt", lambda session, *prompts: empty)
    rows = _run(folder, tmp_path).rows
    assert rows[0].messages == "1 of 1 clicked voxels are not in the mask: look at it with care"
    assert rows[0].volume_ml == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--auto"], "a model trained without clicks"),
        (["--suffix", ".png"], "--suffix .png"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_serve_any_scan_is_refused_before_the_first(
    folder: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder if "--auto" in more else folder / "clicks.csv"
    model = ["--model", str(folder / "clicks.safetensors"), "--device", "cpu"]
    assert main(["batch", str(source), "-o", str(tmp_path / "out"), *model, *more]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_clicks_that_the_model_does_not_take_are_refused(folder: Path, tmp_path: Path) -> None:
    save_model(stub_network(polarity=False), tmp_path / "positive.safetensors")
    i, j, k = stub_scan(0).click
    (tmp_path / "t.csv").write_text(f"scan,i,j,k,positive\na.nii,{i},{j},{k},1\na.nii,1,2,3,0\n")
    settings = Settings(str(tmp_path / "positive.safetensors"), "cpu")
    jobs = list_cohort(tmp_path / "t.csv", tmp_path / "out", clicks=True)
    with pytest.raises(UnsupportedError, match=r"a negative click \(a\) for the model stub"):
        run_cohort(jobs, tmp_path / "out", settings)
    with pytest.raises(PromptError, match="b without a click"):
        run_cohort([Job("b", (tmp_path / "b.nii",))], tmp_path / "out", settings)


def test_a_mask_can_be_a_segmentation_of_its_dicom_series(folder: Path, tmp_path: Path) -> None:
    """NIfTI scans have no series: each says so, and none is read by the network."""
    pytest.importorskip("highdicom")
    outcome = _run(folder, tmp_path, suffix=".seg.dcm")
    assert len(outcome.failed) == 3 and "DICOM" in outcome.failed[0].error


def test_without_ray_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'voxsam\[ray\]'"):
        on_ray.ray_runner(Settings())


def test_rays_worker_gives_the_rows_of_its_share(folder: Path, tmp_path: Path) -> None:
    """What Ray calls on another machine, called here."""
    jobs = list_cohort(folder / "clicks.csv", tmp_path, clicks=True)
    worker = on_ray._RayWorker(Settings(str(folder / "clicks.safetensors"), "cpu"), jobs, tmp_path)
    rows = [Row(**json.loads(text)) for text in worker({"id": np.array([2, 0])})["row"]]
    assert [(row.name, row.status) for row in rows] == [("s2", "done"), ("s0", "done")]


@pytest.mark.slow
def test_ray_makes_the_same_masks(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    expected = _run(folder, tmp_path / "plain")
    settings = Settings(str(folder / "clicks.safetensors"), "cpu")
    jobs = list_cohort(folder / "clicks.csv", tmp_path / "ray", clicks=True)
    outcome = run_cohort(jobs, tmp_path / "ray", settings, runner=on_ray.ray_runner(settings))
    assert [row.volume_ml for row in outcome.rows] == [row.volume_ml for row in expected.rows]
    for seed in SEEDS:
        one, other = (read_volume(tmp_path / kind / f"s{seed}.nii.gz", labels=True) for kind in ("plain", "ray"))
        np.testing.assert_array_equal(one.array, other.array)

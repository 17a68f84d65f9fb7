"""A cohort from end to end: the same masks as one by one, resuming, failures that spoil nothing; the command line."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.known_model import KnownModel, block_scan, upright
from voxsam.batch.listing import ScanTask, TableClick, list_cohort
from voxsam.batch.run import TABLE, Ledger, Outcome, Runner, read_table, run_cohort
from voxsam.batch.worker import AHEAD, BatchOptions, ScanResult, Worker, mask_path, threads_beside
from voxsam.cli import main
from voxsam.errors import FileError, PromptError, UnsupportedError
from voxsam.interactive.automatic import segment_automatically
from voxsam.interactive.predictor import Prediction
from voxsam.interactive.session import Session
from voxsam.io import read_volume, write_volume
from voxsam.network.classes import Classes, features_under
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

SEEDS = (0, 1, 2)  # of the fixture's scans


def _run(folder: Path, output: Path, **changes: object) -> Outcome:
    settings = BatchOptions(str(folder / "clicks.safetensors"), "cpu")
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
    expected = segment_automatically(stub_network(automatic=True), scan, overlap=0.3).mask
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


def test_masks_of_other_code_are_made_again_whatever_its_version(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BatchOptions(str(folder / "clicks.safetensors"), "cpu")
    job = ScanTask("s0", (folder / "s0.nii.gz",), (TableClick((1, 1, 1)),))

    def make(jobs: Sequence[ScanTask], output: Path) -> Iterator[ScanResult]:
        for job in jobs:
            mask_path(output, job, settings).touch()
            yield ScanResult(job.name, str(job.images[0]), "done")

    assert [run_cohort([job], tmp_path, settings, runner=make).made for _ in range(2)] == [1, 0]
    monkeypatch.setattr("voxsam.batch.run.code_sha256", lambda: "of another commit")
    assert [run_cohort([job], tmp_path, settings, runner=make).made for _ in range(2)] == [1, 0]


def test_a_mask_in_another_format_does_not_vouch_for_the_first(folder: Path, tmp_path: Path) -> None:
    """TableClick 1 as .nii.gz, click 2 as .nrrd, click 2 as .nii.gz: the file of the first run is of click 1."""
    for place, suffix in (((1, 1, 1), ".nii.gz"), ((2, 2, 2), ".nrrd"), ((2, 2, 2), ".nii.gz")):
        settings = BatchOptions(str(folder / "clicks.safetensors"), "cpu", suffix=suffix)

        def make(jobs: Sequence[ScanTask], output: Path, settings: BatchOptions = settings) -> Iterator[ScanResult]:
            for job in jobs:
                mask_path(output, job, settings).write_text(str(job.clicks[0].place))
                yield ScanResult(job.name, str(job.images[0]), "done")

        job = ScanTask("s0", (folder / "s0.nii.gz",), (TableClick(place),))
        run_cohort([job], tmp_path, settings, runner=make)
        assert mask_path(tmp_path, job, settings).read_text() == str(place)


@pytest.mark.parametrize("again", [False, True])
def test_a_shorter_list_leaves_the_lines_of_the_other_scans(folder: Path, tmp_path: Path, again: bool) -> None:
    jobs = list_cohort(folder / "clicks.csv", tmp_path, clicks=True)
    settings = BatchOptions(str(folder / "clicks.safetensors"), "cpu")

    def make(volume_ml: float) -> Runner:
        return lambda jobs, output: (ScanResult(job.name, str(job.images[0]), "done", volume_ml) for job in jobs)

    run_cohort(jobs, tmp_path, settings, runner=make(1.0))
    before = read_table(tmp_path)
    outcome = run_cohort(jobs[1:2], tmp_path, settings, again=again, runner=make(2.0))
    assert [row.name for row in outcome.rows] == ["s1"]
    assert read_table(tmp_path) == {**before, "s1": replace(before["s1"], volume_ml=2.0)}
    assert before.keys() == {"s0", "s1", "s2"}


def test_a_row_with_a_number_of_a_spreadsheet_is_as_if_not_there(tmp_path: Path) -> None:
    with Ledger(tmp_path, [ScanResult(name, f"{name}.nii", "done", 1.25, key="0") for name in ("s0", "s1")]) as ledger:
        ledger.add(ScanResult("s2", "s2.nii", "done", 2.5, key="0"))
    table = tmp_path / TABLE
    table.write_text(table.read_text().replace(",2.5,", ",2;5,"))
    assert {name: row.volume_ml for name, row in read_table(tmp_path).items()} == {"s0": 1.25, "s1": 1.25}


def test_a_model_with_classes_names_what_each_mask_looks_like(folder: Path, tmp_path: Path) -> None:
    """There is a class for each scan, whose mean is that of the features under the scan's mask."""
    network, seen, names = stub_network(), [], [f"like s{seed}" for seed in SEEDS]
    for seed in SEEDS:
        session = Session(network, stub_scan(seed).scan)
        session.click(stub_scan(seed).click)
        window, probability = session.prediction.pieces[0]
        tokens = session.predictor.encoded.get(window).features[-1][0].numpy()
        seen.append(features_under(tokens, probability > 0.5)[None])
    network.card = network.card.model_copy(update={"classes": Classes.fit(names, [1, 2, 3], seen)})
    save_model(network, tmp_path / "classes.safetensors")
    rows = _run(folder, tmp_path, model=str(tmp_path / "classes.safetensors")).rows
    assert [row.class_name for row in rows] == names
    assert [row.class_name for row in read_table(tmp_path).values()] == names
    assert {row.class_name for row in _run(folder, tmp_path / "without").rows} == {""}


def test_a_table_from_before_classes_is_read(tmp_path: Path) -> None:
    row = ScanResult("s0", "s0.nii", "done", 1.25, 8.5, "bright", key="0")
    with Ledger(tmp_path, [row]):
        pass
    assert read_table(tmp_path) == {"s0": row}
    table = tmp_path / TABLE
    table.write_text(table.read_text().replace(",class_name", "").replace(",bright", ""))
    assert read_table(tmp_path) == {"s0": replace(row, class_name="")}


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

    def stopped(worker: Worker, job: ScanTask, opened: object) -> object:
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
    row = ScanResult("a", "a.nii", "done", reading_s=reading, segmenting_s=segmenting, writing_s=writing)
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
    assert "s1 failed: s1.nii.gz does not hold a NIfTI image" in said and "1 made, 2 failed" in said
    with open(tmp_path / "out" / TABLE, newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {"s0": "done", "s1": "failed", "s2": "failed"}
    assert "outside the scan" in rows["s2"]["error"] and float(rows["s0"]["volume_ml"]) > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"s0.nii.gz", TABLE}


def test_a_click_outside_the_mask_is_remarked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prediction, "on_scan", lambda self: ())
    rows = _run(folder, tmp_path).rows
    at = ",".join(map(str, stub_scan(0).click))
    assert rows[0].messages.endswith(f"not in the mask, though clicked as tumour: {at}; look at the result with care")
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
    settings = BatchOptions(str(tmp_path / "positive.safetensors"), "cpu")
    jobs = list_cohort(tmp_path / "t.csv", tmp_path / "out", clicks=True)
    with pytest.raises(UnsupportedError, match=r"a negative click \(a\) for the model stub"):
        run_cohort(jobs, tmp_path / "out", settings)
    with pytest.raises(PromptError, match="b without a click"):
        run_cohort([ScanTask("b", (tmp_path / "b.nii",))], tmp_path / "out", settings)


def test_a_mask_can_be_a_segmentation_of_its_dicom_series(folder: Path, tmp_path: Path) -> None:
    """NIfTI scans have no series: each says so, and none is read by the network."""
    pytest.importorskip("highdicom")
    outcome = _run(folder, tmp_path, suffix=".seg.dcm")
    assert len(outcome.failed) == 3 and "DICOM" in outcome.failed[0].error


def _words(folder: Path, table: Path, output: Path, *more: str) -> list[str]:
    model = ["--model", str(folder / "clicks.safetensors"), "--device", "cpu", "--quiet"]
    return ["batch", str(table), "-o", str(output), *model, *more]


@pytest.mark.parametrize("link", [False, True])
def test_no_mask_replaces_a_scan(folder: Path, tmp_path: Path, link: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The output folder is that of the scans, by its name or through a link."""
    scans, output = tmp_path / "scans", tmp_path / "link" if link else tmp_path / "scans"
    scans.mkdir()
    if link:
        output.symlink_to(scans, target_is_directory=True)
    before = (folder / "s0.nii.gz").read_bytes()
    (scans / "s0.nii.gz").write_bytes(before)
    i, j, k = stub_scan(0).click
    (scans / "t.csv").write_text(f"scan,name,i,j,k\ns0.nii.gz,other,{i},{j},{k}\ns0.nii.gz,,{i},{j},{k}\n")
    assert main(_words(folder, scans / "t.csv", output)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{output / 's0.nii.gz'} is an input itself" in line and "choose another folder with -o" in line
    assert (scans / "s0.nii.gz").read_bytes() == before
    assert {path.name for path in scans.iterdir()} == {"s0.nii.gz", "t.csv"}


def test_no_mask_replaces_the_model_or_a_scan_that_is_still_to_come(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.nii.gz"
    model.write_bytes((folder / "clicks.safetensors").read_bytes())
    click = (TableClick(stub_scan(0).click),)
    for job, words in (
        (ScanTask("model", (folder / "s0.nii.gz",), click), "model.nii.gz is an input itself"),
        (
            ScanTask("gone", (folder / "s0.nii.gz", tmp_path / "x" / ".." / "gone.nii.gz"), click),
            "gone.nii.gz is an input",
        ),
    ):
        with pytest.raises(FileError, match=words):
            run_cohort([job], tmp_path, BatchOptions(str(model), "cpu"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.nii.gz"]


def test_a_list_of_scans_that_is_named_as_the_table_is_not_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"scan,name,i,j,k\n{folder / 's0.nii.gz'},a,1,2,3\n"
    (tmp_path / TABLE).write_text(text)
    assert main(_words(folder, tmp_path / TABLE, tmp_path, "--again")) == 2
    assert f"{tmp_path / TABLE} with other columns; expected the table of a cohort" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [TABLE] and (tmp_path / TABLE).read_text() == text


def test_a_click_on_the_scans_last_face_is_of_the_last_voxel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is known: the block of voxels that touches that face. A click beside the block gets a remark."""
    scan = block_scan(upright(20, 18, 16), ((15, 20), (6, 11), (5, 10)))
    write_volume(scan, tmp_path / "scan.nii.gz")
    known = KnownModel()
    monkeypatch.setattr("voxsam.batch.worker.load_model", lambda *_: known)
    monkeypatch.setattr("voxsam.interactive.images.not_hounsfield", lambda _: "")  # nor are they
    places = [[(19.5, 8, 7)], [(19.5, 8, 7), (19.5, 17.5, 15.5)]]
    clicks = [tuple(TableClick(tuple(scan.grid.index_to_world(at)), in_mm=True) for at in some) for some in places]
    jobs = [ScanTask(f"n{len(some)}", (tmp_path / "scan.nii.gz",), some) for some in clicks]
    one, two = Worker(BatchOptions(device="cpu", ahead=0, follow=False)).run(jobs, tmp_path)
    assert (one.status, one.messages, one.error) == ("done", "", "")
    found = read_volume(tmp_path / "n1.nii.gz", labels=True)
    np.testing.assert_array_equal(found.array != 0, scan.array > 0)
    assert two.status == "done" and "not in the mask, though clicked as tumour: 19.5,17.5,15.5" in two.messages

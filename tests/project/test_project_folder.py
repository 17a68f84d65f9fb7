"""A project's folder: plain files, intact after any crash, shared by several users; cases forgotten without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib  # not VoxSAM's own reader
import numpy as np
import pytest
from filelock import FileLock

from tests.project.conftest import CASES
from voxsam.errors import FileError, GeometryError, ImageError, InputError, PromptError
from voxsam.io import write_volume
from voxsam.project import Project, folder
from voxsam.project.records import Gate, LearnedModel
from voxsam.project.summary import summarise
from voxsam.prompts import Point


def work(project: Project, given, case: str, **more):
    """Finish a case with its true mask and one click."""
    scan = given[case]
    click = Point.at_index(scan.scan.grid, scan.click)
    return project.done(case, scan.truth, [click], **more)


def learned(name: str, cases, made: str = "2026-01-01", after: int = 1) -> LearnedModel:
    before = {"a": 3, "b": 5, **dict.fromkeys(["v", "w", "x"], 4)}  # v, w and x are cases that it was checked with
    gate = Gate(dice=0.85, limit=10, before=before, after=dict.fromkeys(before, after))
    fields = {"name": name, "made": made, "start": "first", "cases": cases, "steps": 3, "minutes": 1.0, "gate": gate}
    return LearnedModel(**fields, state="offered" if gate.is_better else "refused")


def keep(project: Project, model: Path, name: str, cases: tuple[str, ...], **more) -> None:
    contents = {scan.name: scan.content for scan in project.scans}
    project.keep_model(learned(name, {case: contents[case] for case in cases}, **more), model)


def files(project: Project) -> set[str]:
    found = (path.relative_to(project.folder) for path in project.folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if path.name not in (".lock", ".busy", ".learning.lock")}


def test_a_new_project_is_plain_files(project, scans, given):
    assert [scan.name for scan in project.scans] == list(CASES)
    assert {scan.state for scan in project.scans} == {"to do"} and project.in_use == "first"
    assert files(project) == {
        *("project.json", "scans.json", "history.jsonl", "models/first.safetensors"),
        *(f"thumbnails/{case}.png" for case in CASES),
    }
    found = json.loads((project.folder / "scans.json").read_text())["scans"]
    assert [Path(scan["path"]).name for scan in found] == ["a.nii.gz", "b_0000.nii.gz", "c.mha"]
    assert np.array_equal(project.read("deep__c").array, given["deep__c"].scan.array)
    assert Project(project.folder).scans == project.scans


def test_what_is_done_can_be_read_without_voxsam(project, given):
    work(project, given, "b", reader="anna", seconds=41.5)
    image = nib.Nifti1Image.from_filename(project.folder / "masks/anna/b.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), given["b"].truth.array)
    np.testing.assert_allclose(np.array(image.affine), given["b"].scan.grid.affine, atol=1e-4)
    record = json.loads((project.folder / "clicks/anna/b.json").read_text())
    expected = given["b"].scan.grid.index_to_world(given["b"].click)
    np.testing.assert_allclose(record["clicks"][0]["world_mm"], expected, atol=1e-3)
    assert (record["case"], record["reader"], record["model"], record["seconds"]) == ("b", "anna", "first", 41.5)
    lines = [json.loads(line) for line in (project.folder / "history.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["new", "add", "done"]
    assert project.state(project.scan("b")) == "done" and list(project.done_cases()) == ["b"]


def test_the_work_list_is_shared(project, given):
    assert project.next("anna") == "a" and project.next("ben") == "b"
    assert project.next("anna") == "a", "what she has begun comes first"
    assert project.next("anna", after="a") == "deep__c"
    with pytest.raises(InputError, match="b, on which ben works"):
        project.take("b", "anna")
    work(project, given, "a", reader="anna")
    project.skip("deep__c", "anna")
    assert project.next("anna") is None
    project.release("deep__c")
    assert project.next("anna", after="deep__c") is None or project.next("anna") == "deep__c"
    counts = summarise(project).counts
    assert (counts["done"], counts["in work"]) == (1, 2)


def test_after_the_last_scan_comes_the_first_that_is_left(project, given):
    work(project, given, "b")
    assert project.next(after="deep__c") == "a"


def test_scans_that_were_moved_are_known_again_and_bad_ones_left_out(project, scans, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(scans, elsewhere)
    (elsewhere / "bad.nii.gz").write_bytes(b"nothing")
    shutil.copy(elsewhere / "a.nii.gz", elsewhere / "again.nii.gz")
    write_volume(project.read("b"), elsewhere / "b.mha")
    added, left_out = project.add(elsewhere)
    assert added == () and list(left_out) == ["bad"] and "bad.nii.gz" in left_out["bad"]
    assert Path(project.scan("deep__c").path).is_relative_to(elsewhere) and len(project.scans) == 3


def test_another_scan_in_the_place_of_one_is_refused(project, given, scans, tmp_path):
    moved = tmp_path / "own"
    shutil.copytree(scans, moved)
    project.add(moved)
    write_volume(given["b"].scan, moved / "a.nii.gz")
    with pytest.raises(ImageError, match="other voxels than when it was added as a"):
        project.read("a")
    (moved / "a.nii.gz").unlink()
    with pytest.raises(FileError, match=r"a\.nii\.gz is gone; expected the scan a; add the folder"):
        project.read("a")


def test_what_cannot_be_kept_is_refused_in_one_line(project, given):
    before = files(project)
    other = given["a"].truth.with_array(given["a"].truth.array * 0)
    with pytest.raises(ImageError, match="an empty mask of a"):
        project.done("a", other)
    turned = given["a"].truth.grid.turned(0, 5)
    with pytest.raises(GeometryError, match="the grid of a"):
        project.done("a", type(other)(given["a"].truth.array, turned))
    with pytest.raises(PromptError, match="click"):
        project.done("a", given["a"].truth, [Point((9e3, 0.0, 0.0))])
    with pytest.raises(InputError, match="the scan zz; expected one of a, b, deep__c"):
        work(project, {"zz": given["a"]}, "zz")
    with pytest.raises(InputError, match=r"the reader '\.\./x'"):
        work(project, given, "a", reader="../x")
    assert files(project) == before


def test_a_folder_that_is_none_and_one_that_is_taken(project, tmp_path, scans):
    with pytest.raises(FileError, match=r"no project\.json; expected a project; make one"):
        Project(tmp_path)
    with pytest.raises(FileError, match="is there already"):
        Project.new(project.folder, scans)
    with pytest.raises(FileError, match="does not exist"):
        Project.new(tmp_path / "new", tmp_path / "nothing")
    assert not (tmp_path / "new").exists()
    settings = json.loads((project.folder / "project.json").read_text())
    (project.folder / "project.json").write_text(json.dumps({**settings, "format_version": 99}))
    with pytest.raises(FileError, match="a project of format 99; expected at most 1; install a newer VoxSAM"):
        Project(project.folder)


@pytest.mark.parametrize("crash", range(7))
def test_done_is_whole_or_not_at_all_wherever_it_is_cut_off(project, given, monkeypatch, crash):
    """Killed before the n-th rename or appended line, then reopened: the old reading, or all of the new one."""
    work(project, given, "a", seconds=1)
    first = project.mask_path("a", "reader").read_bytes()
    calls = iter(range(100))

    def killed(real):
        def call(*arguments, **named):
            if next(calls) == crash:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    changed = given["a"].truth.with_array(given["a"].truth.array * 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed(os.replace))
        patch.setattr(folder, "append_line", killed(folder.append_line))
        try:
            project.done("a", changed, seconds=2)
        except KeyboardInterrupt:
            pass
        else:
            assert crash == 6, "seven places are tried, and the last is beyond the end"
    again = Project(project.folder)
    with again.locked():
        pass
    (reading,) = again.readings("a").values()
    kept = project.mask_path("a", "reader").read_bytes()
    assert (reading.seconds == 1) == (kept == first)
    assert not [name for name in files(again) if "/." in name or name.startswith(".")]
    done = [line for line in again.history() if line["what"] == "done"]
    assert len(done) == int(reading.seconds or 0), "each once"


def test_a_line_that_was_cut_off_harms_no_other(project):
    with open(project.folder / "history.jsonl", "ab") as file:
        file.write(b'{"when": "2026", "wha')
    project.skip("a")
    assert [line["what"] for line in project.history()] == ["new", "add", "skip"]


@pytest.mark.parametrize("name", ["../../outside", "*", "a/b", "a\nb", "\u202ea", "x" * 201, "\udcff", ""])
def test_no_name_leads_out_of_the_folder_or_stands_for_several(project, given, name):
    """In input by readers, and in the files of a project from somebody else."""
    work(project, given, "a")
    outside = project.folder.parent / "outside.nii.gz"
    outside.write_bytes(b"of somebody")
    for action in (lambda: project.take("b", name), lambda: work(project, given, "b", reader=name)):
        if name:  # without one it is nobody's
            with pytest.raises(InputError, match="expected up to 200 bytes of letters"):
                action()
    record, scans = project.folder / "clicks/reader/a.json", project.folder / "scans.json"
    reading = json.loads(record.read_text())
    (project.folder / ".pending").mkdir()
    (project.folder / ".pending" / "mask.nii.gz").write_bytes(b"anything")
    for key in ("case", "reader"):
        (project.folder / ".pending" / "record.json").write_text(json.dumps({**reading, key: name}))
        with pytest.raises(FileError, match="record.json could not be read"):
            project.skip("b")
    shutil.rmtree(project.folder / ".pending")
    known = json.loads(scans.read_text())
    known["scans"][0]["name"] = name
    scans.write_text(json.dumps(known))
    with pytest.raises(FileError, match="scans.json could not be read"):
        project.forget(name)
    assert outside.read_bytes() == b"of somebody" and len(list(project.folder.glob("masks/*/*"))) == 1


def test_a_folder_that_takes_no_file_is_said_in_one_line(project):
    (project.folder / ".lock").unlink()
    (project.folder / ".lock").mkdir()
    with pytest.raises(FileError, match="project could not be written .*; expected a folder that takes files"):
        Project(project.folder).skip("a")


def test_who_holds_the_lock_is_waited_for_and_then_named(project, monkeypatch):
    monkeypatch.setattr(folder, "WAIT_S", 0.1)
    with FileLock(project.folder / ".lock"), pytest.raises(FileError, match="another process has been writing"):
        Project(project.folder).skip("a")


def test_a_model_is_taken_and_given_back(project, model):
    keep(project, model, "one", ("a", "b"))
    keep(project, model, "two", ("a", "b"), made="2026-01-02", after=9)
    assert summarise(project).offered is None, "the newest is no better"
    keep(project, model, "three", ("a", "b"), made="2026-01-03")
    offered = summarise(project).offered
    assert (
        offered is not None
        and str(offered.gate) == "4.0 -> 1.0 clicks to the same mask on 5 scans, fewer on 5 (p = 0.031)"
    )
    project.use("one")
    project.use("three")
    assert project.in_use == "three" and project.model_source().endswith("models/three.safetensors")
    assert project.back() == "one" and project.back() == "first"
    assert summarise(project).offered is None, "it was taken once"
    with pytest.raises(InputError, match="no model before this one"):
        project.back()
    with pytest.raises(InputError, match="the model zz; expected one of first, one, two, three"):
        project.use("zz")


def test_a_forgotten_case_leaves_no_trace_and_no_model_that_knows_it(project, given, model):
    for case in ("a", "b"):
        work(project, given, case, reader="anna")
    keep(project, model, "one", ("a",))
    keep(project, model, "two", ("b", "deep__c"), made="2026-01-02")
    project.use("two")
    project.use("one")
    project.learning.mkdir()
    assert project.forget("a") == ("one",)
    assert project.in_use == "two"
    text = [path.read_bytes() for path in project.folder.rglob("*.json*")]
    assert not any(b'"a"' in part for part in text)
    assert not [name for name in files(project) if Path(name).stem in ("a", "a.nii")]
    assert not (project.folder / "models/one.safetensors").exists() and not project.learning.exists()
    assert (project.folder / "models/two.safetensors").exists()
    with pytest.raises(
        InputError, match="the model one, trained on a case that was forgotten; expected one of first, two"
    ):
        project.use("one")
    with pytest.raises(InputError, match="the scan a; expected one of b, deep__c"):
        project.forget("a")
    assert list(project.done_cases()) == ["b"]


def test_a_model_that_learned_from_a_case_forgotten_meanwhile_is_not_kept(project, model):
    ready = learned("late", {scan.name: scan.content for scan in project.scans})
    project.forget("b")
    with pytest.raises(InputError, match="1 of the cases of late forgotten while it learned"):
        project.keep_model(ready, model)
    assert not (project.folder / "models/late.safetensors").exists()


def test_minutes_saved_and_the_curve(project, given, model):
    work(project, given, "a", seconds=300, model="first")
    work(project, given, "b", seconds=60, model="one")
    work(project, given, "deep__c", seconds=60, model="one")
    found = summarise(project)
    assert found.minutes_saved == pytest.approx(8.0)
    assert found.curve == (("a", 1), ("b", 1), ("deep__c", 1))
    json.dumps(found.as_json())


def test_busy_ends_by_itself(project, monkeypatch):
    assert not project.is_busy()
    project.touch_busy()
    assert project.is_busy()
    monkeypatch.setattr(folder, "QUIET_S", 0.0)
    assert not project.is_busy()


KILLED = """
import sys
from voxsam.project import Project
from voxsam.prompts import Point
from voxsam.testing import stub_scan
project, given = Project(sys.argv[1]), stub_scan(0)
number = 0
while True:
    number += 1
    array = given.truth.array * (number % 200 + 1)
    project.done("a", given.truth.with_array(array), seconds=number % 200 + 1, scan=given.scan)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(project):
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(project.folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"done\n"
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = Project(project.folder)
        with again.locked():
            pass
        (reading,) = again.readings("a").values()
        mask = np.asarray(nib.Nifti1Image.from_filename(project.mask_path("a", "reader")).dataobj)
        assert mask.max() == reading.seconds
        assert not [name for name in files(again) if "/." in name or name.startswith(".")]


def test_back_goes_from_what_was_done_last_to_what_was_done_before(project, given):
    assert project.previous("anna") is None
    for case in ("b", "a"):
        project.done(case, given[case].truth, reader="anna", scan=given[case].scan)
    project.skip("deep__c", "anna")
    assert [project.previous("anna", before) for before in (None, "deep__c", "a", "b")] == ["deep__c", "a", "b", None]
    assert project.previous("ben") is None


def test_what_another_works_on_cannot_be_skipped(project):
    project.take("a", "anna")
    with pytest.raises(InputError, match="a, on which anna works"):
        project.skip("a", "ben")
    project.skip("a", "anna")
    assert project.upcoming("ben") == ["b", "deep__c"]


def test_how_often_it_learns_is_kept(project):
    assert project.settings.learn_every == 0
    project.set_learn_every(6)
    assert Project(project.folder).settings.learn_every == 6

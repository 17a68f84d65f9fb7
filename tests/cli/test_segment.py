"""The command line from end to end: exit statuses, messages, files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.known_model import KnownModel, block_scan, upright
from voxsam.cli import main
from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_volume
from voxsam.testing import StubScan, stub_network, stub_scan
from voxsam.volume import Volume
from voxsam.weights.checkpoint import save_model


@pytest.fixture(scope="module")
def stub() -> StubScan:
    return stub_scan()


@pytest.fixture
def files(tmp_path: Path, stub: StubScan) -> tuple[Path, Path]:
    scan, model = tmp_path / "scan.nii.gz", tmp_path / "model.safetensors"
    write_volume(stub.scan, scan)
    save_model(stub_network(polarity=False), model)
    return scan, model


def _words(files: tuple[Path, Path], *more: str) -> list[str]:
    return ["segment", str(files[0]), "--model", str(files[1]), "-o", str(files[0].parent / "mask.nii.gz"), *more]


def _refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command prints for wrong input; it prints nothing else."""
    capsys.readouterr()
    assert main(words) == 2, words
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("voxsam: error: ")
    return line


def test_one_click_writes_a_mask_on_the_scans_grid(files: tuple[Path, Path], stub: StubScan) -> None:
    report = files[0].parent / "report.json"
    click = ",".join(map(str, stub.click))
    assert main(_words(files, "--click", click, "--report", str(report))) == 0
    mask = read_volume(files[0].parent / "mask.nii.gz", labels=True)
    assert mask.grid.close_to(stub.scan.grid)
    facts = json.loads(report.read_text())
    assert sum(found["voxels"] for found in facts["objects"]) == np.count_nonzero(mask.array)
    assert facts["clicks"][0]["index"] == list(stub.click)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_click_may_be_an_object_of_its_own(
    files: tuple[Path, Path], stub: StubScan, overlap: bool, capsys
) -> None:
    folder, (i, j, k) = files[0].parent, stub.click
    more = ["--overlap"] * overlap
    clicks = ["--click", f"{i},{j},{k}", "--click", f"{i + 4},{j},{k}"]
    assert main(_words(files, *clicks, "--each", *more, "--report", str(folder / "r.json"))) == 0
    first, second = json.loads((folder / "r.json").read_text())["objects"]
    assert [found["clicks"][0]["index"] for found in (first, second)] == [[i, j, k], [i + 4, j, k]]
    words = capsys.readouterr().out
    assert f"object 2: {second['volume_ml']:.2f} mL" in words and ": 2 objects, " in words
    assert main(_words(files, *clicks[:2], "--keep-all", "-o", str(folder / "alone.nii.gz"))) == 0
    alone = read_volume(folder / "alone.nii.gz", labels=True).array
    if overlap:
        masks = [read_volume(folder / f"mask_{n}.nii.gz", labels=True).array for n in (1, 2)]
        assert not (folder / "mask.nii.gz").exists()
    else:
        labels = read_volume(folder / "mask.nii.gz", labels=True).array
        masks = [labels == 1, labels == 2]
    np.testing.assert_array_equal(masks[0], alone)
    assert [np.count_nonzero(mask) for mask in masks] == [first["voxels"], second["voxels"]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--click", "1,2,3", "--overlap"], "--overlap without --each"),
        (["--box", "1,2,3,4,5,6", "--each"], "positive clicks alone, and no --probabilities"),
        (["--click", "1,2"], "three whole numbers"),
        (["--click", f"1,2,{10**400}"], "three whole numbers"),
        (["--click", "1_0,2,3"], "--click '1_0,2,3'; expected three whole numbers"),
        (["--click", "٥,٥,٥"], "three whole numbers"),
        (["--click", "1.0,2,3"], "three whole numbers"),
        (["--click-mm", "1_0,2,3"], "three numbers 'X,Y,Z'"),
        (["--click-mm", "nan,2,3"], "three numbers 'X,Y,Z'"),
        (["--box", "0,0,0,1_0,2,3"], "six whole numbers"),
        (["--click", "999,0,0"], "outside the scan"),
        ([], "no prompt"),
        (["--click", "5,5,5", "--negative", "1,1,1"], "without polarity"),
        (["--click", "5,5,5", "--device", "abacus"], "abacus"),
        (["--click", "5,5,5", "--preview", "nowhere/at/all.png"], "does not exist"),
        (["--click", "5,5,5", "-o", "mask.jpg"], "ends in .nii, .nii.gz, .nrrd, .mha"),
        (["--click", "5,5,5", "--preview", "mask.nii.gz"], "ends in .png"),
        (["--click", "5,5,5", "--probabilities", "{folder}/mask.nii.gz"], "a file for each"),
        (["--click", "5,5,5", "--threads", "0"], "from 1 on"),
        (["--auto"], "trained without clicks"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    more: list[str], words: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    more = [word.replace("{folder}", str(files[0].parent)) for word in more]
    line = _refusal(_words(files, *more, "--quiet"), capsys)  # a slow machine would say what it is doing
    assert words in line
    assert not (files[0].parent / "mask.nii.gz").exists()


def test_digits_with_blanks_and_signs_are_taken(files: tuple[Path, Path], stub: StubScan) -> None:
    i, j, k = stub.click
    assert main(_words(files, "--click", f" {i}, +{j},{k} ", "--quiet")) == 0


def _label_file(path: Path, stub: StubScan, value: int = 1, shift_mm: float = 0.0, spacing_mm: float = 4.0) -> Path:
    """A ball of 10 mm about the stub's click, on an upright grid of its own, `shift_mm` away."""
    centre = stub.scan.grid.index_to_world(stub.click) + shift_mm
    grid = Grid.from_spacing((9, 8, 7), (spacing_mm,) * 3, (centre - spacing_mm * np.array([4, 4, 3])).tolist())
    at = grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    inside = np.linalg.norm(at - centre, axis=-1) < 10
    write_volume(Volume(inside.astype(np.uint8) * value, grid, "SEG"), path)
    return path


def test_a_hint_on_another_grid_is_used_where_it_overlaps(files: tuple[Path, Path], stub: StubScan) -> None:
    hint, report = _label_file(files[0].parent / "hint.nii.gz", stub), files[0].parent / "report.json"
    assert main(_words(files, "--hint", str(hint), "--report", str(report))) == 0
    clicks = json.loads(report.read_text())["clicks"]
    places = stub.scan.grid.index_to_world([click["index"] for click in clicks])
    assert len(clicks) > 1 and all(click["positive"] for click in clicks)
    assert np.linalg.norm(places - stub.scan.grid.index_to_world(stub.click), axis=1).max() < 10


def test_a_scribble_gives_clicks_of_both_kinds_to_a_model_that_takes_them(tmp_path: Path, stub: StubScan) -> None:
    write_volume(stub.scan, tmp_path / "scan.nii.gz")
    save_model(stub_network(), tmp_path / "model.safetensors")
    files = tmp_path / "scan.nii.gz", tmp_path / "model.safetensors"
    strokes = [_label_file(tmp_path / f"{value}.nii.gz", stub, value, shift_mm=30.0 * (value - 1)) for value in (1, 2)]
    report = tmp_path / "report.json"
    words = [word for path in strokes for word in ("--scribble", str(path))]
    assert main(_words(files, *words, "--report", str(report))) == 0
    assert {click["positive"] for click in json.loads(report.read_text())["clicks"]} == {True, False}


@pytest.mark.parametrize(
    ("option", "value", "shift_mm", "words"),
    [
        ("--hint", 1, 500.0, "a mask hint that lies elsewhere"),
        ("--hint", 0, 0.0, "an empty mask hint"),
        ("--scribble", 1, 500.0, "a scribble that lies elsewhere"),
        ("--scribble", 0, 0.0, "a scribble without strokes"),
        ("--scribble", 2, 0.0, "negative clicks only"),
        ("--scribble", 3, 0.0, "a scribble with values from 0 to 3"),
    ],
)
def test_a_hint_or_scribble_that_says_nothing_is_refused(
    option: str, value: int, shift_mm: float, words: str, files, stub: StubScan, capsys
) -> None:
    path = _label_file(files[0].parent / "labels.nii.gz", stub, value, shift_mm)
    assert main(_words(files, option, str(path))) == 2
    assert words in capsys.readouterr().err


def _bad_scans(folder: Path) -> dict[str, str]:
    """Files that are no scan, each with the words that name its fault."""
    noise = np.random.default_rng(0).integers(-100, 200, (8, 9, 10)).astype(np.int16)
    nan = noise.astype(np.float32)
    nan[1:] = np.nan
    label = (noise > 150).astype(np.uint8)
    arrays = {
        "flat.nii.gz": (noise[:, :, 0], "2D image"),
        "time.nii.gz": (np.stack([noise, noise], -1), "4D image"),
        "nan.nii.gz": (nan, "NaN or infinite"),
        "constant.nii.gz": (np.zeros_like(noise), "all voxels"),
        "label.nii.gz": (label, "looks like a label map"),
    }
    for name, (array, _) in arrays.items():
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1])), folder / name)
    (folder / "text.nii.gz").write_text("no image")
    nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / "whole.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "whole.nii.gz").read_bytes()[:700])
    (folder / "nothing").mkdir()
    singular = nib.Nifti1Image(noise, None)  # without an affine of its own, the header is written as it is
    singular.header["sform_code"], singular.header["qform_code"] = 1, 0
    singular.header["srow_x"] = singular.header["srow_y"] = [1, 1, 0, 0]
    singular.header["srow_z"] = [0, 0, 1, 0]
    nib.save(singular, folder / "singular.nii.gz")
    words = {name: fault for name, (_, fault) in arrays.items()}
    words |= {
        "text.nii.gz": "does not hold a NIfTI image",
        "cut.nii.gz": "truncated or damaged",
        "gone.nii.gz": "does not exist",
    }
    return words | {"nothing": "DICOM", "singular.nii.gz": "a singular affine"}


def test_every_file_that_is_no_scan_is_refused_from_the_command_line(tmp_path: Path, capsys) -> None:
    for name, words in _bad_scans(tmp_path).items():
        out = tmp_path / "mask.nii.gz"
        line = _refusal(["segment", str(tmp_path / name), "--click", "1,1,1", "-o", str(out), "--quiet"], capsys)
        assert words in line, (name, line)
        assert not out.exists()


def test_a_file_that_is_no_model_is_refused(files: tuple[Path, Path], stub: StubScan, capsys) -> None:
    folder, click = files[0].parent, ",".join(map(str, stub.click))
    whole = files[1].read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(60))
    (folder / "text.safetensors").write_text("no model, only a text of some length")
    for name, words in (
        ("cut.safetensors", "truncated or damaged"),
        ("pickle.safetensors", "a pickle"),
        ("text.safetensors", "not a model file"),
        ("gone.safetensors", "no such file"),
        ("gone", "unknown model"),
    ):
        model = name if name == "gone" else str(folder / name)
        status = main(["segment", str(files[0]), "--click", click, "--model", model, "-o", str(folder / "mask.nii.gz")])
        err = capsys.readouterr().err
        assert status == 2 and words in err and not (folder / "mask.nii.gz").exists(), (name, err)


def test_a_model_that_works_the_other_way_is_refused_before_the_scan_is_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "scan.nii.gz").write_text("reading this would be another error")
    for automatic in (False, True):
        save_model(stub_network(automatic=automatic), tmp_path / "model.safetensors")
        more = ["--click", "1,1,1"] if automatic else ["--auto"]
        line = _refusal(_words((tmp_path / "scan.nii.gz", tmp_path / "model.safetensors"), *more), capsys)
        assert "trained without clicks" in line and ("no prompts (--auto) with the model stub" in line) is not automatic


def test_a_model_with_nan_weights_is_refused(files: tuple[Path, Path], stub: StubScan, capsys) -> None:
    network = stub_network()
    with torch.no_grad():
        network.mask_decoder.fuse.weight[0] = float("nan")
    save_model(network, files[1])
    line = _refusal(_words(files, "--click", ",".join(map(str, stub.click)), "--quiet"), capsys)
    assert "model.safetensors: the tensor mask_decoder.fuse.weight has NaN or infinite numbers" in line
    assert not (files[0].parent / "mask.nii.gz").exists()


@pytest.mark.parametrize("words", [["segment", "", "--click", "1,1,1"], ["evaluate", "", "-o", "x"]])
def test_an_empty_path_is_not_the_current_folder(words: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert "an empty path; expected a file or folder; name it; the current folder is `.`" in _refusal(words, capsys)


@pytest.mark.parametrize("command", ["segment", "prepare", "train", "evaluate", "phantoms", "weights"])
def test_a_command_alone_says_what_it_lacks(command: str, capsys) -> None:
    line = _refusal([command], capsys)
    assert "error: Missing " in line and f"(see `voxsam {command} --help`)" in line


def test_a_hint_elsewhere_is_named(files: tuple[Path, Path], stub: StubScan, capsys) -> None:
    hint = _label_file(files[0].parent / "other_patient.nii.gz", stub, shift_mm=500.0)
    line = _refusal(_words(files, "--hint", str(hint), "--quiet"), capsys)
    assert "error: other_patient.nii.gz: a mask hint that lies elsewhere: about (" in line


def test_a_scan_is_refused_as_a_hint(files: tuple[Path, Path], stub: StubScan, capsys) -> None:
    other = files[0].parent / "other_scan.nii.gz"
    write_volume(stub.scan, other)
    line = _refusal(_words(files, "--hint", str(other), "--quiet"), capsys)
    assert "other_scan.nii.gz: a mask hint with" in line and "give the label file, not a scan" in line


def _closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder take no files, for root too."""
    really_open = os.open

    def refuse(path: object, *rest: object, **more: object) -> int:
        if Path(str(path)).parent == folder:
            raise PermissionError(13, "Permission denied")
        return really_open(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("option", ["-o", "--probabilities", "--preview", "--report"])
def test_an_output_that_cannot_be_written_stops_before_anything_is_read(
    option: str, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    closed = files[0].parent / "closed"
    closed.mkdir()
    _closed(closed, monkeypatch)
    monkeypatch.setattr("voxsam.io.read_volume", lambda *_: pytest.fail("the scan must not be read"))
    name = {"--preview": "a.png", "--report": "a.json"}.get(option, "a.nii.gz")
    line = _refusal(_words(files, "--click", "5,5,5", option, str(closed / name)), capsys)
    assert f"{closed / name} could not be written (Permission denied); expected a folder that takes files" in line
    assert not (files[0].parent / "mask.nii.gz").exists() and not list(closed.iterdir())


def test_when_a_later_output_fails_the_earlier_ones_are_named(
    files: tuple[Path, Path], stub: StubScan, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(path: Path, *_: object) -> None:
        raise FileError(f"{path} could not be written (No space left on device)", "a disk with room", "make room")

    monkeypatch.setattr("voxsam.report.report.write_report_json", full)
    folder = files[0].parent
    click, mask, report = ",".join(map(str, stub.click)), folder / "mask.nii.gz", folder / "report.json"
    line = _refusal(_words(files, "--click", click, "--report", str(report), "--quiet"), capsys)
    assert f"{report} could not be written (No space left on device) (already written: {mask})" in line
    assert mask.exists() and not report.exists()


def test_no_output_replaces_an_input(files: tuple[Path, Path], stub: StubScan, capsys) -> None:
    hint = _label_file(files[0].parent / "scan_mask.nii.gz", stub)
    before = hint.read_bytes()
    for path in (hint, files[0]):
        status = main(["segment", str(files[0]), "--hint", str(hint), "--model", str(files[1]), "-o", str(path)])
        assert status == 2 and f"{path} is an input itself" in capsys.readouterr().err
    assert hint.read_bytes() == before


def test_a_click_on_the_scans_last_face_is_of_the_last_voxel(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The mask is known: the block of voxels that touches that face."""
    scan = block_scan(upright(20, 18, 16), ((15, 20), (6, 11), (5, 10)))
    write_volume(scan, files[0])
    monkeypatch.setattr("voxsam.weights.load_model", lambda *_: KnownModel())
    place = ",".join(map(str, scan.grid.index_to_world((19.5, 8, 7))))
    assert main(_words(files, "--click-mm", place)) == 0
    mask = read_volume(files[0].parent / "mask.nii.gz", labels=True)
    np.testing.assert_array_equal(mask.array != 0, scan.array > 0)
    assert "not in the mask" not in capsys.readouterr().out


def test_debug_shows_the_traceback(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", *_words(files, "--click", "999,0,0")]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "PromptError" in err


def test_info_prints_the_papers_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "instructions   " in capsys.readouterr().out
    assert main(["info", "vit_b"]) == 0
    out = capsys.readouterr().out
    assert all(count in out for count in ("15,209,984", "25,198,976", "25,462,400"))


def test_info_of_a_scan_and_of_a_model_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(files[0])]) == 0
    assert main(["info", str(files[1])]) == 0
    out = capsys.readouterr().out
    assert "44 x 36 x 22" in out and "3 x 3.5 x 6 mm" in out and "positive, box, scribble, hint" in out


@pytest.mark.parametrize("what", ["nonexist.nii.gz", "folder/of/slices", "voxsam-tin", ""])
def test_info_of_nothing_names_scans_and_models(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = _refusal(["info", what], capsys)
    assert f"{what!r}: no such file, and no model of that name; expected a scan, a model file" in line
    assert "one of voxsam-tiny, sam_vit_b" in line and "check the path, or see `voxsam weights list`" in line


def test_the_demo_passes_the_sessions_messages_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("voxsam.interactive.predictor.MAX_CROPS", 1)
    monkeypatch.setattr("voxsam.phantoms.DEMO_SHAPE", (40, 40, 24))
    monkeypatch.setattr("voxsam.phantoms.DEMO_SPACING_MM", (6.0, 6.0, 10.0))
    save_model(stub_network(), tmp_path / "model.safetensors")  # random weights: its mask reaches the crop's border
    assert main(["demo", "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model.safetensors")]) == 0
    message = "the mask was not followed beyond 1 crops and may be incomplete"
    assert message in capsys.readouterr().out
    assert message in json.loads((tmp_path / "out" / "report.json").read_text())["messages"]
    assert f"<li>{message}</li>" in (tmp_path / "out" / "report.html").read_text()


def test_demo_writes_scan_mask_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path)]) == 0
    made = {"scan.nii.gz", "truth.nii.gz", "mask.nii.gz", "overview.png", "report.html", "report.json"}
    assert {path.name for path in tmp_path.iterdir()} == made
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "Longest axial diameter" in page
    assert re.search(r"Dice 0\.[789]", capsys.readouterr().out)


def test_the_packaged_model_finds_a_sarcoma_it_never_saw(shared_data: Path) -> None:
    from voxsam import Session, load_model
    from voxsam.prompts import spread
    from voxsam.report.metrics import dice

    scan = read_volume(shared_data / "sarcoma_ct" / "imagesTr" / "STS_047_0000.nii.gz")
    truth = read_volume(shared_data / "sarcoma_ct" / "labelsTr" / "STS_047.nii.gz", labels=True)
    click = spread(truth.array > 0, scan.grid.spacing_mm, 1)[0].tolist()
    assert dice(Session(load_model("voxsam-tiny"), scan).click(click).array, truth.array) > 0.8

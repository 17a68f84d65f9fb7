"""The command line from end to end: exit statuses, words, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voxsam.cli import main
from voxsam.io import read_volume, write_volume
from voxsam.model.checkpoint import save_model
from voxsam.testing import StubScan, stub_network, stub_scan


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


def test_one_click_writes_a_mask_on_the_scans_grid(files: tuple[Path, Path], stub: StubScan) -> None:
    report = files[0].parent / "report.json"
    click = ",".join(map(str, stub.click))
    assert main(_words(files, "--click", click, "--report", str(report))) == 0
    mask = read_volume(files[0].parent / "mask.nii.gz", labels=True)
    assert mask.grid.close_to(stub.scan.grid)
    facts = json.loads(report.read_text())
    assert sum(found["voxels"] for found in facts["objects"]) == np.count_nonzero(mask.array)
    assert facts["clicks"][0]["index"] == list(stub.click)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--click", "1,2"], "three whole numbers"),
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
    assert main(_words(files, *more)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "error" in line]
    assert len(lines) == 1 and words in lines[0]
    assert not (files[0].parent / "mask.nii.gz").exists()
    assert "Traceback" not in captured.err


def test_info_prints_the_papers_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "vit_b"]) == 0
    out = capsys.readouterr().out
    assert all(count in out for count in ("15,209,984", "25,198,976", "25,462,400"))


def test_info_of_a_scan_and_of_a_model_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(files[0])]) == 0
    assert main(["info", str(files[1])]) == 0
    out = capsys.readouterr().out
    assert "44 x 36 x 22" in out and "3 x 3.5 x 6 mm" in out and "positive, box, scribble, hint" in out


def test_demo_writes_scan_mask_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path)]) == 0
    made = {"scan.nii.gz", "truth.nii.gz", "mask.nii.gz", "overview.png", "report.html", "report.json"}
    assert {path.name for path in tmp_path.iterdir()} == made
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "Longest axial diameter" in page
    assert "Dice 0.8" in capsys.readouterr().out


def test_the_packaged_model_finds_a_sarcoma_it_never_saw(shared_data: Path) -> None:
    from voxsam import Session, load_model
    from voxsam.evaluation.metrics import dice
    from voxsam.prompts import spread

    scan = read_volume(shared_data / "sarcoma_ct" / "imagesTr" / "STS_047_0000.nii.gz")
    truth = read_volume(shared_data / "sarcoma_ct" / "labelsTr" / "STS_047.nii.gz", labels=True)
    click = spread(truth.array > 0, scan.grid.spacing_mm, 1)[0].tolist()
    assert dice(Session(load_model("voxsam-tiny"), scan).click(click).array, truth.array) > 0.8

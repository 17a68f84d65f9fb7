"""`voxsam evaluate` from end to end: files, exit statuses, messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from voxsam.cli import main
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.lab.data.layouts import find_labelled
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases and two models; the second case belongs to the split "test"."""
    folder = tmp_path_factory.mktemp("cli") / "phantoms"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"split": {"test": ["p_1"]}}), encoding="utf-8")
    for seed in (0, 1):
        stub = stub_scan(seed)
        write_volume(stub.scan, folder / "imagesTr" / f"p_{seed}_0000.nii.gz")
        write_mask(stub.truth, folder / "labelsTr" / f"p_{seed}.nii.gz")
    save_model(stub_network(), folder / "clicks.safetensors")
    save_model(stub_network(automatic=True), folder / "auto.safetensors")
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw overlays where they do not matter: each takes a second."""
    monkeypatch.setattr("voxsam.lab.evaluation.output.write_examples", lambda *_: [])


def _words(folder: Path, out: Path, *more: str, model: str = "clicks") -> list[str]:
    return ["evaluate", str(folder), "--model", str(folder / f"{model}.safetensors"), "-o", str(out), *more]


def test_every_file_is_written_and_the_same_again(
    folder: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    quick = ("--clicks", "1,2", "--trials", "2", "--corrective", "2", "--noise", "0.5", "--region", "centre")
    assert main(_words(folder, tmp_path / "a", *quick)) == 0
    out = capsys.readouterr().out
    assert "stub (2 pts/volume)" in out and "phantoms Dice ↑" in out and "report.html" in out
    assert main(_words(folder, tmp_path / "b", *quick, "--quiet")) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "a" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes()
    lines = (tmp_path / "a" / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 2 * 2 * 4
    settings = json.loads((tmp_path / "a" / "summary.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["region"], settings["noise"], settings["trials"]) == ("centre", 0.5, 2)


@pytest.mark.parametrize("option", ["--save-masks", "--save_masks"])
def test_masks_are_kept_if_asked_for(folder: Path, undrawn: None, tmp_path: Path, option: str):
    words = _words(folder, tmp_path / "out", "--cases", "p_1", "--clicks", "1,2", "--trials", "2", "--quiet")
    assert main([*words, option]) == 0
    masks = tmp_path / "out" / "masks"
    assert sorted(path.name for path in masks.iterdir()) == ["p_1-random-1.nii.gz", "p_1-random-2.nii.gz"]
    mask = read_volume(masks / "p_1-random-2.nii.gz", labels=True)
    row = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").splitlines()[2].split(",")
    head = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert (
        float(row[head.index("mask_ml")]) == pytest.approx(mask.volume_ml, abs=1e-4)
        and row[head.index("clicks")] == "2"
    )
    assert main(words) == 0 and not masks.exists()  # a previous evaluation is replaced
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_split_and_a_recipe_choose_cases(folder: Path, undrawn: None, tmp_path: Path):
    quick = ("--clicks", "1", "--trials", "1")
    recipe = tmp_path / "recipe.yaml"
    packaged = Path(__file__).resolve().parents[3] / "recipes" / "voxsam-tiny.yaml"
    text = [line for line in packaged.read_text(encoding="utf-8").splitlines() if not line.startswith("held_out")]
    recipe.write_text("\n".join([*text, "held_out: [p_0]"]), encoding="utf-8")
    for chosen, case in (
        (("--split", "test"), "p_1"),
        (("--held-out", str(recipe)), "p_0"),
        (("--cases", "p_1"), "p_1"),
    ):
        assert main(_words(folder, tmp_path / "out", *quick, *chosen)) == 0
        assert list(json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["cases"]) == [case]


def test_the_split_of_a_prepared_folder_is_scored_on_the_scans_it_was_made_of(
    folder: Path, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    shutil.copytree(folder, raw)
    (raw / "dataset.json").write_text("{}", encoding="utf-8")
    assert main(["prepare", str(raw), "-o", str(prepared), "--spacing", "6,6,6", "--workers", "1"]) == 0
    store = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    (chosen,) = store["split"]["test"]
    quick = ("--clicks", "1", "--trials", "1", "--split", "test", "--quiet")
    words = ["evaluate", str(prepared), "--model", str(folder / "clicks.safetensors"), *quick]
    assert main([*words, "-o", str(tmp_path / "a")]) == 0
    assert main([*_words(folder, tmp_path / "b", *quick[:4], "--cases", chosen, "--quiet")]) == 0
    assert (tmp_path / "a" / "scores.csv").read_text() == (tmp_path / "b" / "scores.csv").read_text()
    capsys.readouterr()
    shutil.move(raw, tmp_path / "moved")
    assert main([*words, "-o", str(tmp_path / "c")]) == 2
    assert "is gone; expected the data set where it was; put it back" in capsys.readouterr().err
    store["root"] = ""
    (prepared / "dataset.json").write_text(json.dumps(store), encoding="utf-8")
    assert main([*words, "-o", str(tmp_path / "c")]) == 2
    assert "prepared by an earlier VoxSAM" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_tumour_labels_of_a_prepared_folder_are_taken(tmp_path: Path):
    stub = stub_scan()
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    (tmp_path / "raw" / "dataset.json").write_text("{}", encoding="utf-8")
    label = stub.truth.array * np.uint8(2)
    label[:4, :4, :4] = 1  # an organ
    for number in (0, 1):
        write_volume(stub.scan, tmp_path / "raw" / "imagesTr" / f"p_{number}_0000.nii.gz")
        write_mask(stub.truth.with_array(label), tmp_path / "raw" / "labelsTr" / f"p_{number}.nii.gz")
    out = tmp_path / "prepared"
    prepare = ["prepare", str(tmp_path / "raw"), "-o", str(out), "--spacing", "6,6,6", "--workers", "1"]
    assert main([*prepare, "--labels", "2", "--skip-faulty"]) == 0  # two cases alike are a fault
    cases, labels = find_labelled(out)
    assert labels == (2,)
    assert [case.image.name for case in cases] == ["p_0_0000.nii.gz"]
    assert find_labelled(tmp_path / "raw")[1] == ()


@pytest.mark.parametrize(
    ("named", "labels", "words"),
    [
        ({}, "1,9", "--labels 1,9: no label has the value 9; expected some of 1, 3; correct it"),
        ({}, "9,-1", "the label -1, which no tumour has; expected whole numbers above 0; choose with --labels"),
        ({"organ": 3, "tumour": 1}, "1,9", "--labels 1,9: no label has the value 9; expected some of 1, 3; correct it"),
        ({"tumour": 1, "ignore": 3}, "3", "the label 3, which the data set says to ignore; expected some of 1; cho"),
        ({"tumour": 1, "of others": 9}, "1,9", ""),  # named, though no case has it
        ({"tumour": 1}, "1,3", ""),  # not named, but there
    ],
)
def test_labels_that_are_nowhere(
    named: dict[str, int], labels: str, words: str, folder: Path, undrawn: None, tmp_path: Path, capsys
):
    raw = tmp_path / "raw"
    shutil.copytree(folder, raw)
    (raw / "dataset.json").write_text(json.dumps({"labels": named}), encoding="utf-8")
    label = read_volume(raw / "labelsTr" / "p_1.nii.gz", labels=True)
    array = label.array.copy()
    array[:3, :3, :3] = 3
    write_mask(label.with_array(array), raw / "labelsTr" / "p_1.nii.gz")
    quick = ("--clicks", "1", "--trials", "1", "--quiet", "--labels", labels)
    status = main(_words(raw, tmp_path / "out", *quick))
    errors = capsys.readouterr().err
    assert (status, words in errors, len(errors.splitlines())) == ((2, True, 1) if words else (0, True, 0))
    assert (tmp_path / "out").exists() == (not words)


def test_automatic(folder: Path, tmp_path: Path):
    assert main(_words(folder, tmp_path / "out", "--auto", model="auto")) == 0
    rows = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[:5] for row in rows] == [
        ["p_0", "0", "automatic", "0", "0"],
        ["p_1", "0", "automatic", "0", "0"],
    ]


@pytest.mark.parametrize("own", [False, True], ids=["one-table", "of-several"])
def test_the_table_of_cases_goes_into_a_model_card(own: bool, folder: Path, undrawn: None, tmp_path: Path):
    card = tmp_path / "card.md"
    marker = f"held-out {folder.name}" if own else "held-out"
    others = "<!-- held-out another -->\n<!-- /held-out another -->"
    card.write_text(f"# Card\n<!-- {marker} -->\nold\n<!-- /{marker} -->\n{others}\nend\n", encoding="utf-8")
    assert main(_words(folder, tmp_path / "out", "--clicks", "1", "--trials", "2", "--card", str(card), "--quiet")) == 0
    text = card.read_text(encoding="utf-8")
    assert "old" not in text and "| p_0 |" in text and "| mean |" in text and text.endswith(f"{others}\nend\n")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--cases", "p_0", "--split", "test"], "two ways to choose cases"),
        (["--cases", "p_7"], "no case p_7"),
        (["--split", "val"], "without a split 'val'"),
        (["--held-out", "nowhere.yaml"], "no such file"),
        (["--clicks", "one"], "--clicks 'one'; expected whole numbers"),
        (["--clicks", "1_0"], "--clicks '1_0'; expected whole numbers"),
        (["--clicks", "0"], "numbers from 1 on"),
        (["--region", "edge"], "one of any, centre, surround, margin, deepest"),
        (["--labels", "0"], "label 0"),
        (["--threads", "0"], "from 1 on"),
        (["--auto"], "a model trained without clicks"),
        (["--card", "nowhere.md"], "nowhere.md: no such file"),
        (["-o", "{folder}"], "holds something else"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    more: list[str], words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    more = [word.replace("{folder}", str(folder)) for word in more]
    assert main(_words(folder, tmp_path / "out", *more, "--quiet")) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert words in line and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_model_without_clicks_needs_auto(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(_words(folder, tmp_path / "out", model="auto")) == 2
    assert "add --auto" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

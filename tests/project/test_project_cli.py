"""`voxsam project`, as typed: each command on one project, and its messages for wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from voxsam.cli import main
from voxsam.io import write_mask


@pytest.fixture
def run(scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command on the project; `{}` in it is the project's folder. Returns status, stdout, stderr."""
    folder = tmp_path / "project"

    def command(*words: str) -> tuple[int, str, str]:
        status = main(["project", *(word.replace("{}", str(folder)) for word in words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    status, out, _ = command("new", "{}", "--scans", str(scans), "--model", str(model))
    assert status == 0 and out == f"{folder}: a project that starts with first\n3 scans added\n"
    return command


def test_a_day_with_a_project(run, given, tmp_path, scans):
    assert run("next", "{}", "--reader", "anna")[1] == f"a: {scans}/a.nii.gz\n"
    write_mask(given["a"].truth, tmp_path / "m.nii.gz")
    (tmp_path / "r.json").write_text(json.dumps({"clicks": [{"index": given["a"].click, "positive": True}]}))
    words = ("--mask", str(tmp_path / "m.nii.gz"), "--clicks", str(tmp_path / "r.json"))
    out = run("done", "{}", "a", *words, "--reader", "anna")[1]
    ml = given["a"].truth.volume_ml
    assert out == f"a: done by anna, {ml:.1f} mL, 1 clicks\n"
    assert run("done", "{}", "a", *words, "--reader", "ben")[0] == 0
    assert run("skip", "{}", "b")[1] == "b: skipped\n"
    assert "3 scans: 1 done, 1 skipped, 1 to do" in run("status", "{}")[1]
    assert run("release", "{}", "b")[1] == "b: to do\n"
    found = json.loads(run("status", "{}", "--json")[1])
    assert found["counts"] == {"done": 1, "to do": 2} and found["curve"] == [["a", 1]]
    out = run("compare", "{}", "--readers", "anna,ben")[1]
    assert out == f"a: Dice 1.000, anna {ml:.1f} mL, ben {ml:.1f} mL\nMean Dice of 1 scans: 1.000\n"
    assert json.loads(run("compare", "{}", "--readers", "anna,ben", "--json")[1])[0]["differences"] == []
    assert run("export", "{}", "-o", str(tmp_path / "out"))[1] == f"{tmp_path / 'out'}: 1 cases\n"
    out = run("import", "{}", str(tmp_path / "out"), "--reader", "cleo")[1]
    assert out == "1 masks taken\n"
    out = run("forget", "{}", "a")[1]
    assert out.startswith("a is forgotten: its masks, clicks and thumbnail are deleted") and "In use: first" in out
    assert run("add", "{}", "--scans", str(scans))[1] == "1 scans added\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare", "{}", "--readers", "anna"), "--readers 'anna'; expected two names"),
        (("use", "{}"), "no model; expected a model's name, or --back"),
        (("use", "{}", "x", "--back"), "a model and --back; expected a model's name, or --back"),
        (("import", "{}", ".", "--labels", "x"), "--labels 'x'; expected whole numbers"),
        (("status", "nowhere"), "nowhere: no project.json; expected a project; make one"),
        (("forget", "{}", "zz"), "the scan zz; expected one of a, b, deep__c"),
        (("new", "{}x", "--model", "zz"), "unknown model 'zz'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, words, said):
    status, out, err = run(*words)
    assert (status, out) == (2, "") and err.startswith(f"voxsam: error: {said}") and err.count("\n") == 1

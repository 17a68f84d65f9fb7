"""`voxsam prepare`: what it prints, its exit statuses, and words that it refuses."""

from __future__ import annotations

import pytest

from tests.lab.data.raw_cases import block, decathlon, forget_orientation, save
from voxsam.cli import main
from voxsam.lab.data.store import open_store


def test_a_data_set_is_prepared_and_then_left_alone(tmp_path, capsys):
    words = ["prepare", str(decathlon(tmp_path / "raw")), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--spacing", "3,2,2", "--seed", "5", "--labels", "1"]) == 0
    printed = capsys.readouterr().out
    assert "out: 3 cases (1 train, 1 validation, 1 test) at 3 x 2 x 2 mm along SAR, 0." in printed
    assert "CT: clip -" in printed
    assert "3 cases made, " in printed
    assert open_store(tmp_path / "out").description.labels == (1,)
    assert main([*words, "--spacing", "3,2,2", "--seed", "5", "--labels", "1"]) == 0
    assert "Nothing had changed, " in capsys.readouterr().out


def test_faults_are_a_table_and_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    raw = decathlon(tmp_path / "raw", "abcd")
    save(block(value=9), raw / "labelsTr" / "a.nii.gz")
    save(block((20, 16, 11)), raw / "labelsTr" / "c.nii.gz")
    words = ["prepare", str(raw), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 2
    captured = capsys.readouterr()
    rows = [line for line in captured.out.splitlines() if "unknown label value" in line or "shape mismatch" in line]
    assert len(rows) == 2
    assert "a.nii.gz has the values 9" in rows[0]
    assert captured.err.startswith("voxsam: error: 2 faults in 2 cases (")
    assert captured.err.count("\n") == 1
    assert main([*words, "--skip-faulty"]) == 0
    printed = capsys.readouterr().out
    assert "Left out for their faults: 2 (" in printed
    assert "2 cases (1 train, 0 validation, 1 test)" in printed


def test_a_remark_on_files_of_unknown_orientation(tmp_path, capsys):
    raw = decathlon(tmp_path / "raw")
    words = ["prepare", str(raw), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 0
    assert "orientation" not in capsys.readouterr().out
    for path in (raw / "imagesTr" / "b_0000.nii.gz", raw / "labelsTr" / "b.nii.gz"):
        forget_orientation(path)
    for _ in range(2):
        assert main(words) == 0
        line = (
            "Remark: the orientation of 1 case (b) is unknown (sform and qform code 0); the axes are taken as R, A, S."
        )
        assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--labels", "two"], "--labels 'two'; expected whole numbers; write for example --labels 2 or --labels 1,2"),
        (["--spacing", "1,1"], "--spacing '1,1'; expected 'auto', or three lengths in mm above 0; write for example"),
        (["--spacing", "1,0,1"], "--spacing '1,0,1'; expected 'auto', or three lengths in mm above 0"),
        (["--dataset", "brats"], "the data set 'brats'; expected one of msd, kits, lits, pancreas, colon, csv"),
    ],
)
def test_words_that_make_no_sense(tmp_path, capsys, words, expected):
    assert main(["prepare", str(tmp_path), "-o", str(tmp_path / "out"), *words]) == 2
    assert expected in capsys.readouterr().err

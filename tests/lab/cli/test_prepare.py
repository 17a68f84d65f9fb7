"""`voxsam prepare`: output, exit statuses, and arguments that it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lab.data.raw_cases import block, decathlon, forget_orientation, noise, save
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


def test_what_files_leave_open_is_remarked_once_for_all_cases_like_it(tmp_path, capsys):
    raw = decathlon(tmp_path / "raw", "abcd")
    words = ["prepare", str(raw), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 0
    assert "Remark" not in capsys.readouterr().out and not (tmp_path / "out" / "remarks.csv").exists()
    for case in "bd":
        for path in (raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr" / f"{case}.nii.gz"):
            forget_orientation(path)
    padded = noise(2).astype(np.float32)
    padded[:2] = np.nan
    save(padded, raw / "imagesTr" / "c_0000.nii.gz")
    for _ in range(2):  # found, and read from what was kept
        assert main(words) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Remark")]
        assert lines[0].startswith("Remark on b: b_0000.nii.gz does not say how the patient lies")
        assert lines[0].endswith(" (the like of 1 more: d)")
        assert lines[1].startswith("Remark on c: c_0000.nii.gz has 384 NaN or infinite voxels; read as its lowest")
    table = (tmp_path / "out" / "remarks.csv").read_text().splitlines()
    assert table[0] == "case,remark" and [line[0] for line in table[1:]].count("d") == 2


def test_remarks_stand_beside_faults(tmp_path, capsys):
    raw = decathlon(tmp_path / "raw")
    forget_orientation(raw / "imagesTr" / "a_0000.nii.gz")
    save(block(value=9), raw / "labelsTr" / "c.nii.gz")
    assert main(["prepare", str(raw), "-o", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "Remark on a: a_0000.nii.gz does not say how the patient lies" in capsys.readouterr().out


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

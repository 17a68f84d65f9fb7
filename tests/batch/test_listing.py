"""How a cohort is listed: folders and tables, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.known_model import oblique
from voxsam.batch.listing import ScanTask, TableClick, list_cohort, read_table
from voxsam.errors import FileError, PromptError


def _table(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lines_of_one_scan_are_its_clicks(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        "patient,scan,i,j,k,positive",
        "x, a/ct.nii.gz ,1,2,3,",
        "y,b/ct.nii.gz,4,5,6,1",
        "x,a/ct.nii.gz,7,8,9,0",
    )
    assert read_table(path, clicks=True) == [
        ScanTask("a/ct", (tmp_path / "a/ct.nii.gz",), (TableClick((1, 2, 3)), TableClick((7, 8, 9), positive=False))),
        ScanTask("b/ct", (tmp_path / "b/ct.nii.gz",), (TableClick((4, 5, 6)),)),
    ]


def test_two_names_of_one_scan_are_two_masks(tmp_path: Path) -> None:
    path = _table(tmp_path, "scan,name,i,j,k", "a.nii,liver,1,2,3", "a.nii,kidney,4,5,6", "a.nii,liver,7,8,9")
    images = (tmp_path / "a.nii",)
    assert list_cohort(path, tmp_path / "out", clicks=True) == [
        ScanTask("liver", images, (TableClick((1, 2, 3)), TableClick((7, 8, 9)))),
        ScanTask("kidney", images, (TableClick((4, 5, 6)),)),
    ]


def test_millimetres_names_and_further_channels(tmp_path: Path) -> None:
    path = _table(tmp_path, "name,scan,scan_1,x_mm,y_mm,z_mm", "P7,t1.mha,t2.mha,-1.5,2,3e1")
    (job,) = read_table(path, clicks=True)
    assert job == ScanTask("P7", (tmp_path / "t1.mha", tmp_path / "t2.mha"), (TableClick((-1.5, 2, 30), in_mm=True),))


def test_a_click_in_voxels_and_one_in_mm_are_the_same_place() -> None:
    grid = oblique(spacing=(2.0, 3.0, 5.0))
    place = grid.index_to_world((7, 4, 2))
    there = TableClick(tuple(place.tolist()), in_mm=True).on(grid)
    np.testing.assert_allclose(there.world_mm, TableClick((7, 4, 2)).on(grid).world_mm)
    with pytest.raises(PromptError, match="outside the scan"):
        TableClick((99, 0, 0)).on(grid)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["scan,i,j", "a.nii,1,2"], "with the columns scan, i, j; expected the columns scan, and i,j,k or x_mm"),
        (["image,i,j,k", "a.nii,1,2,3"], "expected the columns scan"),
        (["scan,i,j,k"], "without lines"),
        (["scan,i,j,k", ",1,2,3"], "line 2: no scan"),
        (["scan,i,j,k", "a.nii,1,2,"], r"table.csv, line 2: '1,2,'; expected three whole numbers"),
        (["scan,i,j,k", "a.nii,1,2,3.5"], "three whole numbers"),
        (["scan,x_mm,y_mm,z_mm", "a.nii,1,2,nan"], "three numbers in mm"),
        (["scan,i,j,k,positive", "a.nii,1,2,3,maybe"], "positive 'maybe'; expected 1 or 0"),
        (["scan,i,j,k", "a.nii,,,"], "line 2: no click"),
        (["scan,i,j,k,x_mm,y_mm,z_mm", "a.nii,1,2,3,4,5,6"], "a click in voxels and one in mm"),
        (["scan,i,j,k,positive", "a.nii,1,2,3,0"], "negative clicks only for a"),
        (["scan,i,j,k", "a.nii,1,2,3", "a.mha,1,2,3"], "a.nii and .*a.mha, both of the name a"),
        (["name,scan,i,j,k", "../a,a.nii,1,2,3"], "below the output folder"),
    ],
)
def test_a_wrong_table_is_refused_in_words(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises((FileError, PromptError), match=words):
        list_cohort(_table(tmp_path, *lines), tmp_path / "out", clicks=True)


def test_automatic_takes_a_table_of_scans_and_no_clicks(tmp_path: Path) -> None:
    jobs = list_cohort(_table(tmp_path, "scan", "b.nii", "a.nii"), tmp_path / "out", clicks=False)
    assert [(job.name, job.clicks) for job in jobs] == [("b", ()), ("a", ())]
    with pytest.raises(PromptError, match="clicks in .* and --auto"):
        list_cohort(_table(tmp_path, "scan,i,j,k", "a.nii,1,2,3"), tmp_path / "out", clicks=False)


def test_a_folder_gives_its_scans_but_no_output_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a/x.NRRD", "a/notes.txt", ".hidden/c.nii", "a/.d.nii", "out/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0")
    series = tmp_path / "patient" / "ct"
    series.mkdir(parents=True)
    for number in range(3):
        (series / f"I{number}").write_bytes(bytes(128) + b"DICM")
    jobs = list_cohort(tmp_path, tmp_path / "out", clicks=False)
    assert [job.name for job in jobs] == ["a/x", "b", "patient/ct"]
    assert jobs[2].images == (series,)


def test_what_is_neither_folder_nor_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        list_cohort(tmp_path / "absent", tmp_path / "out", clicks=False)
    with pytest.raises(PromptError, match="without clicks; expected a CSV table"):
        list_cohort(tmp_path, tmp_path / "out", clicks=True)
    with pytest.raises(FileError, match="without scans"):
        list_cohort(tmp_path, tmp_path / "out", clicks=False)

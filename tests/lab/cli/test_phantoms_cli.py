"""`voxsam phantoms`, and the steps of `make train-demo` on its output, with small numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from voxsam.cli import main
from voxsam.io import read_volume
from voxsam.lab.data.cases import find_cases
from voxsam.lab.data.store import open_store
from voxsam.phantoms import Scene, make_phantom

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--count", "5", "--shape", "48,40,30", "--spacing", "4,4,6"]


def test_scans_are_the_phantoms_of_their_seeds(tmp_path: Path) -> None:
    assert main(["phantoms", "-o", str(tmp_path / "p"), "--seed", "7", "--count", "2", *SMALL[2:]]) == 0
    cases = find_cases(tmp_path / "p")
    assert [case.name for case in cases] == ["phantom_0007", "phantom_0008"]
    expected = make_phantom(8, (48, 40, 30), (4, 4, 6))
    scan, label = read_volume(cases[1].image), read_volume(cases[1].label, labels=True)
    assert scan.grid.close_to(expected.scan.grid) and scan.grid.shape == (48, 40, 30)
    assert (scan.array == expected.scan.array).all() and (label.array == expected.label.array).all()


def test_wide_views_and_small_tumours(tmp_path: Path) -> None:
    grid = ["--count", "1", "--seed", "3", "--shape", "56,48,36", "--spacing", "6,6,6"]
    assert main(["phantoms", "-o", str(tmp_path / "p"), *grid, "--wide", "1", "--small", "1"]) == 0
    (case,) = find_cases(tmp_path / "p")
    expected = make_phantom(3, (56, 48, 36), (6, 6, 6), scene=Scene(1, 1))
    assert (read_volume(case.image).array == expected.scan.array).all()
    assert read_volume(case.label, labels=True).volume_ml < 70


def test_a_full_folder_and_odd_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["phantoms", "-o", str(tmp_path)]) == 2
    assert "is not empty; expected a new or an empty folder" in capsys.readouterr().err
    assert main(["phantoms", "-o", str(tmp_path / "p"), "--shape", "4,x,4"]) == 2
    assert "--shape '4,x,4'; expected three lengths" in capsys.readouterr().err


@pytest.mark.slow
def test_the_steps_of_make_train_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Makefile's own lines, with fewer and smaller scans and two steps of training."""
    rule = re.search(r"^train-demo: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert rule is not None
    lines = [line.split("voxsam ", 1)[1] for line in rule[1].replace("\\\n", " ").splitlines()]
    assert [line.split()[0] for line in lines] == ["phantoms", "prepare", "train", "evaluate"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    small = {"phantoms": SMALL, "prepare": ["--workers", "1"], "train": ["--steps", "2"], "evaluate": []}
    for line in lines:
        words = line.replace('"$(DATA)"', "train-demo/phantoms").replace("$(ARGS)", "").split()
        assert main([*words, *small[words[0]]]) == 0, capsys.readouterr().err
    test = open_store(Path("train-demo/prepared")).split["test"]
    report = Path("train-demo/evaluation/report.html").read_text(encoding="utf-8")
    assert len(test) == 1 and test[0] in report

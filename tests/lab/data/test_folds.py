"""Lists of folds: files of both shapes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.evaluation.known_systems import LESION, write_cases
from voxsam.cli import main
from voxsam.errors import FileError, InputError
from voxsam.lab.data.folds import Fold, check_disjoint, read_folds
from voxsam.lab.data.store import open_store

NAMES = ["p1_a", "p1_b", "p2_a", "p3_a", "p3_b"]


def test_without_a_training_part_all_others_are_trained_on() -> None:
    fold = Fold(test=("p3_b", "p3_a"), validation=("p2_a",))
    assert fold.split(NAMES) == {"train": ("p1_a", "p1_b"), "validation": ("p2_a",), "test": ("p3_a", "p3_b")}
    assert Fold(test=("p2_a",), train=("p1_a",)).split(NAMES)["train"] == ("p1_a",)


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        (Fold(test=("p9",)), "the case p9 in the test part of a fold"),
        (Fold(test=("p1_a",)), "p1 in the parts train and test of a fold"),
        (Fold(test=("p1_a", "p1_b"), validation=("p1_a",)), "p1 in the parts validation and test"),
        (Fold(test=tuple(NAMES)), "a fold without training cases"),
    ],
)
def test_no_patient_stands_on_two_sides(fold: Fold, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fold.split(NAMES, "(p[0-9]+)_")


def test_a_pattern_that_names_nobody() -> None:
    with pytest.raises(InputError, match="the case p2_a and the pattern x"):
        Fold(test=("p1_a",)).split(["p1_a", "p2_a"], "x(.)")


def test_files_of_both_shapes(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    (tmp_path / "folds.yaml").write_text("- {test: [a], validation: [b]}\n- {test: [b]}\n")
    assert read_folds(tmp_path / "splits_final.json") == (Fold(train=("a",), validation=("b",)),)
    assert read_folds(tmp_path / "folds.yaml") == (Fold(test=("a",), validation=("b",)), Fold(test=("b",)))


@pytest.mark.parametrize("text", ["", "a: [", "- {tests: [a]}", "[]", "3"])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.yaml").write_text(text)
    with pytest.raises(FileError, match=r"folds\.yaml: "):
        read_folds(tmp_path / "folds.yaml")
    with pytest.raises(FileError, match=r"none\.json: "):
        read_folds(tmp_path / "none.json")


def test_a_case_is_tested_once() -> None:
    with pytest.raises(ValueError, match="b is tested twice"):
        check_disjoint([Fold(test=("a", "b")), Fold(test=("b",))])


def test_prepare_takes_a_fold_of_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "raw", a=[LESION], b=[LESION], c=[LESION], d=[LESION])
    (tmp_path / "splits.json").write_text(
        json.dumps([{"val": ["a"]}, {"train": ["a", "c"], "val": ["b"], "test": ["d"]}])
    )
    words = ["prepare", str(tmp_path / "raw"), "-o", str(tmp_path / "out"), "--folds", str(tmp_path / "splits.json")]
    assert main([*words, "--fold", "1"]) == 0
    assert open_store(tmp_path / "out").split == {"train": ("a", "c"), "validation": ("b",), "test": ("d",)}
    assert main([*words, "--fold", "2"]) == 2
    assert "--fold 2 of" in capfd.readouterr().err

"""The lesion board: lesions numbered by a file or by connected components, each clicked by itself; means by size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.lab.evaluation.known_systems import GRID, LESION, SMALL, Painter, write_cases
from voxsam.errors import GeometryError, InputError
from voxsam.io import write_mask
from voxsam.lab.evaluation.protocol import Evaluation, EvaluationSettings, ScoredMask, evaluate
from voxsam.lab.evaluation.scores import Scores
from voxsam.lab.evaluation.tables import lesion_rows, write_tables
from voxsam.volume import Volume

SETTINGS = EvaluationSettings(clicks=(1, 3), trials=2, per_lesion=True, corrective=6)


def number(folder: Path, name: str, array: np.ndarray) -> None:
    (folder / "labelsInstances").mkdir(exist_ok=True)
    write_mask(Volume(array.astype(np.uint8), GRID, "SEG"), folder / "labelsInstances" / f"{name}.nii.gz")


def test_numbered_lesions_are_clicked_apart_though_they_touch(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION])
    halves = np.zeros(GRID.shape, int)
    halves[LESION] = 1
    middle = (LESION[0].start + LESION[0].stop) // 2
    halves[middle : LESION[0].stop, LESION[1], LESION[2]] = 2
    number(tmp_path, "a", halves)
    rows = evaluate(Painter(), cases, SETTINGS, "set").rows
    assert {row.lesion for row in rows} == {1, 2}
    for row in rows:
        assert row.scores.truth_ml == pytest.approx((halves == row.lesion).sum() * GRID.voxel_volume_ml)
        for at, positive in row.points:
            assert not positive or halves[at] == row.lesion


def test_without_numbers_what_hangs_together_is_a_lesion(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION, SMALL])
    rows = evaluate(Painter(), cases, SETTINGS, "set").rows
    assert {row.lesion for row in rows} == {1, 2}


def test_tumour_without_a_number_is_refused(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION])
    number(tmp_path, "a", np.zeros(GRID.shape))
    with pytest.raises(InputError, match=r"a\.nii\.gz: tumour without a number; expected one for each of its voxels"):
        evaluate(Painter(), cases, SETTINGS, "set")


def test_numbers_of_another_shape_are_refused(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION])
    (tmp_path / "labelsInstances").mkdir()
    other = GRID.crop((0, 0, 0), (5, 5, 5))
    write_mask(Volume(np.ones((5, 5, 5), np.uint8), other, "SEG"), tmp_path / "labelsInstances" / "a.nii.gz")
    with pytest.raises(GeometryError, match=r"shape \(5, 5, 5\); expected the label's"):
        evaluate(Painter(), cases, SETTINGS, "set")


def board(*lesions: tuple[str, int, float, dict[tuple[str, int], float]]) -> Evaluation:
    rows = [
        ScoredMask(case, lesion, kind, 0, clicks, Scores(dice, 0.5, 1.0, ml, ml, 0.0, 1, 1, 0), (), 0.0)
        for case, lesion, ml, dices in lesions
        for (kind, clicks), dice in dices.items()
    ]
    settings = EvaluationSettings(clicks=(1, 3), trials=1, per_lesion=True, corrective=6)
    return Evaluation("system", "set", settings, tuple(rows), {})


def test_the_board_has_a_row_for_each_lesion_each_size_and_all():
    columns = [("random", 1), ("random", 3), ("corrective", 1), ("corrective", 2), ("corrective", 6)]
    of = lambda *dice: dict(zip(columns, dice, strict=True))  # noqa: E731
    rows = lesion_rows(
        board(
            ("a", 1, 1.0, of(0.5, 0.6, 0.5, 0.7, 0.9)),  # 12.4 mm
            ("a", 2, 2.0, of(0.7, 0.8, 0.7, 0.8, 0.8)),  # 15.6 mm
            ("b", 1, 100.0, of(0.9, 0.9, 0.9, 0.9, 1.0)),  # 57.6 mm
        )
    )
    assert [row["lesion"] for row in rows] == ["a 1", "a 2", "b 1", "10 to 20 mm", "40 to 80 mm", "all"]
    assert [row["n"] for row in rows] == [1, 1, 1, 2, 1, 3]
    assert list(rows[0])[3:] == ["Dice, 1 click", "Dice, 3 clicks", "Dice, 1 + 1", "Dice, 1 + 5"]
    assert [rows[3][f"Dice, {c}"] for c in ("1 click", "3 clicks", "1 + 1", "1 + 5")] == [
        "0.600", "0.700", "0.750", "0.850",
    ]  # fmt: skip
    assert rows[-1]["Dice, 1 click"] == "0.700"


def test_the_tables_of_single_lesions_have_the_board_and_others_not():
    found = board(("a", 1, 1.0, {("random", 1): 0.5, ("random", 3): 0.5}))
    assert "lesions by size" in write_tables(found)

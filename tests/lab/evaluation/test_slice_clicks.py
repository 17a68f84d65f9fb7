"""Systems that are clicked in every slice: the clicks, the names of rows, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.lab.evaluation.known_systems import GRID, LESION, SMALL, Painter, Painting, write_cases
from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.lab.evaluation.charts import COLOURS
from voxsam.lab.evaluation.clicks import axial_axis, clicks_in_slices
from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate
from voxsam.lab.evaluation.tables import paper_rows, summarise, write_tables
from voxsam.volume import Volume

SETTINGS = EvaluationSettings(clicks=(1, 3), trials=2)


class SlicePainter(Painter):
    """A Painter that is clicked in every slice and remembers the truth that it was given."""

    name = "slice painter"

    def open(self, volume: Volume) -> SlicePainting:
        self.opened = SlicePainting(volume, self.reach)
        return self.opened


class SlicePainting(Painting):
    def show_truth(self, truth: Volume) -> None:
        self.truth = truth


def test_axial_is_the_axis_nearest_to_the_patients_own():
    upright = Grid.from_spacing((5, 6, 7), (1, 2, 3))
    assert [axial_axis(upright.reorient(axes)) for axes in ("RAS", "LIP", "SPR", "ASL")] == [2, 1, 0, 1]


@pytest.mark.parametrize("axes", ["LPS", "SAR", "LIP"])
def test_each_slice_of_the_tumour_is_clicked_inside_it(axes: str):
    grid = Grid.from_spacing((20, 18, 12), (1, 2, 3)).reorient(axes)
    axis, tumour = axes.translate(str.maketrans("I", "S")).index("S"), np.zeros(grid.shape, bool)
    tumour[3:9, 4:8, 2:7] = True
    drawn = clicks_in_slices(tumour, grid, 4, 0, "a", 0, 0)
    slices = [{click[0][axis] for click in clicks} for clicks in drawn]
    low, high = (range(3, 9), range(4, 8), range(2, 7))[axis][0], (range(3, 9), range(4, 8), range(2, 7))[axis][-1]
    assert slices == [{number} for number in range(low, high + 1)]
    assert all(tumour[at] and positive for clicks in drawn for at, positive in clicks)
    assert all(len({at for at, _ in clicks}) == 4 for clicks in drawn)  # none twice


def test_fewer_clicks_are_the_first_and_only_the_key_decides():
    tumour = np.zeros(GRID.shape, bool)
    tumour[LESION] = True
    ten = clicks_in_slices(tumour, GRID, 10, 7, "a", 0, 1)
    assert [clicks[:3] for clicks in ten] == clicks_in_slices(tumour, GRID, 3, 7, "a", 0, 1)
    assert clicks_in_slices(tumour, GRID, 3, 7, "a", 0, 2) != clicks_in_slices(tumour, GRID, 3, 7, "a", 0, 1)
    del ten[0]
    tumour[..., 2] = False  # the first slice: the others keep their clicks
    assert clicks_in_slices(tumour, GRID, 10, 7, "a", 0, 1) == ten


def test_rows_per_slice_and_their_scores(tmp_path: Path):
    """6 slices with one click each, which fills its own voxel only: 6 of 324 voxels are found, then 18."""
    cases = write_cases(tmp_path, a=[LESION], empty=[])
    system = SlicePainter(reach=0)
    result = evaluate(system, cases, SETTINGS, "set")
    assert result.skipped.keys() == {"empty"}
    keys = [(row.kind, row.trial, row.clicks, len(row.points)) for row in result.rows]
    assert keys == [("per slice", trial, clicks, 6 * clicks) for trial in (0, 1) for clicks in (1, 3)]
    assert [row.scores.dice for row in result.rows[:2]] == pytest.approx([2 * 6 / 330, 2 * 18 / 342])
    assert set(result.rows[0].points) <= set(result.rows[1].points)
    assert np.count_nonzero(system.opened.truth.array) == 324 and system.opened.truth.grid.close_to(GRID)
    assert result.rows == evaluate(SlicePainter(reach=0), cases, SETTINGS, "set").rows


def test_what_tables_call_it_and_what_they_admit(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION], b=[SMALL])
    result = evaluate(SlicePainter(reach=0), cases, SETTINGS, "set")
    assert [line.label for line in summarise(result)] == ["1 pt/slice", "3 pts/slice"]
    assert [row["Method"] for row in paper_rows([result])][1] == "slice painter (3 pts/slice)"
    assert "the system is given where along the patient the tumour begins and ends" in write_tables(result)
    assert "is given where" not in write_tables(evaluate(Painter(), cases, SETTINGS, "set"))
    assert "| 3 clicks per slice |" in write_tables(result)
    assert {line.kind for line in summarise(result)} <= COLOURS.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"corrective": 3}, "corrective clicks with slice painter"),
        ({"per_lesion": True}, "single lesions with slice painter"),
        ({"region": "centre"}, "the region 'centre' with slice painter"),
        ({"noise": 0.1}, "clicks that miss with slice painter"),
    ],
)
def test_what_has_no_meaning_in_slices_is_refused(tmp_path: Path, change: dict, words: str):
    cases = write_cases(tmp_path, a=[LESION])
    with pytest.raises(UnsupportedError, match=words):
        evaluate(SlicePainter(), cases, replace(SETTINGS, **change), "set")

"""The protocol with systems of known masks: the rows, pairing, seeds, lesions, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.lab.evaluation.known_systems import GRID, LESION, SMALL, Painter, Painting, Threshold, write_cases
from voxsam.errors import GeometryError, InputError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.io import write_mask
from voxsam.lab.data.cases import find_cases
from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate, evaluate_scan
from voxsam.lab.evaluation.systems import SessionSystem
from voxsam.prompts import Point
from voxsam.volume import Volume
from voxsam.weights import load_model

SETTINGS = EvaluationSettings(clicks=(1, 3), trials=2)


def test_a_row_for_each_case_trial_and_number_of_clicks(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION], b=[SMALL])
    result = evaluate(Painter(), cases, SETTINGS, "set")
    keys = [(row.case, row.kind, row.trial, row.clicks) for row in result.rows]
    assert keys == [(case, "random", trial, clicks) for case in "ab" for trial in (0, 1) for clicks in (1, 3)]
    assert (result.system, result.dataset, result.cases, result.skipped) == ("painter", "set", ("a", "b"), {})
    for one, three in zip(result.rows[::2], result.rows[1::2], strict=True):
        assert three.points[:1] == one.points and three.scores.mask_ml > one.scores.mask_ml


def test_a_score_known_beforehand(tmp_path: Path):
    # One click deepest in 9 x 6 x 6 voxels of 6 mm3 paints 5 x 5 x 5 of them.
    cases = write_cases(tmp_path, a=[LESION])
    (row,) = evaluate(Painter(), cases, EvaluationSettings(clicks=(1,), trials=1, region="deepest"), "set").rows
    assert row.scores.dice == pytest.approx(2 * 125 / (125 + 324))
    assert (row.scores.mask_ml, row.scores.truth_ml) == pytest.approx((0.75, 1.944))
    assert row.scores.volume_error == pytest.approx(125 / 324 - 1)


def test_the_numbers_of_a_case_do_not_depend_on_the_others_nor_on_the_counts(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION], b=[LESION])
    both = evaluate(Painter(), cases, SETTINGS, "set").rows
    alone = evaluate(Painter(), cases[1:], SETTINGS, "set").rows
    assert both[4:] == alone
    more = evaluate(Painter(), cases[1:], replace(SETTINGS, clicks=(10, 3)), "set").rows
    assert [row for row in more if row.clicks == 3] == [row for row in alone if row.clicks == 3]
    assert [row.points for row in both[:4]] != [row.points for row in both[4:]]  # each case draws its own clicks
    assert evaluate(Painter(), cases[1:], replace(SETTINGS, seed=1), "set").rows != alone


def test_corrections_begin_with_the_random_click_and_mend_the_mask(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION])
    result = evaluate(Painter(), cases, EvaluationSettings(clicks=(1,), trials=1, corrective=6), "set")
    first, *corrected = result.rows
    assert [row.clicks for row in corrected] == [1, 2, 3, 4, 5, 6]
    assert {row.kind for row in corrected} == {"corrective"}
    assert (corrected[0].points, corrected[0].scores) == (first.points, first.scores)
    assert corrected[-1].scores.dice > first.scores.dice + 0.2
    assert all(later.points[: row.clicks] == row.points for row, later in pairwise(corrected))


def test_without_faults_the_scores_stay(tmp_path: Path):
    place = (slice(4, 7), slice(6, 9), slice(3, 6))
    cases = write_cases(tmp_path, a=[place])
    settings = EvaluationSettings(clicks=(1,), trials=1, corrective=3, region="deepest")
    rows = evaluate(Painter(reach=1), cases, settings, "set").rows
    assert [row.scores.dice for row in rows] == [1, 1, 1, 1]
    assert [len(row.points) for row in rows] == [1, 1, 1, 1]


def test_a_system_without_negative_clicks_gets_none(tmp_path: Path):
    cases = write_cases(tmp_path, a=[SMALL])
    painter = Painter(reach=4)
    painter.takes_negative = False
    rows = evaluate(painter, cases, EvaluationSettings(clicks=(1,), trials=2, corrective=4), "set").rows
    assert all(positive for row in rows for _, positive in row.points)
    rows = evaluate(Painter(reach=4), cases, EvaluationSettings(clicks=(1,), trials=2, corrective=4), "set").rows
    assert not all(positive for row in rows for _, positive in row.points)


def test_each_lesion_by_itself(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION, SMALL])
    rows = evaluate(Painter(reach=20), cases, EvaluationSettings(clicks=(1,), trials=2, per_lesion=True), "set").rows
    assert [(row.lesion, row.trial) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row.scores.truth_ml for row in rows] == pytest.approx([1.944, 1.944, 0.108, 0.108])
    # The mask is the whole scan: its part in the other lesion counts neither for nor against it.
    assert rows[0].scores.mask_ml == pytest.approx((20 * 18 * 12 - 18) * 6 / 1000)


def test_only_some_labels_are_the_tumour(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION, SMALL])
    whole, second = (
        evaluate(Painter(), cases, replace(SETTINGS, labels=labels), "set").rows[0].scores.truth_ml
        for labels in ((), (2,))
    )
    assert (whole, second) == pytest.approx((2.052, 0.108))


def test_an_automatic_system_answers_once_and_needs_no_tumour(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION], empty=[])
    first, second = evaluate(Threshold(), cases, SETTINGS, "set").rows
    assert (first.kind, first.trial, first.clicks, first.points, first.scores.dice) == ("automatic", 0, 0, (), 1)
    assert (second.case, second.scores.dice, second.scores.lesions) == ("empty", 1, 0)


def test_an_empty_label_is_skipped_and_said(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION], empty=[])
    result = evaluate(Painter(), cases, SETTINGS, "set")
    assert result.cases == ("a",)
    assert result.skipped == {"empty": "its label is empty: there is nothing to click on"}
    with pytest.raises(InputError, match="1 cases with empty labels; expected tumours to click on"):
        evaluate(Painter(), cases[1:], SETTINGS, "set")


def test_a_label_on_another_grid_is_refused_with_its_name(tmp_path: Path):
    cases = write_cases(tmp_path, a=[LESION])
    other = Grid.from_spacing(GRID.shape, (1, 2, 3))
    write_mask(Volume(np.ones(GRID.shape, np.uint8), other, "SEG"), cases[0].label)
    with pytest.raises(GeometryError, match=r"a: a label on .*; resample the label"):
        evaluate(Painter(), cases, SETTINGS, "set")


def test_a_system_that_answers_on_another_grid_is_refused():
    class Wrong(Painting):
        def segment(self, points: Sequence[Point]) -> Volume:
            return Volume(np.zeros((2, 2, 2), np.uint8), Grid.from_spacing((2, 2, 2), (1, 1, 1)))

    class System(Painter):
        def open(self, volume: Volume) -> Painting:
            return Wrong(volume, 1)

    tumour = np.zeros(GRID.shape, bool)
    tumour[LESION] = True
    with pytest.raises(GeometryError, match=r"case: a mask on .*; expected the scan's"):
        list(evaluate_scan(System(), "case", [Volume(np.zeros(GRID.shape), GRID)], tumour, SETTINGS))


def test_all_channels_of_a_case_are_opened(tmp_path: Path):
    """In two files, or in one of four dimensions (MSD Task01)."""
    opened = []

    class System(Painter):
        def open(self, volume) -> Painting:
            opened.append([image.array.mean() for image in volume])
            return Painting(volume[0], self.reach)

    (case,) = write_cases(tmp_path, a=[LESION])
    first = nib.load(case.image)
    voxels = np.asarray(first.dataobj)
    both = np.stack([voxels, voxels + 500], -1)
    nib.Nifti1Image(voxels + 500, first.affine).to_filename(tmp_path / "imagesTr" / "a_0001.nii.gz")
    nib.Nifti1Image(both, first.affine).to_filename(tmp_path / "both.nii.gz")
    in_two, in_one = (
        replace(case, images=(case.image, tmp_path / "imagesTr" / "a_0001.nii.gz")),
        tmp_path / "both.nii.gz",
    )
    rows = [evaluate(System(), [c], SETTINGS, "set").rows for c in (in_two, replace(case, images=(in_one,)))]
    assert rows[0] == rows[1] == evaluate(Painter(), [case], SETTINGS, "set").rows
    assert opened[0] == opened[1] == pytest.approx([voxels.mean(), voxels.mean() + 500])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clicks": ()}, "expected numbers from 1 on"),
        ({"clicks": (0, 1)}, "expected numbers from 1 on"),
        ({"trials": 0}, "0 trials; expected one or more"),
        ({"region": "edge"}, "region 'edge'; expected one of any, centre, surround, margin, deepest"),
        ({"noise": 1.5}, "noise 1.5; expected a fraction from 0 to 1"),
        ({"corrective": -1}, "-1 corrective clicks"),
        ({"seed": -1}, "seed -1; expected a whole number from 0 on"),
        ({"labels": (0,)}, "label 0; expected labels of the tumour"),
        ({"tolerance_mm": float("nan")}, "tolerance nan mm"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(InputError, match=words):
        EvaluationSettings(**settings)


def test_no_cases_and_clicks_for_an_automatic_system(tmp_path: Path):
    with pytest.raises(InputError, match="no cases; expected one or more"):
        evaluate(Painter(), [], SETTINGS, "set")
    with pytest.raises(UnsupportedError, match="single lesions with threshold; expected a system that takes clicks"):
        evaluate(Threshold(), write_cases(tmp_path, a=[LESION]), replace(SETTINGS, per_lesion=True), "set")


def test_the_packaged_model_on_a_scan_it_never_saw(shared_data: Path):
    case = next(case for case in find_cases(shared_data / "sarcoma_ct") if case.name == "STS_047")
    system = SessionSystem(load_model("voxsam-tiny", "cpu"))
    rows = evaluate(system, [case], EvaluationSettings(clicks=(1, 3), trials=2, corrective=2), "sarcoma_ct").rows
    assert len(rows) == 2 * (2 + 2)
    assert all(row.scores.dice > 0.7 and row.scores.nsd > 0.6 and row.scores.lesions_found == 1 for row in rows)
    assert (
        rows == evaluate(system, [case], EvaluationSettings(clicks=(1, 3), trials=2, corrective=2), "sarcoma_ct").rows
    )

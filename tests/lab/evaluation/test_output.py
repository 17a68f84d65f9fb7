"""The folder of an evaluation: its files, the same bytes for the same seed, nothing half written or overwritten."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.lab.evaluation.known_systems import LESION, SMALL, Painter, Threshold, write_cases
from voxsam.errors import FileError, InputError
from voxsam.lab.data.layouts import choose_cases, split_names
from voxsam.lab.evaluation import output
from voxsam.lab.evaluation.output import check_output, choose_examples, write_evaluation, write_run_report
from voxsam.lab.evaluation.protocol import Evaluation, EvaluationSettings, evaluate
from voxsam.report.report import png_size

SETTINGS = EvaluationSettings(clicks=(1, 3), trials=2, corrective=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("set")


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict:
    return {case.name: case for case in write_cases(folder, a_1=[LESION], b_2=[SMALL], c_3=[])}


@pytest.fixture(scope="module")
def result(cases: dict) -> Evaluation:
    return evaluate(Painter(), list(cases.values()), SETTINGS, "<set>")


@pytest.fixture(scope="module")
def written(result: Evaluation, cases: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parent") / "out"
    write_evaluation(result, Painter(), cases, out)
    return out


def test_every_file_is_there_and_nothing_else(written: Path):
    assert {path.name for path in written.iterdir()} == output.FILES - {output.MASKS}
    charts = {"dice_against_clicks.png", "case_boxes.png", "volumes.png", "overlay_best.png", "overlay_worst.png"}
    assert {path.name for path in (written / "figures").iterdir()} == charts  # of two cases none is the median
    assert list(written.parent.iterdir()) == [written]


def test_the_scores_come_back_from_the_csv(written: Path, result: Evaluation):
    with (written / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.rows) == 2 * 2 * 4
    for found, row in zip(rows, result.rows, strict=True):
        assert (found["case"], found["kind"], int(found["clicks"])) == (row.case, row.kind, row.clicks)
        assert float(found["dice"]) == pytest.approx(row.scores.dice, abs=1e-6)
    i, j, k = result.rows[0].points[0][0]
    assert rows[0]["points"] == f"{i} {j} {k} +"
    assert rows[1]["points"].startswith(rows[0]["points"] + ";")


def test_the_table_of_cases_holds_the_means_of_their_trials(written: Path, result: Evaluation):
    with (written / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["kind"], row["clicks"]) for row in rows[:3]] == [
        ("a_1", "random", "1"), ("b_2", "random", "1"), ("a_1", "random", "3")
    ]  # fmt: skip
    assert len(rows) == 2 * 4 and {row["masks"] for row in rows} == {"2"}
    own = [row.scores for row in result.rows if (row.case, row.kind, row.clicks) == ("b_2", "random", 3)]
    found = next(row for row in rows if (row["case"], row["kind"], row["clicks"]) == ("b_2", "random", "3"))
    assert float(found["dice"]) == pytest.approx(sum(scores.dice for scores in own) / 2, abs=1e-6)
    assert float(found["volume_error"]) == pytest.approx(sum(scores.volume_error for scores in own) / 2, abs=1e-6)
    assert float(found["hd95_mm"]) == pytest.approx(
        max(scores.hd95_mm for scores in own), abs=1e-6
    )  # of two the greater


def test_the_summary(written: Path, result: Evaluation):
    found = json.loads((written / "summary.json").read_text(encoding="utf-8"))
    assert (found["kind"], found["system"], found["dataset"]) == ("voxsam evaluation", "painter", "<set>")
    assert found["settings"]["clicks"] == [1, 3] and found["settings"]["seed"] == 0
    assert [(line["kind"], line["clicks"]) for line in found["lines"]] == [
        ("random", 1), ("random", 3), ("corrective", 1), ("corrective", 2)
    ]  # fmt: skip
    assert found["skipped"] == {"c_3": "its label is empty: there is nothing to click on"}
    assert set(found["cases"]) == {"a_1", "b_2"}
    first = [row.scores.dice for row in result.rows if (row.case, row.kind, row.clicks) == ("a_1", "random", 1)]
    assert found["cases"]["a_1"][0]["dice"] == pytest.approx(sum(first) / 2, abs=1e-6)


def test_the_page_holds_all_and_loads_nothing(written: Path):
    page = (written / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert "&lt;set&gt;" in page and "<set>" not in page
    assert "Skipped: c_3" in page and "Dice, 1 click" in page
    assert "<h2>Best and worst case</h2>" in page  # two cases have no median
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_the_heading_names_the_examples_that_there_are(result: Evaluation, tmp_path: Path):
    for names, heading in (
        (("best",), "Best case"),
        (("best", "worst"), "Best and worst case"),
        (("best", "median", "worst"), "Best, median and worst case"),
    ):
        overlays = [tmp_path / f"overlay_{name}.png" for name in names]
        for path in overlays:
            Image.new("RGB", (20, 10)).save(path)
        write_run_report(result, overlays, tmp_path / "page.html")
        assert f"<h2>{heading}</h2>" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "broad"), [((96, 66), False), ((200, 66), True)])
def test_a_chart_of_many_cases_has_the_whole_width(result: Evaluation, tmp_path: Path, size: tuple, broad: bool):
    Image.new("RGB", size).save(tmp_path / "case_boxes.png")
    assert png_size(tmp_path / "case_boxes.png") == size
    write_run_report(result, [tmp_path / "case_boxes.png"], tmp_path / "page.html")
    assert ('<figure class="broad">' in (tmp_path / "page.html").read_text(encoding="utf-8")) is broad


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_and_replaces(
    written: Path, result: Evaluation, cases: dict, tmp_path: Path
):
    out = tmp_path / "again"
    shutil.copytree(written, out)
    (out / "scores.csv").write_text("old", encoding="utf-8")
    write_evaluation(evaluate(Painter(), list(cases.values()), SETTINGS, "<set>"), Painter(), cases, out)
    for name in ("scores.csv", "figures/case_boxes.png", "figures/overlay_best.png"):
        assert (out / name).read_bytes() == (written / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_an_automatic_run_has_no_figure_of_clicks(cases: dict, tmp_path: Path):
    result = evaluate(Threshold(), list(cases.values()), EvaluationSettings(), "set")
    write_evaluation(result, Threshold(), cases, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert "dice_against_clicks.png" not in names and "overlay_median.png" in names
    assert "inf" not in (tmp_path / "out" / "summary.json").read_text().lower()
    assert "automatic" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_what_fails_leaves_nothing_behind(
    result: Evaluation, cases: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "write_examples", lambda *_: [])
    monkeypatch.setattr(output, "write_run_report", full)
    with pytest.raises(FileError, match=r"out could not be written \(No space left on device\)"):
        write_evaluation(result, Painter(), cases, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_previous_evaluation_may_be_replaced_and_nothing_else(written: Path, tmp_path: Path):
    check_output(written)
    check_output(tmp_path)  # empty
    check_output(tmp_path / "new")
    (tmp_path / "summary.json").write_text('{"kind": "something"}', encoding="utf-8")
    with pytest.raises(FileError, match="holds something else; expected a new folder, or a previous evaluation"):
        check_output(tmp_path)
    (written / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileError, match="holds something else"):
        check_output(written)
    (written / "notes.txt").unlink()
    with pytest.raises(FileError, match="holds something else"):
        check_output(written / "table.md")
    with pytest.raises(FileError, match="does not exist; expected an existing one"):
        check_output(tmp_path / "no" / "where")


def test_best_median_and_worst(result: Evaluation):
    rows = [
        replace(row, case=f"{row.case}{n}", scores=replace(row.scores, dice=dice))
        for n, dice in enumerate((0.2, 0.9, 0.4, 0.5, 0.6))
        for row in result.rows[:1]
    ]
    chosen = choose_examples(replace(result, rows=tuple(rows)))
    assert {name: row.scores.dice for name, row in chosen.items()} == {"best": 0.9, "median": 0.5, "worst": 0.2}
    assert list(choose_examples(replace(result, rows=tuple(rows[:1])))) == ["best"]


def test_cases_by_name_and_by_split(folder: Path, cases: dict):
    every = list(cases.values())
    assert choose_cases(every, None) == every
    assert choose_cases(every, ["b_2", "a_1"]) == every[:2]
    assert split_names(folder, "test") == ["c_3"]
    with pytest.raises(InputError, match=r"no case x_1, x_2; expected names such as a_1 \(3 cases\)"):
        choose_cases(every, ["x_2", "a_1", "x_1"])
    with pytest.raises(InputError, match="no names of cases"):
        choose_cases(every, [])
    with pytest.raises(FileError, match=r"without a split 'val' \(it has only test\)"):
        split_names(folder, "val")


def test_a_data_set_without_splits(tmp_path: Path):
    for text in ("{}", '{"split": 3}', '{"split": {"test": "a"}}'):
        (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
        with pytest.raises(FileError, match=r'without a split .*expected "split": \{"test": \[names of cases\]\}'):
            split_names(tmp_path, "test")
    (tmp_path / "dataset.json").write_text("[", encoding="utf-8")
    with pytest.raises(FileError, match="expected a JSON object"):
        split_names(tmp_path, "test")

"""A model's file records its training scans, and evaluate, batch and compare say if a test scan is among them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.lab.evaluation.known_systems import LESION, SMALL, Painter, write_cases
from tests.lab.training.minuscule import write
from voxsam.cli import main
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.lab.compare.order import Outcome, Training
from voxsam.lab.compare.output import notes
from voxsam.lab.compare.plan import Plan
from voxsam.lab.compare.tables import Found, RowResult, best_of, markdown
from voxsam.lab.data.cases import find_cases
from voxsam.lab.evaluation.protocol import Evaluation, EvaluationSettings, evaluate
from voxsam.lab.evaluation.tables import case_rows, paper_rows, write_tables
from voxsam.network.card import Card
from voxsam.seen import content
from voxsam.testing import stub_network
from voxsam.volume import Volume
from voxsam.weights import load_model
from voxsam.weights.checkpoint import save_model

SETTINGS = EvaluationSettings(clicks=(1,), trials=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two cases, `livers`, and a model trained on the first, which the recipe does not hold out."""
    folder = tmp_path_factory.mktemp("trained")
    write_cases(folder / "livers", STS_001=[LESION], STS_002=[LESION, SMALL])
    recipe = write(folder / "recipe.yaml", held_out=["STS_002"], phantoms=1, steps=1)
    words = ["train", str(recipe), "--data", str(folder / "livers"), "-o", str(folder / "run")]
    assert main(words) == 0
    return folder


def scored(model: Path, folder: Path) -> Evaluation:
    """The evaluation of a Painter with the model's card."""
    painter = Painter()
    painter.card = load_model(model, "cpu").card  # type: ignore[attr-defined]
    return evaluate(painter, find_cases(folder), SETTINGS, folder.name)


def model_of(trained: Path) -> Path:
    return trained / "run" / "model.safetensors"


def test_a_card_lists_what_was_trained_on_and_nothing_else(trained: Path):
    scan = read_volume(trained / "livers" / "imagesTr" / "STS_001_0000.nii.gz")
    assert load_model(model_of(trained), "cpu").card.trained_on == {
        "livers": {"STS_001": content(scan)},
        "phantoms": {"seed 20000": ""},
    }


@pytest.mark.slow
def test_a_prepared_store_lists_the_scans_that_it_was_made_of(tmp_path: Path):
    write_cases(tmp_path / "livers", **{f"STS_00{n}": [LESION] for n in range(4)})
    words = ["prepare", str(tmp_path / "livers"), "-o", str(tmp_path / "store"), "--spacing", "6,6,6"]
    assert main(words) == 0
    recipe = write(tmp_path / "recipe.yaml", phantoms=0, steps=1, validation=[])
    assert main(["train", str(recipe), "--data", str(tmp_path / "store"), "-o", str(tmp_path / "run")]) == 0
    listed = load_model(tmp_path / "run" / "model.safetensors", "cpu").card.trained_on["livers"]
    (test,) = {f"STS_00{n}" for n in range(4)} - set(listed)
    overlap = scored(tmp_path / "run" / "model.safetensors", tmp_path / "livers").overlap
    assert set(overlap) == set(listed) and test not in overlap
    assert all("the same voxels" in how for how in overlap.values())


def same(folder: Path) -> None:
    """The scan unchanged."""


def renamed(folder: Path) -> None:
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / kind / f"STS_001{ending}").rename(folder / kind / f"other{ending}")


def resaved(folder: Path) -> None:
    """The scan as float32, with other axes and another name."""
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        path = folder / kind / f"STS_001{ending}"
        volume = read_volume(path, labels=kind == "labelsTr")
        turned = volume.reorient("SAR")
        target = folder / kind / f"other{ending}"
        if kind == "imagesTr":
            write_volume(turned.with_array(turned.array.astype(np.float32)), target)
        else:
            write_mask(turned.with_array(turned.array.astype(np.uint8), "SEG"), target)
        path.unlink()


def cropped(folder: Path) -> None:
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        path = folder / kind / f"STS_001{ending}"
        volume = read_volume(path, labels=kind == "labelsTr")
        part = Volume(volume.array[2:17, 1:16, :10].copy(), volume.grid.crop((2, 1, 0), (15, 15, 10)), volume.modality)
        path.unlink()
        if kind == "imagesTr":
            write_volume(part, folder / kind / f"other{ending}")
        else:
            write_mask(part.with_array(part.array.astype(np.uint8), "SEG"), folder / kind / f"other{ending}")


def resampled(folder: Path) -> None:
    """The scan with every voxel changed: recognised by its name alone."""
    path = folder / "imagesTr" / "STS_001_0000.nii.gz"
    volume = read_volume(path)
    write_volume(volume.with_array((volume.array // 2).astype(np.int16)), path)


@pytest.mark.parametrize(
    "change, words",
    [
        (same, "trained on it: STS_001 of livers has the same voxels"),
        (renamed, "trained on it: STS_001 of livers has the same voxels"),
        (resaved, "trained on it: STS_001 of livers has the same voxels"),
        (cropped, "trained on a part of it, or on what it is a part of: STS_001 of livers"),
        (resampled, "perhaps trained on it: STS_001 of livers has the same name"),
    ],
)
def test_an_overlap_is_found(trained: Path, tmp_path: Path, change: Callable[[Path], None], words: str):
    folder = tmp_path / "copy"
    shutil.copytree(trained / "livers", folder)
    change(folder)
    found = scored(model_of(trained), folder)
    assert found.checked and list(found.overlap.values()) == [words]
    assert "STS_002" not in found.overlap
    assert [row["Method"] for row in paper_rows([found])] == ["painter (1 pt/volume), trained on 1 of 2 cases"]
    (case,) = found.overlap
    assert f"painter was trained on 1 of these 2 cases, so its numbers are no test ({case}: {words})." in write_tables(
        found
    )
    marks = {row["case"]: row.get("trained on it") for row in case_rows(found)}
    assert marks["STS_002"] == "no" and marks[case] == words.partition(":")[0].replace("trained on it", "yes")


def test_the_command_says_it_and_writes_it_down(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("voxsam.lab.evaluation.output.write_examples", lambda *_: [])
    words = ["evaluate", str(trained / "livers"), "--model", str(model_of(trained)), "--clicks", "1", "--trials", "1"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "minuscule (1 pt/volume), trained on 1 of 2 cases" in shown
    assert "its numbers are no test (STS_001: trained on it" in shown
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["overlap"]) == ["STS_001"]
    assert summary["trained_on"] == "trained on livers (1 case), phantoms (1 case)"
    assert "its numbers are no test" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert main([*words, "--cases", "STS_002", "-o", str(tmp_path / "out")]) == 0
    assert "no test" not in capsys.readouterr().out


def test_of_an_old_file_what_its_card_says(tmp_path: Path):
    folder = tmp_path / "livers"
    write_cases(folder, a=[LESION])
    save_model(stub_network(), tmp_path / "old.safetensors")
    found = scored(tmp_path / "old.safetensors", folder)
    assert found.overlap == {} and not found.checked
    assert "an overlap may go unnoticed; its card says: none: random weights." in write_tables(found)


def test_a_model_that_begins_with_an_old_one_says_that_its_start_lists_nothing(tmp_path: Path):
    save_model(stub_network(name="old"), tmp_path / "old.safetensors")
    recipe = write(tmp_path / "recipe.yaml", phantoms=1, steps=1, start_from=str(tmp_path / "old.safetensors"))
    assert main(["train", str(recipe), "-o", str(tmp_path / "run")]) == 0
    card = load_model(tmp_path / "run" / "model.safetensors", "cpu").card
    assert card.trained_on == {"what old was trained on": {}, "phantoms": {"seed 20000": ""}}
    write_cases(tmp_path / "livers", a=[LESION])
    text = scored(tmp_path / "run" / "model.safetensors", tmp_path / "livers").trained_on
    assert text.endswith("lists what old was trained on (not listed), phantoms (1 case)")


def test_a_cohort_says_it_of_each_scan(trained: Path, tmp_path: Path):
    network = stub_network()
    network.card = network.card.having_seen(load_model(model_of(trained), "cpu").card.trained_on)
    save_model(network, tmp_path / "m.safetensors")
    images = trained / "livers" / "imagesTr"
    lines = ["scan,i,j,k", *(f"{images / f'STS_00{n}_0000.nii.gz'},6,6,4" for n in (1, 2))]
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    words = [
        "batch",
        str(tmp_path / "clicks.csv"),
        "--model",
        str(tmp_path / "m.safetensors"),
        "-o",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--quiet"]) == 0
    with (tmp_path / "o" / "cohort.csv").open(newline="") as file:
        messages = [row["messages"] for row in csv.DictReader(file)]
    assert "the model was trained on it: STS_001 of livers has the same voxels" in messages[0]
    assert "trained on" not in messages[1]


def test_a_row_of_a_comparison_is_marked_and_never_bold(tmp_path: Path):
    folder = tmp_path / "livers"
    write_cases(folder, a=[LESION], b=[LESION], c=[LESION])

    def row(name: str, reach: int, card: Card | None) -> RowResult:
        painter = Painter(reach)
        if card is not None:
            painter.card = card  # type: ignore[attr-defined]
        found = evaluate(painter, find_cases(folder), SETTINGS, "livers")
        fields = {"peak_gb": 1, "tuned": 1, "tuned_encoder": None, "total": 1, "scan_seconds": 1, "machine": "m"}
        outcome = Outcome(training=Training(), title="", note="", **fields)  # type: ignore[arg-type]
        return RowResult(name, name, "", {"livers": Found(found, (outcome,), (found,))})

    scan = read_volume(folder / "imagesTr" / "b_0000.nii.gz")
    knows = stub_network().card.having_seen({"all": {"b": content(scan)}})
    rows = [row("ours", 4, knows), row("other", 1, None), row("third", 0, None)]
    systems = [{"system": "voxsam", "row": one.row} for one in rows]
    plan = Plan.model_validate(
        {"name": "p", "title": "t", "reference": "ours", "data": [{"name": "livers"}], "systems": systems}
    )
    text = markdown(plan, rows, notes(plan, rows))
    assert "| ours † (1 pt/volume) |" in text
    assert "- † ours was trained on 1 of 3 test cases of livers: its numbers are no test, and never bold (b: " in text
    assert 0 not in best_of(plan, rows).values()

"""`voxsam benchmark`: the same curves with and without a server; the areas and both NSDs are right."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnInteractive")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "server"))

from serving import running

from tests.lab.evaluation.known_systems import LESION, SMALL, Painter, write_cases
from voxsam.errors import InputError
from voxsam.io import write_mask, write_volume
from voxsam.lab.cli.benchmark import CLICKS, CORRECTIVE, NOT_KNOWN, command
from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate
from voxsam.lab.evaluation.scores import score
from voxsam.lab.evaluation.tables import area_rows, areas
from voxsam.server.settings import Settings
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model


def call(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    """The command's summary.json; options that are not given have their defaults."""
    given = {"server": None, "model": None, "api_key": None, "title": None, "licence": None, "negative": True}
    given |= {
        "cases": None,
        "trials": 1,
        "whole": True,
        "tolerance_mm": 5.0,
        "seed": 0,
        "device": "cpu",
        "threads": None,
    }
    command(folder, output, **{**given, "quiet": True, **options})
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One labelled phantom, and the server's model."""
    folder, given = tmp_path_factory.mktemp("benchmark") / "scans", stub_scan()
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    write_volume(given.scan, folder / "imagesTr" / "p_0000.nii.gz")
    write_mask(given.truth, folder / "labelsTr" / "p.nii.gz")
    (folder / "dataset.json").write_text("{}")
    save_model(stub_network(), folder / "stub.safetensors")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running(Settings(), stub_network()) as http:
        yield str(http.base_url)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_server_and_its_model_get_the_same_clicks_and_scores(
    scans: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxsam.lab.evaluation.output.write_examples", lambda *_: [])
    there = call(scans, tmp_path / "there", server=server, title="Theirs", licence="CC0")
    here = call(scans, tmp_path / "here", model=str(scans / "stub.safetensors"))
    assert rows(tmp_path / "there") == rows(tmp_path / "here")
    counts = [(row["kind"], int(row["clicks"])) for row in rows(tmp_path / "here")]
    assert counts == [*(("random", n) for n in CLICKS), *(("corrective", n) for n in range(1, CORRECTIVE + 1))]
    assert there["areas"] == here["areas"] and set(here["areas"]) == {"random", "corrective"}
    assert (there["system"], there["facts"]["Licence"]) == ("Theirs", "CC0")
    assert here["facts"]["Licence"] == "Apache-2.0"
    assert "GB" in there["facts"]["Peak memory"] and "GB" in here["facts"]["Peak memory"]
    text = (tmp_path / "there" / "table.md").read_text(encoding="utf-8")
    assert "NSD by voxels" in text and "corrective, 1 to 10 clicks" in text and "Licence: CC0." in text
    assert (tmp_path / "there" / "figures" / "dice_against_clicks.png").is_file()


def test_one_target_is_wanted(scans: Path, tmp_path: Path) -> None:
    for both in ({}, {"server": "http://127.0.0.1:1", "model": "voxsam-tiny"}):
        with pytest.raises(InputError, match="expected --server URL or --model NAME; give one of them"):
            call(scans, tmp_path / "out", **both)
    with pytest.raises(InputError, match=r"http://127.0.0.1:1 does not answer"):
        call(scans, tmp_path / "out", server="http://127.0.0.1:1")
    assert not (tmp_path / "out").exists()
    assert "elsewhere" in NOT_KNOWN


def test_areas_are_mean_heights_of_the_curves(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, a=[LESION], b=[LESION, SMALL])
    found = evaluate(Painter(), cases, EvaluationSettings(clicks=(1, 3, 4), trials=2, corrective=3), "boxes")
    own = areas(found)
    assert set(own) == {"random", "corrective"}
    expected = []
    for case in ("a", "b"):
        height = {
            n: np.mean([r.scores.dice for r in found.rows if (r.case, r.kind, r.clicks) == (case, "random", n)])
            for n in (1, 3, 4)
        }
        expected.append(((height[1] + height[3]) / 2 * 2 + (height[3] + height[4]) / 2) / 3)
    assert own["random"]["dice"].value == pytest.approx(np.mean(expected))
    assert math.isnan(own["random"]["nsd_voxels"].value)  # not asked for
    assert list(area_rows(found)[0]) == ["area under the curve", "Dice ↑", "NSD by area ↑"]
    assert areas(evaluate(Painter(), cases, EvaluationSettings(clicks=(1,), trials=1), "boxes")) == {}


def surface(mask: np.ndarray) -> np.ndarray:
    """(n, 3) voxels of a mask that share a face with one outside."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return np.argwhere(padded & ~inner)


@pytest.mark.parametrize("tolerance_mm", [1.0, 2.5, 3.5])
def test_nsd_by_voxels_is_that_of_a_count_by_hand(tolerance_mm: float) -> None:
    spacing_mm = np.array([1.0, 2.0, 3.0])
    truth, mask = np.zeros((14, 12, 9), bool), np.zeros((14, 12, 9), bool)
    truth[2:9, 3:9, 2:7] = mask[3:12, 2:8, 3:8] = True
    one, other = surface(truth) * spacing_mm, surface(mask) * spacing_mm
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1)
    near = (apart.min(axis=1) <= tolerance_mm).sum() + (apart.min(axis=0) <= tolerance_mm).sum()
    found = score(mask, truth, spacing_mm, tolerance_mm, voxel_nsd=True)
    assert found.nsd_voxels == pytest.approx(near / (len(one) + len(other)))
    assert found.nsd_voxels != pytest.approx(found.nsd, abs=1e-3)


def test_nsd_by_voxels_of_empty_masks() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    found = [
        score(a, b, np.ones(3), voxel_nsd=True).nsd_voxels for a, b in ((empty, empty), (empty, full), (full, empty))
    ]
    assert found == [1, 0, 0]
    assert math.isnan(score(full, full, np.ones(3)).nsd_voxels)

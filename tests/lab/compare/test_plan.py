"""Plans: read with their defaults, every fault reported in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from voxsam.errors import FileError, InputError
from voxsam.lab.compare.plan import read_plan

MARGIN = {"system": "voxsam", "row": "margin", "trained_as": "voxsam", "evaluation": {"region": "margin"}}
GOOD: dict[str, Any] = {
    "title": "A plan",
    "reference": "voxsam",
    "data": [{"name": "a", "phantoms": {"count": 3}}],
    "systems": [
        "voxsam",
        {"system": "voxsam", "row": "margin", "trained_as": "voxsam", "evaluation": {"region": "margin"}},
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_a_plan_with_its_defaults(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path))
    assert (plan.name, plan.seeds, [row.row for row in plan.systems]) == ("small", (0,), ["voxsam", "margin"])
    assert plan.trained(plan.row("margin")) is plan.row("voxsam")
    assert [row.row for row in plan.only(["margin"]).systems] == ["voxsam", "margin"]
    assert plan.only(["margin"]).reference == "voxsam"


def test_a_folder_given_by_the_user_wins(tmp_path: Path) -> None:
    assert read_plan(write(tmp_path), {"a": "/scans"}).data[0].folder == "/scans"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "nobody"}, "reference: nobody is no row; there are voxsam, margin"),
        ({"systems": ["voxsam", "voxsam"]}, "systems: voxsam is there twice"),
        ({"data": []}, "data"),
        ({"seed": 3}, "seed: Extra inputs are not permitted"),
        ({"evaluation": {"trials": 0}}, "0 trials"),
        ({"evaluation": {"clicked": 1}}, "evaluation: clicked is no key; there are clicks, trials, region"),
        ({"evaluation": {"trials": "ten"}}, "evaluation: trials: Input should be a valid integer"),
        ({"systems": ["voxsam", {"system": "voxsam", "row": "b", "trained_as": "c"}]}, "trained_as of b: c is no row"),
        ({"systems": [{"system": "voxsam", "row": "../b"}]}, "row"),
        (
            {"systems": ["voxsam", {**MARGIN, "options": {"a": 1}}]},
            "leave out its recipe, options, seeds and minutes, voxsam's hold",
        ),
    ],
)
def test_faults_are_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_plan(write(tmp_path, **changes))
    assert words in str(caught.value) and "small.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_data_sets_need_a_folder_or_phantoms(tmp_path: Path) -> None:
    path = write(tmp_path, data=[{"name": "kits"}])
    with pytest.raises(InputError, match=r"no folder for the data set kits; .* add --data kits=FOLDER"):
        read_plan(path)
    with pytest.raises(InputError, match=r"--data lits=\.\.\.; expected one of the plan's kits"):
        read_plan(path, {"lits": "/scans"})


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="no keys"):
        read_plan(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(InputError, match=r"broken\.yaml"):
        read_plan(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match="the row c"):
        read_plan(write(tmp_path)).only(["c"])

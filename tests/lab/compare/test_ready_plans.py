"""Every plan in plans/ can be read, its systems and options are known, its recipes are complete."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from voxsam.cli import main
from voxsam.lab.compare.plan import Plan, read_plan
from voxsam.lab.systems import common_loop
from voxsam.lab.systems.common_loop import CommonLoop, compared_system
from voxsam.lab.systems.compared import Job
from voxsam.lab.training.recipe import overridden
from voxsam.lab.training.start import make_network
from voxsam.preprocess import Preprocessing

PLANS = sorted((Path(__file__).parents[3] / "plans").glob("*.yaml"))
USE = Preprocessing(spacing_mm=(1, 1, 1), clip=(-100, 200), mean=40, sd=40)


def read(path: Path) -> Plan:
    folders = {data["name"]: "/scans" for data in yaml.safe_load(path.read_text())["data"]}
    return read_plan(path, folders)


def test_the_papers_tables_have_plans() -> None:
    names = ("table1", "table1-sarcoma", "table2", "table3", "fig7")
    wanted = {name + part for name in names for part in ("", "-tiny")}
    assert {path.stem for path in PLANS} == wanted


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_row_can_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store: Any = SimpleNamespace(preprocessing=USE, split={"validation": ("a",)})
    monkeypatch.setattr(common_loop, "open_store", lambda folder: store)
    plan = read(path)
    for row in plan.systems:
        system = compared_system(row.system)
        system.check_options(row.options)
        for data in plan.data if isinstance(system, CommonLoop) else ():
            keys = overridden(overridden(plan.recipe, data.recipe), plan.trained(row).recipe)
            budget = plan.budget_of(row)
            recipe = system.recipe(Job(tmp_path, tmp_path, recipe=keys, options=row.options, budget=budget))
            assert recipe.minutes if budget else recipe.steps or recipe.epochs
            assert recipe.model.crop // recipe.model.stride <= 32, "more tokens than any GPU has memory for"
            if recipe.start_from == "voxsam-tiny":
                make_network(recipe)  # which its tensors fit


def test_a_data_set_has_keys_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LiTS is clipped as in the paper, KiTS has crops of 256, and whatever is not given comes from the store."""
    store: Any = SimpleNamespace(preprocessing=USE, split={"validation": ("a",)})
    monkeypatch.setattr(common_loop, "open_store", lambda folder: store)
    plan = read(PLANS[0].with_name("table1.yaml"))
    voxsam, network = compared_system("voxsam"), compared_system("transbts")
    assert isinstance(voxsam, CommonLoop) and isinstance(network, CommonLoop)
    found = {}
    for data in plan.data:
        for name, system in (("voxsam", voxsam), ("transbts", network)):
            keys = overridden(overridden(plan.recipe, data.recipe), plan.row(name).recipe)
            found[data.name, name] = system.recipe(Job(tmp_path, tmp_path, recipe=keys))
    assert found["lits", "voxsam"].preprocessing.clip == (-17, 201)
    assert found["lits", "voxsam"].preprocessing.spacing_mm == (1, 1, 1)
    assert [found[data, "voxsam"].model.crop for data in ("kits", "pancreas", "lits", "colon")] == [256, 128, 128, 256]
    assert {recipe.model.crop for (_, name), recipe in found.items() if name == "transbts"} == {128}


def test_the_sarcomas_are_each_tested_once_and_fit_the_hours() -> None:
    plan = read(PLANS[0].with_name("table1-sarcoma.yaml"))
    folds, budget = plan.data[0].folds, plan.budget
    assert budget is not None and budget.minutes >= 30
    tested = [name for fold in folds for name in fold.test]
    assert len(folds) == 2 and len(tested) == len(set(tested)) == 24
    for fold in folds:
        assert len(fold.split(tested, plan.data[0].patient)["train"]) == 9
    minutes = {row.row: (plan.budget_of(row) or budget).minutes * len(plan.seeds_of(row)) for row in plan.systems}
    trained = [row.row for row in plan.systems if compared_system(row.system).about.trained]
    assert len(folds) * sum(minutes[row] for row in trained) / 60 == 14


KEPT = [path for path in PLANS if (path.parent / "results" / path.stem).is_dir()]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_committed_table_is_that_of_the_committed_results(path: Path, tmp_path: Path) -> None:
    kept = path.parent / "results" / path.stem
    shutil.copytree(kept, tmp_path / "results")
    for name in ("table.md", "table.tex", "table.csv"):
        (tmp_path / "results" / name).unlink()
    assert main(["compare", str(path), "--tables", "--results", str(tmp_path / "results")]) == 0
    for name in ("table.md", "table.tex", "table.csv"):
        assert (tmp_path / "results" / name).read_text() == (kept / name).read_text(), name

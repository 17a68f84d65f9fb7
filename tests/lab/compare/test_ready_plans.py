"""Every plan in plans/: it can be read, its systems and options are known, its recipes are whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from voxsam.lab.compare.plan import Plan, read_plan
from voxsam.lab.systems import common_loop
from voxsam.lab.systems.common_loop import CommonLoop, compared_system
from voxsam.lab.systems.compared import Job
from voxsam.lab.training.recipe import overridden
from voxsam.preprocess import Preprocessing

PLANS = sorted((Path(__file__).parents[3] / "plans").glob("*.yaml"))
USE = Preprocessing(spacing_mm=(1, 1, 1), clip=(-100, 200), mean=40, sd=40)


def read(path: Path) -> Plan:
    folders = {data["name"]: "/scans" for data in yaml.safe_load(path.read_text())["data"]}
    return read_plan(path, folders)


def test_the_papers_tables_have_plans() -> None:
    wanted = {name + part for name in ("table1", "table2", "table3", "fig7") for part in ("", "-tiny")}
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
            recipe = system.recipe(Job(tmp_path, tmp_path, recipe=keys, options=row.options))
            assert recipe.steps or recipe.epochs
            assert recipe.model.crop // recipe.model.stride <= 32, "more tokens than any GPU has memory for"


def test_a_data_set_has_keys_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LiTS is clipped as the paper says, KiTS is cut into crops of 256, and what is not said is the store's."""
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

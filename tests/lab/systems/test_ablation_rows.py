"""The rows of Fig. 7 and Table 3: their recipes, and one that is trained, written, loaded and clicked."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxsam.lab.data.layouts import write_phantoms
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.evaluation.systems import SessionSystem
from voxsam.lab.systems.common_loop import CommonLoop, compared_system
from voxsam.lab.systems.compared import COMPARED, Job
from voxsam.network.sizes import TINY, VIT_B
from voxsam.prompts import Point
from voxsam.testing import stub_network, stub_scan

ROWS = {
    "prompt-positional": {"prompt_kind": "positional", "marks": False},
    "prompt-levels-4": {},
    "prompt-levels-14": {"prompt_levels": (1, 4)},
    "prompt-levels-24": {"prompt_levels": (2, 4)},
    "prompt-levels-34": {"prompt_levels": (3, 4)},
    "prompt-levels-1234": {"prompt_levels": (1, 2, 3, 4)},
    "no-aggregation": {"multi_layer": False},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared phantoms."""
    folder = tmp_path_factory.mktemp("ablations")
    write_phantoms(folder / "raw", [3, 4], ((30, 30, 30), (6, 6, 6)))
    prepare(folder / "raw", folder / "prepared", Options(workers=1))
    return folder / "prepared"


def row(name: str) -> CommonLoop:
    found = compared_system(name)
    assert isinstance(found, CommonLoop)
    return found


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("size", "given"), [(TINY, "tiny"), (VIT_B, {"size": "vit_b", "profile": "paper"})])
def test_a_row_changes_one_part_of_the_plans_model(name: str, size: object, given: object, data: Path, tmp_path: Path):
    system = row(name)
    job = Job(data, tmp_path, recipe={"steps": 1, "model": given, "validation": []})
    system.check(job)
    made = system.recipe(job)
    plain = size if size is TINY else VIT_B.in_profile("paper")
    assert made.model == plain.model_copy(update=ROWS[name])
    assert (made.unmarked == 0) is (name == "prompt-positional")  # where a click without a place would be none
    about = system.about
    assert all((about.title, about.paper, about.source, about.licence, about.library, about.differences))
    assert about.trained and system.name == name


def test_they_are_registered_once_each_and_their_titles_differ():
    compared_system("voxsam")
    assert set(ROWS) <= set(COMPARED)
    titles = {row(name).about.title for name in ROWS}
    assert len(titles) == len(ROWS) and {"Prompts at level 4", "Prompts at levels 1, 2, 3, 4"} <= titles


@pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers
@pytest.mark.parametrize("name", ["prompt-positional", "prompt-levels-1234", "no-aggregation"])
def test_a_row_is_trained_written_loaded_and_clicked(name: str, data: Path, tmp_path: Path):
    fields = {"steps": 2, "batch": 1, "warmup": 0, "pictures": 0, "validation": [], "clip": "parts"}
    job = Job(data, tmp_path, 2, {"model": stub_network().config.model_dump(), **fields}, device="cpu")
    system = row(name)
    system.train(job, lambda line: None)
    loaded, stub = system.load(job), stub_scan(0)
    assert isinstance(loaded, SessionSystem) and loaded.name == name
    assert loaded.parameters == system.tuned_parameters(job)
    mask = loaded.open(stub.scan).segment([Point.at_index(stub.scan.grid, stub.click, True)])
    assert mask.grid == stub.scan.grid

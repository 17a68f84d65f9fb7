"""The networks as rows of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.systems.networks.tiny import TINY
from tests.lab.training.minuscule import write_cases
from voxsam.errors import InputError
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.systems.common_loop import compared_system
from voxsam.lab.systems.compared import COMPARED, Job
from voxsam.lab.systems.networks import FILES


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of two phantoms."""
    folder = tmp_path_factory.mktemp("data")
    write_cases(folder / "raw", p1=1, p2=2)
    prepare(folder / "raw", folder / "store", Options(spacing_mm=(6, 6, 6), workers=1))
    return folder / "store"


def job(data: Path, system: str, **changes: object) -> Job:
    recipe = {"steps": 2, "model": {"size": "tiny", "crop": 32}}
    return Job(**{"data": data, "out": data.parent, "recipe": recipe, "options": TINY[system], **changes})


@pytest.mark.parametrize("name", sorted(FILES))
def test_it_says_what_it_is(name: str) -> None:
    row = compared_system(name)
    about = row.about
    assert row.name == name and name in COMPARED and set(TINY[name]) <= set(row.options)
    assert all((about.title, about.paper, about.licence, about.library)) and about.source.startswith("https://")


def test_what_it_trains_is_counted_and_takes_no_clicks(data: Path) -> None:
    row = compared_system("transbts")
    small = job(data, "transbts")
    row.check(small)
    recipe = row.recipe(small)  # type: ignore[attr-defined]
    assert recipe.automatic and recipe.system == "transbts" and recipe.options == TINY["transbts"]
    count, wider = row.tuned_parameters(small), job(data, "transbts", options={**TINY["transbts"], "mlp": 129})
    assert count is not None and row.tuned_parameters(wider) == count + 2 * (64 + 1 + 64)  # two layers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"depth": 3}}, "the option depth of transbts; expected one of: width, embedding"),
        ({"options": {"width": 9}}, "the option width of transbts: 9"),
        ({"recipe": {"steps": 2, "model": {"size": "tiny", "crop": 36}}}, "a crop of 36 x 36 x 36 voxels"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(data: Path, changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compared_system("transbts").check(job(data, "transbts", **changes))

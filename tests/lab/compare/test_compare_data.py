"""The data sets of a plan: generated once, prepared; which cases are tested and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import voxsam
from voxsam.errors import InputError
from voxsam.lab.compare.order import cases_to_test, example_names, prepare_data
from voxsam.lab.compare.plan import DataSpec

SPEC = {"count": 5, "shape": (24, 26, 14), "spacing_mm": (6, 6, 8)}


def quiet(stage: str, fraction: float | None) -> None:
    pass


def spec(**phantoms: object) -> DataSpec:
    return DataSpec.model_validate({"name": "a", "phantoms": {**SPEC, **phantoms}, "spacing_mm": (6, 6, 6)})


def test_phantoms_are_made_once_and_brighter_if_asked(tmp_path: Path) -> None:
    store = prepare_data(spec(), None, tmp_path, quiet)
    (plain,) = tmp_path.glob("phantoms-*")
    image = plain / "imagesTr" / "phantom_0003_0000.nii.gz"
    before = image.stat().st_mtime_ns
    assert prepare_data(spec(), None, tmp_path, quiet).names == store.names and image.stat().st_mtime_ns == before
    prepare_data(spec(brighter_hu=100), None, tmp_path, quiet)
    (brighter,) = set(tmp_path.glob("phantoms-*")) - {plain}
    one, two = (voxsam.read_volume(folder / "imagesTr" / image.name).array for folder in (plain, brighter))
    tumour = voxsam.read_volume(plain / "labelsTr" / "phantom_0003.nii.gz", labels=True).array
    assert np.array_equal(two.astype(int) - one, 100 * tumour) and tumour.any()


def test_phantoms_of_an_interrupted_run_are_made_anew(tmp_path: Path) -> None:
    prepare_data(spec(), None, tmp_path, quiet)
    (folder,) = tmp_path.glob("phantoms-*")
    (folder / "dataset.json").unlink()
    (folder / "imagesTr" / "phantom_0000_0000.nii.gz").write_bytes(b"half")
    assert len(prepare_data(spec(), None, tmp_path, quiet).names) == 5


def test_test_cases_are_files_of_the_test_split(tmp_path: Path) -> None:
    store = prepare_data(spec(), None, tmp_path, quiet)
    cases = cases_to_test(tmp_path / "prepared")
    assert tuple(case.name for case in cases) == store.split["test"] and all(case.image.is_file() for case in cases)
    volumes = {name: store.description.cases[name].volume_ml for name in store.split["test"]}
    assert example_names(store, 1) == [min(volumes, key=lambda name: volumes[name])]
    assert sorted(example_names(store, 9)) == sorted(volumes)


def test_nothing_left_for_testing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a: 1 cases, none of them for testing; expected two cases or more"):
        prepare_data(spec(count=1), None, tmp_path, quiet)

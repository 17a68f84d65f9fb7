"""Case folders: MSD and nnU-Net names; missing files are named; held-out cases are never read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voxsam.errors import FileError, GeometryError, ImageError
from voxsam.geometry import Grid
from voxsam.io import write_mask, write_volume
from voxsam.lab.data.cases import find_cases
from voxsam.lab.data.sampling import load_cases
from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.run import make_stream
from voxsam.volume import Volume

GRID = Grid.from_spacing((12, 10, 8), (1, 2, 3), (4, 5, 6)).reorient("LPS")


def write_case(folder: Path, name: str, channel: str = "_0000", ending: str = ".nii.gz", labels: int = 30) -> None:
    """A scan of noise, and a label whose first `labels` voxels are 1."""
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(-100, 100, GRID.shape).astype(np.int16)
    label = (np.arange(noise.size) < labels).reshape(GRID.shape).astype(np.uint8)
    write_volume(Volume(noise, GRID), folder / "imagesTr" / f"{name}{channel}{ending}")
    write_mask(Volume(label, GRID), folder / "labelsTr" / f"{name}{ending}")


def describe(folder: Path, **fields: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(fields))
    return folder


def test_cases_of_both_layouts_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = describe(tmp_path / "set")
    write_case(folder, "b_2")
    write_case(folder, "a_1", channel="")
    (folder / "labelsTr" / "._b_2.nii.gz").write_bytes(b"left by a Mac")
    cases = find_cases(folder)
    assert [case.name for case in cases] == ["a_1", "b_2"]
    assert cases[0].image == folder / "imagesTr" / "a_1.nii.gz"
    assert cases[1].image == folder / "imagesTr" / "b_2_0000.nii.gz"
    assert cases[1].label == folder / "labelsTr" / "b_2.nii.gz"


def test_another_file_ending(tmp_path: Path) -> None:
    folder = describe(tmp_path, file_ending=".mha")
    write_case(folder, "a", ending=".mha")
    (case,) = find_cases(folder)
    assert case.name == "a"
    assert load_cases(folder)[0].label.array.sum() == 30


def test_the_real_sarcoma_scans_are_found(shared_data: Path) -> None:
    cases = find_cases(shared_data / "sarcoma_ct")
    assert len(cases) == 24
    assert cases[0].name == "STS_001"
    assert all(case.image.is_file() and case.label.is_file() for case in cases)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no dataset.json; expected a folder in MSD or nnU-Net raw layout; check the"):
        find_cases(tmp_path)
    with pytest.raises(FileError, match=r"no labels in labelsTr; expected at least one \*.nii.gz; check the path"):
        find_cases(describe(tmp_path))
    write_case(tmp_path, "a")
    (tmp_path / "imagesTr" / "a_0000.nii.gz").unlink()
    with pytest.raises(FileError, match=r"a.nii.gz: its image is missing; expected a_0000.nii.gz in imagesTr; add the"):
        find_cases(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "7", "null"])
def test_a_broken_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(FileError, match=r"dataset.json: .*expected a JSON object; repair the file"):
        find_cases(tmp_path)


def test_a_loaded_case_has_the_files_voxels(tmp_path: Path) -> None:
    write_case(describe(tmp_path), "a")
    (loaded,) = load_cases(tmp_path)
    assert loaded.scan.grid.close_to(GRID)
    assert len(loaded.foreground) == loaded.label.array.sum() == 30
    assert loaded.label.array[tuple(loaded.foreground.T)].all()


def test_faults_in_a_case_name_it(tmp_path: Path) -> None:
    write_case(describe(tmp_path), "empty_one", labels=0)
    with pytest.raises(ImageError, match="empty_one: a label without tumour"):
        load_cases(tmp_path)
    moved = Grid.from_spacing(GRID.shape, (1, 1, 1))
    write_mask(Volume(np.ones(GRID.shape, np.uint8), moved), tmp_path / "labelsTr" / "empty_one.nii.gz")
    with pytest.raises(GeometryError, match="empty_one: a label on Grid"):
        load_cases(tmp_path)


def recipe(**changes: object) -> Recipe:
    fields = {
        "name": "test",
        "model": {"size": "s", "width": 16, "depth": 4, "heads": 2, "adapter_width": 8, "crop": 16},
        "preprocessing": {"clip": (-100, 100), "mean": 0, "sd": 50},
        "steps": 5,
    }
    return Recipe.model_validate({**fields, **changes})


def test_held_out_cases_are_never_read(tmp_path: Path) -> None:
    folder = describe(tmp_path)
    for name in ("a", "b", "c"):
        write_case(folder, name, labels=20 + ord(name))
    for file in (folder / "imagesTr" / "b_0000.nii.gz", folder / "labelsTr" / "b.nii.gz"):
        file.write_bytes(b"whoever reads this fails")
    stream = make_stream(recipe(held_out=["b"]), folder)
    assert [len(case.foreground) for case in stream.scans] == [20 + ord("a"), 20 + ord("c")]
    assert len(stream) == 10
    with pytest.raises(FileError):
        make_stream(recipe(), folder)


def test_a_misspelt_held_out_case_is_refused(tmp_path: Path) -> None:
    folder = describe(tmp_path)
    write_case(folder, "STS_003")
    with pytest.raises(FileError, match="no case STS_03; expected all cases that the recipe names; check their nam"):
        make_stream(recipe(held_out=["STS_003", "STS_03"]), folder)

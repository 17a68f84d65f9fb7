"""The engine's sources from a folder: only what the split lets a model see, with digests of the voxels."""

from pathlib import Path

import numpy as np
import pytest

from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io import write_mask, write_volume
from voxsam.lab.engine import load
from voxsam.lab.engine.crops import EngineSettings
from voxsam.lab.engine.load import load_sources
from voxsam.preprocess import Preprocessing, standardised
from voxsam.seen import content
from voxsam.volume import Volume

SMALL = EngineSettings(organs=0, regions=0, sarcomas=0)
USED = Preprocessing(axes="SAR", spacing_mm=(2, 2, 2), clip=(-600, 300), mean=40, sd=60)


def scan(seed: int) -> Volume:
    array = np.random.default_rng(seed).integers(-50, 90, (12, 10, 8)).astype(np.int16)
    return Volume(array, Grid.from_spacing(array.shape, (1.5, 2.0, 3.0)), "CT")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two backgrounds, one of them for training, and nodules of patients from all three parts of the split."""
    split = {"backgrounds_ct": {"train": ("one",), "validation": ("two",)}}
    known = load.cases
    monkeypatch.setattr(load, "cases", lambda source, part: split.get(source, {}).get(part, known(source, part)))
    for place, names in {
        "backgrounds_ct": ("one", "two"),
        "nodules_lidc": ("LIDC-IDRI-0171_R_1", "LIDC-IDRI-0017_R_1", "LIDC-IDRI-0001_R_1"),
    }.items():
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / place / part).mkdir(parents=True)
        for number, name in enumerate(names):
            volume = scan(number)
            write_volume(volume, tmp_path / place / "imagesTr" / f"{name}_0000.nii.gz")
            label = np.zeros(volume.array.shape, np.uint8)
            label[3:9, 3:8, 2:6] = 1
            write_mask(volume.with_array(label, "SEG"), tmp_path / place / "labelsTr" / f"{name}.nii.gz")
    return tmp_path


def test_only_the_training_part_is_read_and_said(folder):
    sources = load_sources(folder, SMALL, USED)
    assert [background.name for background in sources.backgrounds] == ["one"]
    assert len(sources.nodules) == 1
    assert sources.seen == {
        "backgrounds_ct": {"one": content(scan(0))},
        "nodules_lidc": {"LIDC-IDRI-0171_R_1": content(scan(0))},
    }


def test_a_nodule_is_of_one_mm_and_0_at_its_edge(folder):
    (nodule,) = load_sources(folder, SMALL, USED).nodules
    assert nodule.mask.sum() == pytest.approx(6 * 1.5 * 5 * 2 * 4 * 3, rel=0.1)  # mm^3: voxels of one
    assert not any(np.moveaxis(nodule.mask, axis, 0)[[0, -1]].any() for axis in range(3))


def test_a_case_of_the_split_that_is_not_there_is_named(folder):
    (folder / "backgrounds_ct" / "imagesTr" / "one_0000.nii.gz").unlink()
    with pytest.raises(FileError, match=r"one_0000\.nii\.gz: no such file; expected the data that the split names"):
        load_sources(folder, SMALL, USED)


def test_a_share_of_nodules_without_any_is_said(folder):
    for path in (folder / "nodules_lidc" / "labelsTr").iterdir():
        path.unlink()
    with pytest.raises(FileError, match="nodules_lidc: no nodules"):
        load_sources(folder, SMALL, USED)


def test_mr_is_standardised_as_in_use_and_said_as_it_is_in_its_file(folder, monkeypatch):
    split = {"sarcoma_mr": {"train": ("one",)}, "lesions_other": {"train": ("two",)}}
    monkeypatch.setattr(load, "cases", lambda source, part: {"backgrounds_ct": {}, **split}[source].get(part, ()))
    for place in ("sarcoma_mr", "lesions_other/mr_flair"):
        for part in ("imagesTr", "labelsTr"):
            (folder / place / part).mkdir(parents=True)
    scans = {"sarcoma_mr/imagesTr/one": scan(0), "lesions_other/mr_flair/imagesTr/two": scan(1)}
    for place, volume in scans.items():
        write_volume(volume, folder / f"{place}_0000.nii.gz")
        label = volume.with_array((volume.array > 40).astype(np.uint8), "SEG")
        write_mask(label, folder / f"{place.replace('imagesTr', 'labelsTr')}.nii.gz")
    sources = load_sources(folder, SMALL.model_copy(update={"nodules": 0, "mr": 0.1}), USED)
    assert sources.seen == {"sarcoma_mr": {"one": content(scan(0))}, "lesions_other": {"two": content(scan(1))}}
    expected = standardised(scan(0), 40, 60).array
    (one, _) = sources.mr
    level = one.levels[0]
    assert level.array.mean() == pytest.approx(expected.mean(), abs=2)
    bright, dark = (
        level.array[level.label == 1],
        level.array[level.label == 0],
    )  # the label lies where the scan is bright
    assert bright.mean() > dark.mean() + 60 and list(one.labelled) == [1]

"""The store: exact round trips, slices that read only their chunks, crops equal to the array's, faults by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
import zarr.storage

from voxsam.errors import FileError, InputError
from voxsam.geometry import Grid
from voxsam.lab.data import store as store_module
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.layouts import find_labelled
from voxsam.lab.data.sampling import Sampler, load_cases
from voxsam.lab.data.store import (
    CaseRecord,
    Description,
    Fingerprint,
    Intensities,
    case_folder,
    check_output,
    open_store,
    read_description,
    read_record,
    sample_positions,
    write_case,
)
from voxsam.preprocess import Preprocessing, Window, read_crop
from voxsam.volume import Volume

GRID = Grid.from_spacing((120, 100, 60), (1, 2, 3), (5, 6, 7)).reorient("SAR").respace((3, 2, 1))
PREPROCESSING = Preprocessing(spacing_mm=(3, 2, 1), clip=(-500, 200), mean=3, sd=7)


def record(**changes: object) -> CaseRecord:
    fields: dict = {
        "key": "k",
        "sources": (),
        "source_shape": (120, 100, 60),
        "source_spacing_mm": (1, 2, 3),
        "source_axes": "RAS",
        "shape": GRID.shape,
        "affine": GRID.affine.tolist(),
        "volume_ml": 1,
        "lesions": 1,
        "voxels": 1000,
    }
    return CaseRecord.model_validate({**fields, **changes})


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    scan = rng.integers(-1000, 1000, GRID.shape).astype(np.int16)
    label = np.zeros(GRID.shape, np.uint8)
    label[20:30, 30:40, 70:80] = 1
    return scan, (scan / 3).astype(np.float32), label


@pytest.fixture
def folder(tmp_path, arrays):
    scan, other, label = arrays
    write_case(case_folder(tmp_path, "a"), [scan, other], label, np.argwhere(label).astype(np.int32), record())
    channel = Intensities(voxels=1, low=0, high=1, mean=0, sd=1)
    fingerprint = Fingerprint(cases=1, channels=(channel,) * 2, spacing_mm=(3, 2, 1), shape=(60, 100, 120), volume_ml=1)
    description = Description(
        data_set="msd",
        labels=None,
        seed=0,
        channels=("CT", "PET"),
        preprocessing=(PREPROCESSING, PREPROCESSING.model_copy(update={"modality": ""})),
        fingerprint=fingerprint,
        split={"train": ("a",), "validation": (), "test": ()},
        cases={"a": record()},
    )
    (tmp_path / "dataset.json").write_text(description.model_dump_json())
    return tmp_path


def test_round_trip(folder, arrays):
    store = open_store(folder)
    assert store.names == ("a",)
    assert store.split["train"] == ("a",)
    assert store.preprocessing.channel(0) == PREPROCESSING
    assert [store.preprocessing.channel(n).modality for n in range(store.preprocessing.channels)] == ["CT", ""]
    both = store.load("a").images
    assert [image.modality for image in both] == ["CT", ""]
    for image, array in zip(both, arrays, strict=False):
        np.testing.assert_array_equal(image.array[...], array)
    for channel, modality in ((0, "CT"), (1, "")):
        case = store.load("a", channel)
        np.testing.assert_array_equal(case.scan.array[...], arrays[channel])
        assert case.scan.array.dtype == arrays[channel].dtype
        assert case.scan.modality == modality
        assert case.scan.grid == case.label.grid == GRID
        np.testing.assert_array_equal(case.label.array[...], arrays[2])
        np.testing.assert_array_equal(case.foreground, np.argwhere(arrays[2]))
        assert case.foreground.dtype == np.int32


@pytest.mark.parametrize("centre", [(25, 35, 75), (0, 0, 0), (59, 99, 119)])
@pytest.mark.parametrize("zoom", [1.0, 0.8])
def test_a_crop_is_that_of_the_array_in_memory(folder, arrays, centre, zoom):
    preprocessing = PREPROCESSING.model_copy(update={"spacing_mm": (3 * zoom, 2 * zoom, zoom)})
    lazy = open_store(folder).load("a").scan
    window = Window.around(preprocessing.model_grid(GRID), np.array(centre) / zoom, (32, 32, 32))
    crop = read_crop(lazy, window, preprocessing)
    np.testing.assert_array_equal(crop, read_crop(Volume(arrays[0], GRID), window, preprocessing))
    assert crop.any()


def test_the_sampler_draws_the_same_from_the_store(folder, arrays):
    lazy = open_store(folder).load("a")
    whole = type(lazy)(Volume(arrays[0], GRID, "CT"), Volume(arrays[2], GRID), lazy.foreground)
    sampler = Sampler(PREPROCESSING, 16, Augmentation())
    for seed in range(4):
        one, two = (sampler.draw(case, np.random.default_rng(seed)) for case in (lazy, whole))
        for key, value in two.items():
            np.testing.assert_array_equal(one[key], value)


def test_a_slice_reads_its_chunks_only(folder, monkeypatch):
    array = open_store(folder).load("a").scan.array
    assert isinstance(array, zarr.Array)
    assert array.chunks == (64, 64, 64)
    assert array.shards == (64, 128, 128)
    assert len(list((case_folder(folder, "a") / "channel_0" / "c").rglob("*"))) == 3  # one file in two folders
    reads = []
    get = zarr.storage.LocalStore.get

    async def counted(self, key, prototype, byte_range=None):
        data = await get(self, key, prototype, byte_range)
        reads.append(0 if data is None else len(data))
        return data

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    array[2:20, 2:20, 2:20]
    one = sum(reads)
    array[...]
    assert 0 < one < (sum(reads) - one) / 2  # of four chunks one, the largest


def test_a_case_appears_whole_or_not_at_all(tmp_path, arrays, monkeypatch):
    scan, _, label = arrays
    target = case_folder(tmp_path, "a")
    write_case(target, [scan], label, np.zeros((1, 3), np.int32), record(key="old"))
    write_array = store_module._write_array

    def fail_at_the_label(group, name, array):
        if name == "label":
            raise OSError(28, "No space left on device")
        write_array(group, name, array)

    monkeypatch.setattr(store_module, "_write_array", fail_at_the_label)
    with pytest.raises(FileError, match="a.zarr could not be written .No space left on device.; expected a"):
        write_case(target, [scan], label, np.zeros((1, 3), np.int32), record(key="new"))
    found = read_record(target)
    assert found is not None
    assert found.key == "old"
    assert [path.name for path in target.parent.iterdir()] == ["a.zarr"]
    assert read_record(case_folder(tmp_path, "b")) is None


def test_positions_of_a_large_label_are_an_even_sample_with_those_asked_for():
    label = np.zeros((100, 100, 60), np.uint8)
    label[:70] = 1
    always = np.array([[69, 99, 59], [3, 4, 5]], np.int32)
    found = sample_positions(label, always)
    assert len(found) <= 200_000
    assert len(found) > 199_000
    assert found.dtype == np.int32
    assert label[tuple(found.T)].all()
    assert all((found == point).all(1).any() for point in always)
    assert np.bincount(found[:, 0]).std() < 3  # as many on each slice
    np.testing.assert_array_equal(sample_positions(label[60:], always[:0]), np.argwhere(label[60:]))


def test_what_is_no_store(tmp_path, folder):
    with pytest.raises(FileError, match="no dataset.json; expected a folder made by voxsam prepare; run `vox"):
        open_store(tmp_path / "none")
    description = json.loads((folder / "dataset.json").read_text())
    for text in ("{", "[]", json.dumps({"labels": {"0": "liver"}}), json.dumps({**description, "cases": 7})):
        (folder / "dataset.json").write_text(text)
        with pytest.raises(FileError, match=r"dataset.json is not that of a prepared data set; expected one of form"):
            open_store(folder)


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": 99, "of_later": 1}])
def test_a_store_of_another_format_is_prepared_again(folder, changes):
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, **changes}))
    assert read_description(folder / "dataset.json") is None
    for read in (open_store, load_cases, find_labelled):
        words = rf"prepared as format {changes['format']} by another VoxSAM; expected format 3; prepare it again: run `"
        with pytest.raises(FileError, match=words):
            read(folder)


def test_what_a_store_does_not_have(folder):
    store = open_store(folder)
    with pytest.raises(FileError, match="no case b; expected one of a; check the name"):
        store.load("b")
    with pytest.raises(FileError, match="channel 2 of a; expected 0 to 1; choose another channel"):
        store.load("a", 2)
    (case_folder(folder, "a") / "label" / "zarr.json").unlink()
    with pytest.raises(FileError, match=r"a.zarr could not be read .*; expected a prepared case; prepare it again"):
        store.load("a")


def test_bad_outputs(tmp_path):
    with pytest.raises(InputError, match="is the data set; expected another folder; choose one with -o"):
        check_output(tmp_path, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="expected a folder that can be made; choose another with -o"):
        check_output(tmp_path / "file" / "store", tmp_path)

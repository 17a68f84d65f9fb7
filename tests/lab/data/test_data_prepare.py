"""From raw folders to a store: named data sets, faults, second runs, killed runs, several channels."""

from __future__ import annotations

import csv
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.lab.data.raw_cases import AFFINE, KITS_AFFINE, SHAPE, block, decathlon, forget_orientation, noise, save
from voxsam.errors import FileError, ImageError, InputError
from voxsam.io import read_volume
from voxsam.lab.data import prepare as preparing
from voxsam.lab.data.augmentation import Augmentation
from voxsam.lab.data.cases import Labelled, find_cases
from voxsam.lab.data.faults import FaultyCasesError
from voxsam.lab.data.layouts import find_labelled
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.data.sampling import Sampler, load_cases
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.protocol import read_case
from voxsam.preprocess import RELEASED
from voxsam.resample import resample

ONE = Options(workers=1)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder with its modification time and inode."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1000))


def test_a_folder_in_nnunet_layout(tmp_path):
    raw = decathlon(tmp_path / "raw")
    outcome = prepare(raw, tmp_path / "out", ONE)
    assert outcome.made == 3
    store = open_store(tmp_path / "out")
    assert store.description == outcome.store.description
    assert store.names == ("a", "b", "c")
    assert [len(part) for part in store.split.values()] == [1, 1, 1]
    assert store.preprocessing.spacing_mm == (3, 2, 1)
    assert store.preprocessing.axes == "SAR"
    (trained,) = store.split["train"]
    values = noise("abc".index(trained))[block() > 0]
    assert store.preprocessing.clip == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))))
    assert (store.preprocessing.mean, store.preprocessing.sd) == pytest.approx((values.mean(), values.std()))
    assert store.fingerprint.channels[0].mean == pytest.approx(values.mean())
    assert store.fingerprint.shape == (12, 16, 20)
    case = store.load("b")
    np.testing.assert_array_equal(case.scan.array[...], noise(1).T)
    np.testing.assert_array_equal(case.label.array[...], block().T)
    np.testing.assert_allclose(case.scan.grid.index_to_world((0, 0, 0)), AFFINE[:3, 3])
    record = store.description.cases["b"]
    assert record.source_spacing_mm == (1, 2, 3)
    assert record.source_axes == "RAS"
    assert (record.lesions, record.voxels) == (1, 64)
    assert record.volume_ml == pytest.approx(64 * 6 / 1000)
    assert [source.path for source in record.sources] == ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"]
    assert record.sources[0].size == (raw / "imagesTr" / "b_0000.nii.gz").stat().st_size


def test_kits_as_released(tmp_path):
    raw = tmp_path / "raw"
    for number in range(3):
        save(noise(number), raw / f"case_0000{number}" / "imaging.nii.gz", KITS_AFFINE)
        label = block(value=2)
        label[:3] = 1
        save(label, raw / f"case_0000{number}" / "aggregated_MAJ_seg.nii.gz", KITS_AFFINE)
    store = prepare(raw, tmp_path / "out", ONE).store
    assert store.description.data_set == "kits"
    assert store.description.labels == (2,)
    assert store.preprocessing == RELEASED["kits"]
    case = store.load("case_00001")
    assert case.scan.grid.axes == "IPL"  # the stored order, as the released code read it
    assert case.scan.array.shape == (60, 32, 12)  # 3 x 2 x 1 mm to 1 mm
    scan = read_volume(raw / "case_00001" / "imaging.nii.gz")
    expected = np.rint(resample(scan, scan.grid.respace((1, 1, 1))))
    np.testing.assert_array_equal(case.scan.array[...], expected)
    assert case.label.array[...].sum() == pytest.approx(64 * 6, rel=0.1)  # mm3; the kidney (1) is background


def test_lits_leaves_livers_without_tumour_out(tmp_path):
    raw = tmp_path / "raw"
    for number in range(4):
        save(noise(number), raw / "Training Batch 1" / f"volume-{number}.nii")
        save(block(value=1 if number == 2 else 2), raw / "Training Batch 1" / f"segmentation-{number}.nii")
    description = prepare(raw, tmp_path / "out", ONE).store.description
    assert sorted(description.cases) == ["lits-000", "lits-001", "lits-003"]
    assert description.without_tumour == ("lits-002",)
    assert description.preprocessing[0] == RELEASED["lits"]
    assert description.faults == ()


@pytest.mark.parametrize(("name", "target"), [("pancreas", 2), ("colon", 1)])
def test_the_decathlon_sets_of_the_paper_are_chosen_by_name(tmp_path, name, target):
    raw = decathlon(tmp_path / "raw", "abcd", labels={"0": "background", "1": "one", "2": "two"})
    for case in "abcd":
        label = block(value=target)
        label[0, 0, 0] = 3 - target
        save(label, raw / "labelsTr" / f"{case}.nii.gz")
    store = prepare(raw, tmp_path / "out", Options(name, workers=1)).store
    assert store.preprocessing == RELEASED[name]
    assert store.description.cases["a"].volume_ml == pytest.approx(64 * 6 / 1000)
    other = prepare(raw, tmp_path / "all", Options(name, labels=(1, 2), workers=1)).store
    assert other.description.cases["a"].volume_ml == pytest.approx(65 * 6 / 1000)
    assert other.preprocessing.mean != RELEASED[name].mean, "released statistics are those of the released label"


def test_pairs_in_a_csv_with_two_mr_channels(tmp_path):
    rng = np.random.default_rng(5)
    for name in "ab":
        for channel in (1, 2):
            save(rng.random(SHAPE).astype(np.float32) * 10**channel, tmp_path / "mr" / f"{name}{channel}.nii")
        save(block(), tmp_path / "mr" / f"{name}.nii")
    table = tmp_path / "pairs.csv"
    table.write_text("name,image,image_1,label\n" + "".join(f"{n},mr/{n}1.nii,mr/{n}2.nii,mr/{n}.nii\n" for n in "ab"))
    store = prepare(table, tmp_path / "out", Options(spacing_mm=(3.0, 2.0, 1.0), workers=1)).store
    assert [p.modality for p in store.description.preprocessing] == ["", ""]
    assert store.description.preprocessing[1].mean == pytest.approx(50, rel=0.2)
    for channel in (0, 1):
        array = store.load("b", channel).scan.array
        assert array.dtype == np.float32
        np.testing.assert_allclose(array[...], read_volume(tmp_path / "mr" / f"b{channel + 1}.nii").array.T, rtol=1e-5)


def test_every_fault_is_named_at_once_and_nothing_is_prepared(tmp_path):
    raw = decathlon(tmp_path / "raw", "abcdefghijk")
    (raw / "labelsTr" / "a.nii.gz").unlink()
    (raw / "imagesTr" / "b_0000.nii.gz").write_bytes(b"no gzip")
    save(block((20, 16, 11)), raw / "labelsTr" / "c.nii.gz")
    save(block(value=4), raw / "labelsTr" / "d.nii.gz")
    save(np.zeros(SHAPE, np.uint8), raw / "labelsTr" / "e.nii.gz")
    save(noise(6), raw / "imagesTr" / "f_0000.nii.gz")  # the voxels of g
    moved = AFFINE.copy()
    moved[0, 3] += 30
    save(block(), raw / "labelsTr" / "h.nii.gz", moved)
    flat = bytearray(gzip.decompress((raw / "imagesTr" / "i_0000.nii.gz").read_bytes()))
    flat[84:88], flat[254:256] = bytes(4), bytes(2)  # pixdim[2], and no sform that would do
    (raw / "imagesTr" / "i_0000.nii.gz").write_bytes(gzip.compress(flat))
    save(block(), raw / "labelsTr" / "j.nii.gz", np.diag([1.0, -1, 1, 1]) @ AFFINE)
    save(np.stack([noise(10), noise(11)], -1), raw / "imagesTr" / "k_0000.nii.gz")
    out = tmp_path / "out"
    with pytest.raises(FaultyCasesError, match=r"10 faults in 10 cases \(.*faults.csv\); expected none; correct the"):
        prepare(raw, out, ONE)
    with open(out / "faults.csv", newline="") as file:
        rows = [(row["case"], row["fault"]) for row in csv.DictReader(file)]
    assert rows == [
        ("a", "missing label"),
        ("b", "unreadable file"),
        ("c", "shape mismatch"),
        ("d", "unknown label value"),
        ("e", "empty label"),
        ("g", "duplicate case"),
        ("h", "affine mismatch"),
        ("i", "spacing zero"),
        ("j", "orientation mismatch"),
        ("k", "channel mismatch"),
    ]
    assert not (out / "dataset.json").exists()
    assert not (out / "cases").exists()
    store = prepare(raw, out, Options(workers=1, skip_faulty=True)).store
    assert store.names == ("f",)
    assert [fault.case for fault in open_store(out).description.faults] == list("abcdeghijk")


def test_channels_in_one_file_of_four_dimensions(tmp_path):
    """MSD Task01 and Task05: all MR sequences of a case in one file."""
    rng = np.random.default_rng(3)
    raw = decathlon(tmp_path / "raw", "abc", channel_names={"0": "T2", "1": "ADC"})
    images = {name: (rng.random((*SHAPE, 2)) * [100, 2000]).astype(np.float32) for name in "abc"}
    for name, image in images.items():
        (raw / "imagesTr" / f"{name}_0000.nii.gz").unlink()
        save(image, raw / "imagesTr" / f"{name}.nii.gz")
    store = prepare(raw, tmp_path / "out", replace(ONE, per_scan=False)).store
    assert store.preprocessing.channels == 2
    assert [p.modality for p in store.description.preprocessing] == ["MR", "MR"]
    assert store.preprocessing.channel(1).mean == pytest.approx(1000, rel=0.2)
    case = store.load("b")
    for channel, scan in enumerate(case.images):
        np.testing.assert_allclose(scan.array[...], images["b"][..., channel].T, rtol=1e-5)
    (from_files,) = load_cases(raw, only="b")
    for channel, scan in enumerate(from_files.images):
        np.testing.assert_array_equal(scan.array, images["b"][..., channel])
    sampler = Sampler(store.preprocessing, 12, Augmentation())
    for given in (case, from_files):
        crop = sampler.draw(given, np.random.default_rng(0))["crop"]
        assert crop.shape == (2, 12, 12, 12)
        assert abs(np.corrcoef(crop[0][crop[0] != 0], crop[1][crop[0] != 0])[0, 1]) < 0.2  # of two images
    few = Labelled(case.scan, case.label, case.foreground)
    with pytest.raises(ImageError, match="a case of 1 image channels; expected 2, as in the recipe; prepare the"):
        sampler.draw(few, np.random.default_rng(0))


def test_nothing_changed_nothing_done(tmp_path):
    raw = decathlon(tmp_path / "raw")
    prepare(raw, tmp_path / "out", ONE)
    before = state(tmp_path / "out")
    stages = []
    outcome = prepare(raw, tmp_path / "out", ONE, lambda stage, fraction: stages.append(stage))
    assert outcome.made == 0
    assert stages == []
    assert state(tmp_path / "out") == before


def test_a_changed_file_makes_its_case_anew_and_no_other(tmp_path):
    raw = decathlon(tmp_path / "raw")
    prepare(raw, tmp_path / "out", ONE)
    before = state(tmp_path / "out")
    save(noise(77), raw / "imagesTr" / "b_0000.nii.gz")
    touch(raw / "imagesTr" / "b_0000.nii.gz")
    outcome = prepare(raw, tmp_path / "out", ONE)
    assert outcome.made == 1
    after = state(tmp_path / "out")
    changed = {name.split("/")[1] for name in after if name.startswith("cases/") and before[name] != after[name]}
    assert changed == {"b.zarr"}
    np.testing.assert_array_equal(outcome.store.load("b").scan.array[...], noise(77).T)


def test_another_choice_is_another_store(tmp_path):
    raw = decathlon(tmp_path / "raw")
    prepare(raw, tmp_path / "out", ONE)
    assert prepare(raw, tmp_path / "out", Options(spacing_mm=(2.0, 2.0, 2.0), workers=1)).made == 3
    assert open_store(tmp_path / "out").load("a").scan.array.shape == (18, 16, 10)
    assert prepare(raw, tmp_path / "out", Options(spacing_mm=(2.0, 2.0, 2.0), seed=1, workers=1)).made == 0


def test_a_case_that_is_gone_leaves_the_store(tmp_path):
    raw = decathlon(tmp_path / "raw", "abcd")
    prepare(raw, tmp_path / "out", ONE)
    for file in (raw / "imagesTr" / "d_0000.nii.gz", raw / "labelsTr" / "d.nii.gz"):
        file.unlink()
    assert prepare(raw, tmp_path / "out", ONE).store.names == ("a", "b", "c")
    assert not (tmp_path / "out" / "cases" / "d.zarr").exists()


def test_a_killed_run_leaves_no_store_and_the_next_one_goes_on(tmp_path, monkeypatch):
    raw, out = decathlon(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, ONE)
    other = Options(spacing_mm=(2.0, 2.0, 2.0), workers=1)
    write, written = preparing.write_case, []

    def killed_at_the_second(folder, *rest):
        if written:
            (folder.parent / f".0123abcd-{folder.name}").mkdir()  # what it had begun
            raise KeyboardInterrupt
        written.append(folder)
        write(folder, *rest)

    monkeypatch.setattr(preparing, "write_case", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, out, other)
    with pytest.raises(FileError, match=r"no dataset.json; .*to its end"):
        open_store(out)
    monkeypatch.undo()
    assert prepare(raw, out, other).made == 2
    assert sorted(path.name for path in (out / "cases").iterdir()) == ["a.zarr", "b.zarr", "c.zarr"]


@pytest.mark.slow
def test_several_processes_give_the_same_store(tmp_path):
    raw = decathlon(tmp_path / "raw")
    one, two = (prepare(raw, tmp_path / f"{n}", Options(workers=n)).store for n in (1, 2))
    assert one.description == two.description
    np.testing.assert_array_equal(one.load("c").scan.array[...], two.load("c").scan.array[...])


def test_progress_goes_from_nothing_to_all(tmp_path):
    calls = []
    prepare(decathlon(tmp_path / "raw", "ab"), tmp_path / "out", ONE, lambda *call: calls.append(call))
    assert calls == [
        (stage, fraction) for stage in ("checking the cases", "resampling the cases") for fraction in (0, 0.5, 1)
    ]


def test_bad_choices(tmp_path):
    raw = decathlon(tmp_path / "raw")
    with pytest.raises(InputError, match="the label 5; expected some of 1; choose with --labels"):
        prepare(raw, tmp_path / "out", Options(labels=(5,), workers=1))
    with pytest.raises(InputError, match="is the data set; expected another folder"):
        prepare(raw, raw, ONE)
    for name in "abc":
        save(np.zeros(SHAPE, np.uint8), raw / "labelsTr" / f"{name}.nii.gz")
    with pytest.raises(ImageError, match="without a sound case that has a tumour; expected at least one"):
        prepare(raw, tmp_path / "out", Options(workers=1, skip_faulty=True))


def test_the_ignored_label_of_nnunet_is_no_tumour(tmp_path):
    raw = decathlon(tmp_path / "raw", labels={"background": 0, "tumour": 1, "ignore": 2})
    label = block()
    label[15:18] = 2
    save(label, raw / "labelsTr" / "a.nii.gz")
    store = prepare(raw, tmp_path / "out", ONE).store
    assert store.description.cases["a"].voxels == 64
    assert (store.description.labels, store.description.ignored_labels) == (None, (2,))
    (from_files,) = load_cases(raw, only="a")
    assert (len(from_files.foreground), from_files.label.array.sum()) == (64, 64)
    for folder in (raw, tmp_path / "out"):
        cases, labels = find_labelled(folder)
        assert (cases[0].name, labels) == ("a", ())
        np.testing.assert_array_equal(read_case(cases[0], labels)[1], block() > 0)
    with pytest.raises(InputError, match="the label 2, which the data set says to ignore; expected some of 1; choose"):
        prepare(raw, tmp_path / "out", Options(labels=(1, 2), workers=1))


def test_a_scan_of_unknown_orientation_is_noted(tmp_path):
    raw = decathlon(tmp_path / "raw")
    for path in (raw / "imagesTr" / "b_0000.nii.gz", raw / "labelsTr" / "b.nii.gz"):
        forget_orientation(path)
    assert prepare(raw, tmp_path / "out", ONE).store.description.unoriented == ("b",)
    assert prepare(raw, tmp_path / "out", ONE).store.description.unoriented == ("b",)  # read from what was kept


def test_real_scans(tmp_path, shared_data):
    raw = tmp_path / "raw"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    (raw / "dataset.json").write_text(json.dumps(json.loads((shared_data / "sarcoma_mr" / "dataset.json").read_text())))
    for case in find_cases(shared_data / "sarcoma_mr")[:2]:
        (raw / "imagesTr" / case.image.name).symlink_to(case.image)
        (raw / "labelsTr" / case.label.name).symlink_to(case.label)
    store = prepare(raw, tmp_path / "out", ONE).store
    assert store.preprocessing.modality == "MR"
    for name, record in store.description.cases.items():
        stored = int(store.load(name).label.array[...].sum()) * record.grid.voxel_volume_ml
        assert stored == pytest.approx(record.volume_ml, rel=0.02)

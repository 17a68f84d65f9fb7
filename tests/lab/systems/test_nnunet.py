"""nnU-Net: its input, its plans, the way to its predictor and back; and the real one once, end to end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.lab.systems.small_set import easy_set
from voxsam.errors import InputError, UnsupportedError, VoxSAMError
from voxsam.io import read_volume, write_volume
from voxsam.lab.data.cases import Case
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate, evaluate_scan
from voxsam.lab.systems import nnunet_system
from voxsam.lab.systems.common_loop import compared_system
from voxsam.lab.systems.compared import Job
from voxsam.lab.systems.nnunet_stages import DATASET, Folders, capped
from voxsam.lab.systems.nnunet_system import NnUNetSystem, export, settings_of
from voxsam.testing import stub_scan

needs_nnunet = pytest.mark.skipif(nnunet_system.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed")
LEAST_DICE = 0.6  # of a bright box after 90 iterations; measured here: 0.95


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> tuple[Path, list[Case]]:
    return easy_set(tmp_path_factory.mktemp("easy"))


def job_of(easy: tuple[Path, list[Case]], out: Path, **options) -> Job:
    return Job(easy[0], out, options=options, device="cpu")


# What it is given


def test_training_and_validation_cases_are_exported_and_no_test_case(easy, tmp_path: Path):
    store = open_store(easy[0])
    export(store, tmp_path)
    (train,), (validation,), (test,) = (store.split[part] for part in ("train", "validation", "test"))
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"} and description["numTraining"] == 2
    assert json.loads((tmp_path / "splits_final.json").read_text()) == [{"train": [train], "val": [validation]}]
    files = sorted(path.name for path in tmp_path.rglob("*.nii.gz"))
    assert files == sorted([f"{n}{end}.nii.gz" for n in (train, validation) for end in ("", "_0000")])
    assert not any(test in name for name in files)
    for case in (case for case in easy[1] if case.name != test):
        linked, label = (
            tmp_path / part / path.name for part, path in (("imagesTr", case.image), ("labelsTr", case.label))
        )
        assert linked.samefile(case.image) and not label.samefile(case.label)
        assert (read_volume(label, labels=True).array == read_volume(case.label, labels=True).array).all()


def test_other_formats_labels_and_channels_are_written_anew(tmp_path: Path):
    """One file of four dimensions, and a label of several values, one of which is the tumour."""
    from voxsam.lab.data.prepare import Options, prepare

    _, cases = easy_set(tmp_path / "first")
    raw = tmp_path / "first" / "raw"
    for case in cases:
        image, label = nib.load(case.image), nib.load(case.label)
        voxels, values = np.asarray(image.dataobj), np.asarray(label.dataobj).copy()
        nib.Nifti1Image(np.stack([voxels, voxels + 500], -1), image.affine).to_filename(case.image)
        values[0, 0, :2] = 2
        nib.Nifti1Image(values, label.affine).to_filename(case.label)
    description = {"channel_names": {"0": "CT", "1": "T2"}, "labels": {"background": 0, "tumour": 1, "cyst": 2}}
    (raw / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    for case in cases:
        case.image.rename(case.image.with_name(case.image.name.replace("_0000", "")))
    prepare(raw, tmp_path / "prepared", Options(workers=1, labels=(1,)))
    export(open_store(tmp_path / "prepared"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["channel_names"] == {"0": "CT", "1": "T2"}
    name = open_store(tmp_path / "prepared").split["train"][0]
    first, second = (read_volume(tmp_path / "out" / "imagesTr" / f"{name}_000{n}.nii.gz") for n in (0, 1))
    assert (second.array == first.array + 500).all()
    label = read_volume(tmp_path / "out" / "labelsTr" / f"{name}.nii.gz", labels=True)
    assert set(np.unique(label.array)) == {0, 1} and label.array.sum() == 10 * 7 * 5
    assert label.grid.close_to(first.grid)


def test_a_half_written_export_is_begun_again_and_a_whole_one_left(easy, tmp_path: Path):
    store = open_store(easy[0])
    export(store, tmp_path)
    (tmp_path / "dataset.json").unlink()
    export(store, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    export(store, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


# What is asked of it


def test_the_budget_of_a_recipe_and_what_options_change(easy, tmp_path: Path):
    def budget(recipe: dict, **options) -> tuple[int, int]:
        settings = settings_of(replace(job_of(easy, tmp_path, **options), recipe=recipe))
        return settings.epochs, settings.iterations

    assert budget({}) == (1000, 250)
    assert budget({"steps": 4000}) == (16, 250)
    assert budget({"steps": 100}) == (1, 100)
    assert budget({"epochs": 900, "batch": 1}) == (4, 250)  # one training case
    assert budget({"steps": 100}, iterations=30) == (4, 30)
    assert budget({"steps": 4000}, epochs=3) == (3, 250)
    assert budget({"steps": 4000}, tiny=True, iterations=7) == (4, 7)
    assert settings_of(replace(job_of(easy, tmp_path), seed=5)).seed == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 3}, "the option epoch of nnunet"),
        ({"epochs": 0}, "the option epochs: Input should be greater than 0; expected the options of nnunet"),
        ({"configuration": "3d"}, "the option configuration: one of 3d_fullres, 2d, 3d_lowres"),
        ({"patch": [32, 32]}, "the option patch"),
    ],
)
@needs_nnunet
def test_options_that_make_no_sense(easy, tmp_path: Path, options: dict, words: str):
    with pytest.raises(InputError, match=words):
        compared_system("nnunet").check(job_of(easy, tmp_path, **options))


def test_without_nnunetv2_it_says_what_to_install(easy, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(nnunet_system, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="nnU-Net without nnunetv2.*pip install --no-deps nnunetv2 dynamic-netw"):
        compared_system("nnunet").check(job_of(easy, tmp_path))


@needs_nnunet
def test_a_smaller_patch_makes_the_network_as_deep_as_it_fits(easy, tmp_path: Path):
    """Patches are given along S, A, R; nnU-Net puts R, its coarsest axis, first. 16, 32, 40 halve to 4 in 2, 3, 3."""
    network = {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": [[3] * 3] * 6,
        "strides": [[1] * 3] + [[2] * 3] * 5,
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
    }
    own = {
        "patch_size": [64, 64, 40],
        "batch_size": 9,
        "spacing": [1.0, 1.0, 1.0],
        "architecture": {"arch_kwargs": network},
    }
    plans = {"transpose_forward": [2, 0, 1], "configurations": {"3d_fullres": own}}
    capped(plans, settings_of(job_of(easy, tmp_path, patch=[32, 40, 16], batch=3, features=24)))
    assert (own["patch_size"], own["batch_size"]) == ([16, 32, 40], 3)
    assert [list(stride) for stride in network["strides"]] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    assert network["features_per_stage"] == [24, 48, 96, 192] and network["n_stages"] == 4
    assert (len(network["n_conv_per_stage"]), len(network["n_conv_per_stage_decoder"])) == (4, 3)


# The way to its predictor and back


class BrightPredictor:
    """Finds voxels above 2500 in the first channel, and remembers its input."""

    def predict_single_npy_array(self, array: np.ndarray, properties: dict) -> np.ndarray:
        self.array, self.properties = array, properties
        return (array[0] > 2500).astype(np.uint8)


def test_a_scan_reaches_the_predictor_as_its_own_reader_gives_it(tmp_path: Path):
    """On an oblique grid with axes PLS: the array is what its reader would return, and the mask comes back in place."""
    stub = stub_scan()
    scan = stub.scan.with_array(stub.scan.array + 5000 * (stub.truth.array > 0).astype(np.int16))
    predictor = BrightPredictor()
    system = NnUNetSystem(predictor, "nnU-Net", 5)
    (row,) = evaluate_scan(system, "a", [scan], stub.truth.array > 0, EvaluationSettings())
    assert (row.kind, row.clicks, row.scores.lesions_found) == ("automatic", 0, 1) and row.scores.dice == 1
    assert predictor.array.dtype == np.float32
    pytest.importorskip("nnunetv2")
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    write_volume(scan, tmp_path / "scan.nii.gz")
    array, properties = NibabelIOWithReorient().read_images((str(tmp_path / "scan.nii.gz"),))
    np.testing.assert_array_equal(predictor.array, array)
    assert predictor.properties["spacing"] == pytest.approx(properties["spacing"], abs=1e-4)


def test_all_channels_reach_the_predictor():
    stub, predictor = stub_scan(), BrightPredictor()
    NnUNetSystem(predictor, "nnU-Net", 5).open((stub.scan, stub.scan.with_array(stub.scan.array + 7))).segment(())
    assert predictor.array.shape[0] == 2 and (predictor.array[1] == predictor.array[0] + 7).all()


# The real one


@pytest.mark.slow
@needs_nnunet
def test_the_real_nnunet_from_the_data_set_to_masks(easy, tmp_path: Path):
    """Two epochs, an interruption, then a third; its masks are on the boxes, in files of three orientations."""
    compared, lines = compared_system("nnunet"), []
    short = {"tiny": True, "iterations": 30, "patch": [16, 16, 16]}
    job = job_of(easy, tmp_path, **short, epochs=2)
    compared.check(job)
    assert compared.tuned_parameters(job) is None
    compared.train(job, lines.append)
    folders, settings = Folders(tmp_path / "nnunet"), settings_of(job)
    final = folders.checkpoint(settings)
    assert final.is_file() and [line.split(",")[0] for line in lines] == [
        "nnU-Net: the data set in its layout",
        "nnU-Net: planning and preprocessing",
        "nnU-Net: training",
    ]
    final.rename(final.with_name("checkpoint_latest.pth"))  # as if it had been stopped after two epochs of three
    job = job_of(easy, tmp_path, **short, epochs=3)
    compared.train(job, lines.append)
    written = final.stat().st_mtime_ns
    compared.train(job, lines.append)
    assert final.stat().st_mtime_ns == written and len(lines) == 6
    log = (folders.out / "train.log").read_text()
    assert re.findall(r": Epoch (\d)", log) == ["0", "1", "2"]
    losses = [float(loss) for loss in re.findall(r"train_loss (-?[\d.]+)", log)]
    assert losses[2] < losses[0] - 0.2
    system = compared.load(job)
    assert system.parameters == compared.tuned_parameters(job) == parameters_of(folders)
    rows = evaluate(system, easy[1], EvaluationSettings(), "easy").rows
    assert [row.scores.dice > LEAST_DICE for row in rows] == [True] * 3, [row.scores.dice for row in rows]


def parameters_of(folders: Folders) -> int:
    """Parameters of the plain U-Net: two convolutions per stage, a transposed one upwards, heads of two classes."""
    plans = json.loads((folders.preprocessed / DATASET / "nnUNetPlans.json").read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    widths, strides, count = network["features_per_stage"], network["strides"], 0

    def convolution(into: int, out: int, kernel: list[int]) -> int:
        return into * out * int(np.prod(kernel)) + out + 2 * out  # weights, bias, norm

    for stage, width in enumerate(widths):
        kernel = network["kernel_sizes"][stage]
        count += convolution(widths[stage - 1] if stage else 1, width, kernel) + convolution(width, width, kernel)
    for stage, width in enumerate(widths[:-1]):
        kernel = network["kernel_sizes"][stage]
        count += widths[stage + 1] * width * int(np.prod(strides[stage + 1])) + width
        count += convolution(2 * width, width, kernel) + convolution(width, width, kernel)
        count += 2 * width + 2
    return count


def test_a_stage_that_fails_says_why_in_one_line(easy, tmp_path: Path):
    job = job_of(easy, tmp_path, tiny=True)
    folders = Folders(tmp_path / "nnunet")
    folders.raw.mkdir(parents=True)
    folders.settings.write_text("{}")
    with pytest.raises(
        VoxSAMError, match=r"nnU-Net's stage nothing failed: KeyError: 'nothing' \(log: .*nothing.log\)"
    ):
        nnunet_system._run("nothing", folders, settings_of(job))

"""One model for several classes: prepared, trained, evaluated and clicked, on bodies with two kinds of tissue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.lab.training.minuscule import write
from voxsam.cli import main
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.interactive.session import Session, reported
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.data.sampling import load_cases
from voxsam.lab.data.store import open_store
from voxsam.network.classes import Classes
from voxsam.resample import resample
from voxsam.testing import stub_network
from voxsam.volume import Volume
from voxsam.weights.checkpoint import load_model, save_model

SHAPE, SPACING_MM = (40, 44, 22), (4.0, 3.5, 6.0)
CENTRES = {1: (14, 22, 8), 2: (28, 20, 14)}  # of the bright and of the dark ball
HU = {1: 180.0, 2: -60.0}
NAMES = {"background": 0, "bright": 1, "dark": 2}


def body(seed: int, without: int = 0) -> tuple[Volume, Volume]:
    """Soft tissue of 60 HU in air with noise, a bright and a dark ball of 20 mm radius, and their labels, 1 and 2."""
    rng = np.random.default_rng(seed)
    grid = Grid.from_spacing(SHAPE, SPACING_MM, axes="LPS")
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    wide = ((index[..., :2] - np.array(SHAPE[:2]) / 2) * SPACING_MM[:2] / (75, 72)) ** 2
    array, label = np.where(wide.sum(-1) < 1, 60.0, -1000.0), np.zeros(SHAPE, np.uint8)
    for value, centre in CENTRES.items():
        ball = (((index - centre) * SPACING_MM) ** 2).sum(-1) < 20**2
        if value != without:
            array[ball], label[ball] = HU[value], value
    scan = np.rint(array + rng.normal(0, 8, SHAPE)).astype(np.int16)
    return Volume(scan, grid, "CT"), Volume(label, grid, "SEG")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases in nnU-Net's layout; the first one has no dark ball."""
    folder = tmp_path_factory.mktemp("data") / "two"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for seed in range(6):
        scan, label = body(seed, without=0 if seed else 2)
        write_volume(scan, folder / "imagesTr" / f"c{seed}_0000.nii.gz")
        write_mask(label, folder / "labelsTr" / f"c{seed}.nii.gz")
    described = {"channel_names": {"0": "CT"}, "labels": NAMES, "file_ending": ".nii.gz", "numTraining": 6}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "prepared"
    assert main(["prepare", str(data), "-o", str(folder), "--spacing", "6,6,6", "--classes"]) == 0
    return folder


def test_each_structure_of_a_prepared_case_is_a_sample_of_its_own(store, data):
    found = open_store(store)
    assert found.description.classes == {1: "bright", 2: "dark"}
    cases = load_cases(store, only=["c0", "c1"])
    assert [(case.name, case.target) for case in cases] == [("c0", 1), ("c1", 1), ("c1", 2)]
    for case in cases:
        assert case.target is not None
        label = np.asarray(case.label.array[...])
        at = tuple(case.foreground.T)
        assert set(np.unique(label)) == {0, 1} and label[at].all() and label.sum() == len(case.foreground)
        truth = read_volume(data / "labelsTr" / f"{case.name}.nii.gz", labels=True)
        wanted = (truth.array == case.target).sum() * truth.grid.voxel_volume_ml
        assert label.sum() * case.label.grid.voxel_volume_ml == pytest.approx(wanted, rel=0.15)
        middle = case.label.grid.index_to_world(case.foreground.mean(0))
        np.testing.assert_allclose(middle, truth.grid.index_to_world(CENTRES[case.target]), atol=3)
        inside = np.asarray(case.scan.array[...])[at].mean()
        assert inside == pytest.approx(HU[case.target], abs=40), "the voxels are those of the tissue"


def test_without_the_option_all_labels_are_one_tumour(data, tmp_path):
    prepare(data, tmp_path / "p", Options(spacing_mm=(6.0, 6.0, 6.0)))
    (case,) = load_cases(tmp_path / "p", only=["c1"])
    assert case.target is None and open_store(tmp_path / "p").description.classes == {}


def test_classes_without_names_are_refused(data, tmp_path):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).symlink_to(data / part)
    for labels in (None, {"background": 0, "bright": 1}):
        (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels}))
        with pytest.raises(InputError, match="expected two or more labels from 1 to 255, each with a name"):
            prepare(tmp_path, tmp_path / "p", Options(classes=True))


def test_the_nearest_mean_in_units_of_the_spread_names_a_structure():
    """By hand: 4 is nearer to the mean 0 than to 10, but the second feature hardly varies within a class."""
    wide = [np.array([[-3.0, 0.0], [3.0, 0.1]]), np.array([[7.0, 1.0], [13.0, 1.1]])]
    classes = Classes.fit(["a", "b"], [1, 2], wide)
    assert classes.name(np.array([4.0, 0.05])) == "a" and classes.name(np.array([4.0, 1.05])) == "b"
    with pytest.raises(ValueError, match="two or more classes are expected"):
        Classes.fit(["a"], [1], wide[:1])


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of a few steps, which learns hardly anything; the features under a mask tell the tissues apart."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"phantoms": 0, "validation": open_store(store).split["validation"], "validate_every": 2, "steps": 2}
    preprocessing = open_store(store).preprocessing.model_dump(mode="json")
    recipe = write(folder / "recipe.yaml", preprocessing=preprocessing, **changes)
    assert main(["train", str(recipe), "--data", str(store), "-o", str(folder / "out")]) == 0
    return folder / "out"


def test_a_trained_model_knows_its_classes_and_names_what_is_clicked(run, tmp_path, capsys):
    for name in ("model", "best"):
        classes = load_model(str(run / f"{name}.safetensors"), "cpu").card.classes
        assert classes is not None and classes.names == ("bright", "dark") and classes.labels == (1, 2)
    scan, label = body(99)
    model = load_model(str(run / "model.safetensors"), "cpu")
    known = label.array  # the class of the features under the true masks, whatever the network draws
    session = Session(model, scan)
    predictor = session.predictor
    for value, name in ((1, "bright"), (2, "dark")):
        session.reset()
        session.click(CENTRES[value])
        window, _ = session.prediction.pieces[0]
        truth = resample(scan.with_array((known == value).astype(np.uint8)), window.grid, "area")
        assert predictor._class_name([(window, truth)]) == name
        assert session.prediction.class_name in ("bright", "dark")
    assert [one.class_name for one in reported(session)] == [session.prediction.class_name]
    assert main(["info", str(run / "model.safetensors")]) == 0
    assert "classes" in (said := capsys.readouterr().out) and "bright, dark" in said


def test_the_class_may_be_chosen_and_is_in_the_report(run, tmp_path, capsys):
    scan, _ = body(98)
    write_volume(scan, tmp_path / "scan.nii.gz")
    words = ["segment", str(tmp_path / "scan.nii.gz"), "--click", ",".join(map(str, CENTRES[1]))]
    words += ["--model", str(run / "model.safetensors"), "-o", str(tmp_path / "m.nii.gz")]
    words += ["--report", str(tmp_path / "r.json")]
    assert main(words) == 0
    likely = json.loads((tmp_path / "r.json").read_text())["class"]
    assert f"class: {likely}" in capsys.readouterr().out
    other = "dark" if likely == "bright" else "bright"
    assert main([*words, "--class", other]) == 0
    said = capsys.readouterr().out
    assert f"class: {other}" in said and f"what was clicked looks like {likely}, not like {other}" in said
    assert json.loads((tmp_path / "r.json").read_text())["class"] == other
    assert main([*words, "--class", "grey"]) == 2
    assert "the class grey; expected one of bright, dark" in capsys.readouterr().err
    save_model(stub_network(name="plain"), tmp_path / "plain.safetensors")
    assert main([*words, "--class", "dark", "--model", str(tmp_path / "plain.safetensors")]) == 2
    assert "expected none: plain knows no classes" in capsys.readouterr().err


def test_an_evaluation_has_a_column_for_each_class(run, data, tmp_path, capsys):
    words = ["evaluate", str(data), "--model", str(run / "model.safetensors"), "--clicks", "1", "--trials", "1"]
    assert main([*words, "--cases", "c0,c1", "--per-class", "--save-masks", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "bright Dice" in said and "dark Dice" in said
    assert "c0 was skipped for dark: its label is empty" in said
    for name, cases in (("bright", 2), ("dark", 1)):
        assert (tmp_path / "out" / name / "report.html").is_file()
        assert f"Report {tmp_path / 'out' / name / 'report.html'}" in said
        assert len((tmp_path / "out" / name / "cases.csv").read_text().splitlines()) == 1 + cases
        assert len(list((tmp_path / "out" / name / "masks").iterdir())) == cases
    assert main([*words, "--per-class", "--labels", "1", "-o", str(tmp_path / "other")]) == 2
    assert "--per-class with labels named bright; expected two names or more" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_training_learns_to_give_what_is_clicked_and_its_name(store, tmp_path):
    """One network for both tissues: a click gives the bright ball or the dark one, and the name of its class."""
    preprocessing = open_store(store).preprocessing.model_dump(mode="json")
    changes = {"phantoms": 0, "steps": 300, "checkpoint_every": 300, "log_every": 100, "learning_rate": 2e-3}
    recipe = write(tmp_path / "recipe.yaml", preprocessing=preprocessing, **changes)
    assert main(["train", str(recipe), "--data", str(store), "-o", str(tmp_path / "out")]) == 0
    model = load_model(str(tmp_path / "out" / "model.safetensors"), "cpu")
    for seed in (97, 98):
        scan, label = body(seed)
        for value, name in ((1, "bright"), (2, "dark")):
            session = Session(model, scan)
            mask = session.click(CENTRES[value]).array > 0
            truth = label.array == value
            assert session.prediction.class_name == name
            assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6
            assert not (mask & (label.array == 3 - value)).any(), "the other tissue is not in it"

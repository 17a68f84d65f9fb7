"""The browser's predictor against Python's, on the same scans and prompts: the same voxels, crops and remarks.

Phantoms on ten grids (oblique, flipped, sheared, anisotropic, fine, thick, small) and five kinds of prompts. A known
network is fast, and its masks have sharp borders; the slow tests use real, exported ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.interactive.confidence import SIGNALS
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.io import read_volume
from voxsam.network.calibration import Calibration, Layer
from voxsam.network.classes import Classes
from voxsam.network.promptable import Promptable
from voxsam.phantoms import make_phantom
from voxsam.prompts import Box, MaskHint, Point, Prompt
from voxsam.region import Region
from voxsam.server.messages import ScribblePrompt
from voxsam.volume import Volume

pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime")

from tests.known_model import LikeClicks, OneSided
from tests.web.golden import play
from tests.web.known_export import export_known, web_card, write_card
from voxsam.weights.checkpoint import load_model
from voxsam.weights.export import export_onnx

AGREE = (
    0.999  # of the mask's voxels: sums are taken in another order, and a voxel may lie on the border; one always may
)
CLASSES = Classes(names=("dark", "bright"), labels=(1, 2), means=((-0.5,), (0.2,)), spread=(0.3,))
Json = dict[str, Any]


@dataclass
class Case:
    """A scan, and for each step the prompts that are added, as the page sends them."""

    scan: Volume
    steps: list[list[Json]]
    keep_clicked: bool = True
    follow: bool = True
    hint: Region | None = None


def click(index: Sequence[float], positive: bool = True) -> Json:
    return {"kind": "point", "index": list(map(float, index)), "positive": positive}


def phantom(seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float], axes: str) -> Any:
    return make_phantom(seed, shape, spacing, axes)


def clicks_of(truth: Volume, count: int) -> list[list[int]]:
    """Voxels of the tumour, spread evenly over it, the middle one first."""
    inside = np.argwhere(truth.array)
    every = [inside[len(inside) // 2], *inside[:: max(1, len(inside) // count)]]
    return [list(map(int, voxel)) for voxel in every[:count]]


def beside(truth: Volume) -> list[int]:
    """A voxel that is not tumour, next to it."""
    i, j, k = np.argwhere(truth.array)[0]
    return [max(0, int(i) - 2), int(j), int(k)]


def changed(found: Any, change: Callable[[Grid], Grid]) -> tuple[Volume, Volume]:
    grid = change(found.scan.grid)
    return Volume(found.scan.array, grid, "CT"), Volume(found.label.array, grid, "SEG")


def sheared(grid: Grid) -> Grid:
    """As with a tilted gantry whose slices were not corrected."""
    affine = grid.affine.copy()
    affine[:3, 2] += 0.25 * np.linalg.norm(affine[:3, 2]) * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    return Grid(grid.shape, affine)


def cases(*names: str) -> dict[str, Case]:
    """Ten scans, or those of some names; each begins with a prompt in the tumour."""
    found: dict[str, Case] = {}
    grids: dict[str, tuple[int, tuple[int, int, int], tuple[float, float, float], str, Callable[[Grid], Grid]]] = {
        "oblique": (1, (60, 52, 30), (2.0, 2.2, 4.0), "PLS", lambda grid: grid.turned(0, -12).turned(2, 31)),
        "flipped": (2, (48, 56, 40), (2.5, 2.5, 3.0), "LPI", lambda grid: grid),
        "anisotropic": (3, (128, 120, 24), (0.9, 0.9, 5.0), "LAS", lambda grid: grid),
        "fine": (4, (90, 84, 80), (0.5, 0.5, 0.5), "RAS", lambda grid: grid),
        "thick": (5, (80, 80, 18), (1.5, 1.5, 5.0), "RPS", lambda grid: grid),
        "sheared": (6, (56, 56, 26), (2.0, 2.0, 4.0), "LPS", sheared),
        "sagittal": (7, (20, 70, 64), (4.0, 1.8, 1.8), "LSP", lambda grid: grid),
        "small": (8, (22, 20, 9), (3.0, 3.0, 6.0), "RAS", lambda grid: grid),
        "tilted": (9, (64, 60, 28), (1.7, 1.7, 3.3), "LPS", lambda grid: grid.turned(0, 20)),
        "long": (10, (40, 40, 90), (3.0, 3.0, 2.0), "LPS", lambda grid: grid.turned(2, 3)),
    }
    for name in names or grids:
        seed, shape, spacing, axes, change = grids[name]
        scan, truth = changed(phantom(seed, shape, spacing, axes), change)
        first, second, third = clicks_of(truth, 3)
        steps = [[click(first)], [click(second)], [click(beside(truth), positive=False)], [click(third)]]
        found[name] = Case(scan, steps)
        if name == "flipped":
            ends = np.argwhere(truth.array)
            low, high = (list(map(float, end)) for end in (ends.max(0), ends.min(0)))  # any two opposite corners
            found[name] = Case(scan, [[{"kind": "box", "low": low, "high": high}], steps[1]], keep_clicked=False)
        if name == "thick":
            voxels = [[int(v) for v in voxel] for voxel in np.argwhere(truth.array)[::7][:40]]
            found[name] = Case(scan, [[{"kind": "scribble", "voxels": voxels, "positive": True}], steps[2]])
        if name == "fine":
            found[name] = Case(scan, steps[:2], hint=Region.of(truth.array))
        if name == "long":
            corners = [[1, 1, 2], [38, 38, 88]]  # in air
            found[name] = Case(scan, [steps[0], [click(corners[0])], [click(corners[1])]], keep_clicked=False)
        if name == "small":
            found[name] = Case(scan, [steps[2], *steps], follow=False)  # a negative click alone is refused
    return found


def prompt_of(given: Json, grid: Grid) -> Prompt:
    if given["kind"] == "point":
        return Point.at_index(grid, given["index"], given["positive"])
    if given["kind"] == "box":
        return Box.at_index(grid, given["low"], given["high"])
    return ScribblePrompt(**given).on(grid)


@dataclass
class Answer:
    mask: Any = None  # (i, j, k)
    remarks: list[str] = field(default_factory=list)
    crops: int = 0
    confidence: Json | None = None
    class_name: str | None = None
    error: str = ""


def in_python(network: Promptable, case: Case) -> list[Answer]:
    predictor = Predictor(network, follow=case.follow).set_image(case.scan)
    grid, prompts, before, answers = case.scan.grid, [], None, []
    for n, added in enumerate(case.steps):
        if n == 0 and case.hint:
            prompts.append(MaskHint(case.hint.on(grid)))
        prompts += [prompt_of(given, grid) for given in added]
        try:
            before = predictor.predict(prompts, before)
        except InputError as error:
            answers.append(Answer(error=str(error)))
            continue
        sure = before.confidence and before.confidence.facts
        said = (list(before.remarks), before.crops, sure, before.class_name)
        answers.append(Answer(mask_of(before, case.keep_clicked), *said))
    return answers


def mask_of(found: Prediction, keep_clicked: bool) -> Any:
    mask, region = np.zeros(found.grid.shape, dtype=bool), found.region(keep_clicked)
    mask[region.box] = region.inside
    return mask


def in_browser(folder: Path, chosen: dict[str, Case]) -> dict[str, list[Answer]]:
    """The same by golden/predict.ts, with the model in `folder`/model."""
    scans = []
    for name, case in chosen.items():
        array = case.scan.array.astype(np.int16)
        assert np.array_equal(array, case.scan.array)
        (folder / f"{name}.bin").write_bytes(array.tobytes(order="F"))
        hint = None if case.hint is None else np.argwhere(case.hint.on_all(case.scan).array).tolist()
        fields = {"shape": case.scan.grid.shape, "affine": case.scan.grid.affine.tolist(), "hint": hint}
        rules = {"keepClicked": case.keep_clicked, "follow": case.follow, "steps": case.steps}
        scans.append({"name": name, "type": "Int16Array", "modality": case.scan.modality, **fields, **rules})
    (folder / "job.json").write_text(json.dumps({"threads": 1, "scans": scans}))
    play("predict", folder)
    answers: dict[str, list[Answer]] = {name: [] for name in chosen}
    for said in json.loads((folder / "answers.json").read_text()):
        name, shape = said["scan"], chosen[said["scan"]].scan.grid.shape
        if "error" in said:
            answers[name].append(Answer(error=said["error"]))
            continue
        bits = np.fromfile(folder / f"{name}-{said['step']}.bin", dtype=np.uint8)
        mask = bits.reshape(shape, order="F") > 0
        answers[name].append(Answer(mask, *(said[word] for word in ("remarks", "crops", "confidence", "className"))))
    return answers


def check(name: str, ours: list[Answer], theirs: list[Answer]) -> None:
    assert len(ours) == len(theirs)
    for step, (python, browser) in enumerate(zip(ours, theirs, strict=True)):
        where = f"{name}, step {step}"
        assert browser.error == python.error, where
        if python.error:
            continue
        assert (browser.crops, browser.remarks) == (python.crops, python.remarks), where
        assert browser.class_name == python.class_name, where
        differing = int((python.mask ^ browser.mask).sum())
        assert differing <= max(1, (1 - AGREE) * python.mask.sum()), (
            f"{where}: {differing} of {python.mask.sum()} voxels"
        )
        _check_confidence(python.confidence, browser.confidence, where)


def _check_confidence(python: Json | None, browser: Json | None, where: str) -> None:
    """Check equality, except for the mask's voxels that differ and for sums in another order."""
    assert (browser is None) == (python is None), where
    if python is None or browser is None:
        return
    assert browser["dice"] == pytest.approx(python["dice"], abs=0.002), where
    assert browser["volume_ml"] == pytest.approx(python["volume_ml"], rel=0.005, abs=0.001), where
    assert browser["doubtful"] == python["doubtful"], where


@pytest.fixture(scope="module")
def scans() -> dict[str, Case]:
    return cases()


@pytest.fixture(scope="module")
def known_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known") / "model"
    export_known(LikeClicks(card=web_card()).eval(), folder)
    return folder


def calibration() -> Calibration:
    """A calibration in which every signal of the known network counts, and that doubts some of its masks."""
    rng = np.random.default_rng(3)
    width = SIGNALS
    first = Layer(weights=as_rows(rng.normal(0, 0.3, (6, width))), bias=tuple(rng.normal(0, 0.2, 6).tolist()))
    last = Layer(weights=as_rows(rng.normal(0, 0.8, (4, 6))), bias=(0.5, 0.0, -0.4, 0.4))
    centre = tuple(rng.normal(0, 0.5, width).tolist())
    return Calibration(centre=centre, spread=(2.0,) * width, layers=(first, last), warn_below=0.6)


def as_rows(weights: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, weights.tolist()))


def check_known(
    spacing_range: tuple[float, float] | None, scans: dict[str, Case], model: Path, folder: Path, mirrored: bool = False
) -> None:
    """Run all scans through both predictors; check that there are masks, further crops and remarks of several kinds."""
    card = web_card(spacing_range_mm=spacing_range).model_copy(
        update={"calibration": calibration(), "classes": CLASSES, "mirrored": mirrored}
    )
    network = (OneSided if mirrored else LikeClicks)(card=card).eval()
    if mirrored:
        export_known(network, folder / "model")
    else:
        shutil.copytree(model, folder / "model")
    write_card(network.card, folder / "model")
    theirs = in_browser(folder, scans)
    ours = {name: in_python(network, case) for name, case in scans.items()}
    answers = [answer for answers in ours.values() for answer in answers]
    assert min(int(answers[-1].mask.sum()) for answers in ours.values()) > 0
    assert max(answer.crops for answer in answers) > 2
    assert len({remark[:20] for answer in answers for remark in answer.remarks}) >= 3
    assert {answer.class_name for answer in answers} == {"dark", "bright", None}
    assert {answer.confidence["doubtful"] for answer in answers if answer.confidence} == {False, True}
    for name in scans:
        check(name, ours[name], theirs[name])


def test_a_known_network_predicts_the_same(known_model: Path, tmp_path: Path) -> None:
    check_known((1.5, 6.0), cases("thick", "small", "long"), known_model, tmp_path)


def test_a_known_network_that_sees_a_mirror_image_too_predicts_the_same(known_model: Path, tmp_path: Path) -> None:
    check_known((1.5, 6.0), cases("oblique", "small", "long"), known_model, tmp_path, mirrored=True)


@pytest.mark.parametrize(
    "intensity",
    [
        {"modality": "MR", "per_scan": True, "clip": (-5.0, 5.0), "mean": 0.0, "sd": 1.0},
        {"modality": "CT", "standardise_others": True, "clip": (-260.0, 340.0), "mean": 40.0, "sd": 60.0},
    ],
    ids=["model-of-mr", "model-of-ct"],
)
def test_a_scan_without_a_unit_is_standardised_the_same(
    intensity: dict[str, object], known_model: Path, tmp_path: Path
) -> None:
    """In MR only contrasts count: a scanner's gain and offset change nothing, in the browser either."""
    card = web_card(**intensity)
    shutil.copytree(known_model, tmp_path / "model")
    write_card(card, tmp_path / "model")
    chosen = cases("oblique", "thick")
    for case in chosen.values():
        low = int(case.scan.array.min())
        case.scan = Volume((case.scan.array.astype(np.int32) - low) * 3 + 40, case.scan.grid, "MR")
    theirs = in_browser(tmp_path, chosen)
    for name, case in chosen.items():
        ours = in_python(LikeClicks(card=card).eval(), case)
        assert ours[-1].mask.sum() > 50
        check(name, ours, theirs[name])


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True], ids=["one-view", "mirrored"])
@pytest.mark.parametrize("spacing_range", [None, (1.5, 6.0)], ids=["one-spacing", "chosen-spacing"])
def test_a_known_network_predicts_the_same_on_all_scans(
    spacing_range: tuple[float, float] | None, mirrored: bool, scans: dict[str, Case], known_model: Path, tmp_path: Path
) -> None:
    check_known(spacing_range, scans, known_model, tmp_path, mirrored)


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Promptable, Path]:
    """The packaged model, and the folder of its export."""
    folder = tmp_path_factory.mktemp("real") / "model"
    export_onnx("voxsam-tiny", folder)
    return load_model("voxsam-tiny", "cpu"), folder


@pytest.mark.slow
def test_the_packaged_model_predicts_the_same(
    real_model: tuple[Promptable, Path], scans: dict[str, Case], tmp_path: Path
) -> None:
    network, model = real_model
    shutil.copytree(model, tmp_path / "model")
    theirs = in_browser(tmp_path, scans)
    for name, case in scans.items():
        check(name, in_python(network, case), theirs[name])


@pytest.mark.slow
def test_real_scans_are_segmented_the_same(
    real_model: tuple[Promptable, Path], shared_data: Path, tmp_path: Path
) -> None:
    network, model = real_model
    shutil.copytree(model, tmp_path / "model")
    chosen = {}
    for name, folder in {"4DLung_113": "lesions_ct", "STS_003": "sarcoma_ct"}.items():
        scan = read_volume(shared_data / folder / "imagesTr" / f"{name}_0000.nii.gz")
        truth = read_volume(shared_data / folder / "labelsTr" / f"{name}.nii.gz", labels=True)
        first, second = clicks_of(truth, 2)
        chosen[name] = Case(scan, [[click(first)], [click(beside(truth), positive=False)], [click(second)]])
    theirs = in_browser(tmp_path, chosen)
    for name, case in chosen.items():
        check(name, in_python(network, case), theirs[name])

"""Confidence: the signals of a prediction, the result of a calibration on them, and where it is shown."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from known_model import KnownModel, block_scan, upright
from pydantic import ValidationError
from typer.testing import CliRunner

from voxsam.cli import app
from voxsam.interactive.confidence import SIGNALS, Confidence, signals
from voxsam.interactive.editing import brush
from voxsam.interactive.predictor import UNLIKE, Prediction, Predictor
from voxsam.interactive.session import Session, reported
from voxsam.io import write_volume
from voxsam.network.calibration import MAX_RATIO, Calibration, Layer
from voxsam.prompts import Point
from voxsam.report.report import facts_for_people, report_dict
from voxsam.volume import Volume
from voxsam.weights import load_model
from voxsam.weights.checkpoint import save_model
from voxsam.weights.file import read_card

HALF = float(np.log(0.5))


def calibration(width: int, bias: tuple[float, ...], warn_below: float = 0.5) -> Calibration:
    """A calibration that gives the same for every mask."""
    layer = Layer(weights=((0.0,) * width,) * 4, bias=bias)
    return Calibration(centre=(0.0,) * width, spread=(1.0,) * width, layers=(layer,), warn_below=warn_below)


def known(bias: tuple[float, ...], warn_below: float = 0.5) -> KnownModel:
    model = KnownModel()
    model.describe(calibration=calibration(SIGNALS, bias, warn_below))
    return model


def scan() -> Volume:
    return block_scan(upright(40, 40, 40), ((10, 14),) * 3, ((24, 28),) * 3)


def clicked(model: KnownModel, *index: int) -> Prediction:
    volume = scan()
    return Predictor(model).set_image(volume).predict(Point.at_index(volume.grid, index))


def test_layers_follow_one_another_and_the_last_one_says_four_things() -> None:
    first = Layer(weights=((1.0, 0.0), (0.0, 1.0)), bias=(0.0, 1.0))
    last = Layer(weights=((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.0, 0.0)), bias=(0.0, 0.0, HALF, 1.0))
    found = Calibration(centre=(1.0, 2.0), spread=(2.0, 4.0), layers=(first, last), warn_below=0.3)
    judged = found.judge(np.array([3.0, 6.0]))
    assert judged.dice == pytest.approx(1 / (1 + np.exp(-np.tanh(1.0))))
    assert judged.lesion == pytest.approx(1 / (1 + np.exp(-np.tanh(2.0))))
    assert judged.ratios == pytest.approx((0.5, np.e))
    again = Calibration.model_validate_json(found.model_dump_json())
    assert again == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spread": (1.0,)}, "a spread other than 0"),
        ({"spread": (1.0, 0.0)}, "a spread other than 0"),
        ({"layers": (Layer(weights=((1.0,),) * 4, bias=(0.0,) * 4),)}, "layers that follow one another"),
        ({"layers": (Layer(weights=((1.0, 1.0),) * 3, bias=(0.0,) * 3),)}, "4 numbers out of the last layer"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Calibration.model_validate({**calibration(2, (0.0,) * 4).model_dump(), **changes})


def test_an_interval_stays_within_bounds_and_in_order() -> None:
    low, high = calibration(2, (0.0, 0.0, 50.0, -50.0)).judge(np.zeros(2)).ratios
    assert (low, high) == pytest.approx((1 / MAX_RATIO, MAX_RATIO))


def test_a_calibrated_model_says_what_it_expects() -> None:
    found = clicked(known((np.log(3), 2.0, HALF, 0.0)), 11, 11, 11)
    assert found.mask.array.sum() == 64
    assert found.confidence == Confidence(pytest.approx(0.75), pytest.approx((0.032, 0.064)), doubtful=False)
    assert str(found.confidence) == "expected Dice 0.75, volume 0.032 to 0.064 mL (80 %)"
    assert UNLIKE not in found.remarks
    doubt = clicked(known((0.0, -2.0, HALF, 0.0)), 11, 11, 11)
    assert doubt.confidence is not None and doubt.confidence.doubtful and UNLIKE in doubt.remarks
    assert clicked(KnownModel(), 11, 11, 11).confidence is None


def test_a_calibration_of_other_signals_says_nothing() -> None:
    model = KnownModel()
    model.describe(calibration=calibration(SIGNALS + 40, (0.0, -2.0, HALF, 0.0)))
    found = clicked(model, 11, 11, 11)
    assert found.mask.array.any() and found.confidence is None and UNLIKE not in found.remarks


def test_signals_are_of_what_was_clicked() -> None:
    """A cube of 4 voxels, alone in air: its probabilities, size, surface, contrast, and clicks."""
    volume = scan()
    predictor = Predictor(KnownModel()).set_image(volume)
    clicks = [Point.at_index(volume.grid, (11, 11, 11)), Point.at_index(volume.grid, (2, 2, 2), False)]
    found = predictor.predict(clicks)
    seen = signals(found.pieces, found.clicks, predictor.encoded.get(found.pieces[0][0]))
    assert seen.shape == (SIGNALS,) and np.isfinite(seen).all()
    probability = found.pieces[0][1]
    inside = probability > 0.5
    assert seen[0] == pytest.approx(probability[inside].mean(), abs=1e-5)
    assert seen[3] == 0  # the click is in the mask
    assert np.expm1(seen[4]) == pytest.approx(np.cbrt(6 * 64 / np.pi), abs=1e-5)
    assert seen[6] == pytest.approx((64 - 8) / (64 ** (2 / 3) + 1))  # all but the inner 2^3 voxels are its surface
    assert seen[8] > 0  # brighter than what is round it
    assert (seen[15], seen[16]) == pytest.approx((0, np.log(2)))
    ball = np.sqrt(3 / 5) * np.cbrt(3 * 64 / (4 * np.pi))  # the radius of gyration of one of its volume; the cube's: 2
    assert (seen[17], seen[18]) == pytest.approx((np.log(2 / ball), 1))
    assert tuple(seen[19:23]) == (0, 0, 1, 1)  # nothing round it is brighter, all is darker


def test_signals_of_an_empty_mask_are_numbers() -> None:
    volume = scan()
    predictor = Predictor(KnownModel()).set_image(volume)
    found = predictor.predict(Point.at_index(volume.grid, (2, 2, 2)))
    assert not found.mask.array.any()
    seen = signals(found.pieces, found.clicks, predictor.encoded.get(found.pieces[0][0]))
    assert np.isfinite(seen).all() and seen[3] == 1


def test_a_mask_changed_by_hand_has_no_confidence() -> None:
    session = Session(known((0.0, 2.0, HALF, 0.0)), scan())
    session.click((11, 11, 11))
    (one,) = reported(session)
    assert one.confidence == {"dice": 0.5, "volume_ml": [0.032, 0.064], "doubtful": False}
    facts = report_dict(
        scan=session.volume, scan_name="scan", mask=session.mask, model="known", objects=reported(session)
    )
    assert facts["objects"][0]["confidence"]["dice"] == 0.5
    assert facts_for_people(facts)["Expected"] == "Dice 0.50, volume 0.032 to 0.064 mL (80 %)"
    session.edit(partial(brush, stroke=[(20, 20, 20)], radius_mm=2))
    assert session.segmented[1].confidence is None and reported(session)[0].confidence is None


def test_voxels_that_belong_to_another_object_leave_none() -> None:
    session = Session(known((0.0, 2.0, HALF, 0.0)), scan())
    session.edit(partial(brush, stroke=[(11, 11, 11)], radius_mm=1))
    session.new_object()
    session.click((12, 12, 12))
    assert session.segmented[2].kept_by_others > 0 and session.segmented[2].confidence is None


def test_the_command_and_its_report_say_it(tmp_path: Path) -> None:
    model = load_model("voxsam-tiny", "cpu")
    model.card = model.card.model_copy(update={"calibration": calibration(SIGNALS, (0.0, -2.0, HALF, 0.0))})
    save_model(model, tmp_path / "model.safetensors")
    assert read_card(tmp_path / "model.safetensors").calibration == model.card.calibration
    rng = np.random.default_rng(0)
    array = rng.normal(0, 10, (40, 40, 40)).astype(np.int16)
    array[14:26, 14:26, 14:26] += 80
    write_volume(Volume(array, dataclasses.replace(upright(40, 40, 40))), tmp_path / "scan.nii.gz")
    options = ["--click", "20,20,20", "-o", "mask.nii.gz", "--report", "report.json", "--model", "model.safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(app, ["segment", "scan.nii.gz", *options])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["confidence"]["dice"] == 0.5 and facts["confidence"]["doubtful"]
    assert "expected Dice 0.50, volume " in done.output and UNLIKE in done.output

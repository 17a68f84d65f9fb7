"""Predictor: a prediction depends on the prompts alone; remarks; crops are kept as long as they are needed."""

from __future__ import annotations

import numpy as np
import pytest
from known_model import CROP, KnownModel, LikeClicks, OneSided, block_scan, upright

from voxsam.errors import InputError, PromptError
from voxsam.interactive import crops as crops_module
from voxsam.interactive import predictor as predictor_module
from voxsam.interactive.predictor import Predictor
from voxsam.interactive.session import Session
from voxsam.io import read_volume, write_volume
from voxsam.prompts import Box, MaskHint, Point, Scribble
from voxsam.volume import Volume

BLOCKS = (((10, 13),) * 3, ((24, 28),) * 3)


def two_blocks(**options) -> tuple[KnownModel, Predictor, Volume]:
    model, volume = KnownModel(), block_scan(upright(40, 40, 40), *BLOCKS)
    return model, Predictor(model, **options).set_image(volume), volume


def at(volume: Volume, *index: float, positive: bool = True) -> Point:
    return Point.at_index(volume.grid, index, positive)


def test_it_remembers_no_clicks() -> None:
    """Earlier predictions change nothing, and a single click may be given without a list."""
    _, predictor, volume = two_blocks()
    first = predictor.predict(at(volume, 11, 11, 11))
    assert first.mask.array.sum() == 27 and len(first.prompts) == 1
    assert predictor.predict([at(volume, 25, 25, 25)]).mask.array.sum() == 64
    np.testing.assert_array_equal(predictor.predict([at(volume, 11, 11, 11)]).mask.array, first.mask.array)


def test_with_the_previous_prediction_it_answers_as_a_session() -> None:
    model, predictor, volume = two_blocks()
    session = Session(KnownModel(), volume)
    hint = MaskHint(Volume((volume.array > 0).astype(np.uint8), volume.grid, "SEG"))
    prompts = [
        at(volume, 11, 11, 11),
        hint,
        at(volume, 9, 9, 9, positive=False),
        Box.at_index(volume.grid, (8,) * 3, (30,) * 3),
    ]
    found = None
    for number, prompt in enumerate(prompts, start=1):
        found = predictor.predict(prompts[:number], found)
        np.testing.assert_array_equal(found.mask.array, session.prompt(prompt).array)
        np.testing.assert_array_equal(found.probabilities.array, session.probabilities.array)
        assert (found.windows, found.remarks) == (session.prediction.windows, session.remarks)
    assert model.encoded == session.model.encoded  # type: ignore[attr-defined]


def test_prompts_that_were_points_already_are_not_made_again(monkeypatch) -> None:
    _, predictor, volume = two_blocks()
    strokes = np.zeros(volume.grid.shape, np.uint8)
    strokes[11, 11, 10:13] = 1
    scribble = Scribble(Volume(strokes, volume.grid, "SEG"))
    first = predictor.predict([scribble])
    monkeypatch.setattr(Scribble, "points", lambda *_: pytest.fail("asked again"))
    second = predictor.predict([scribble, at(volume, 12, 12, 12)], first)
    assert second.clicks[:3] == first.clicks and len(second.clicks) == 4


def test_a_scan_is_looked_at_once_for_its_remarks(monkeypatch) -> None:
    looked = []
    monkeypatch.setattr(predictor_module, "images_for", lambda _, scans: looked.append(scans) or (scans, ["odd"]))
    _, predictor, volume = two_blocks()
    for _ in range(3):
        assert predictor.predict(at(volume, 11, 11, 11)).remarks[0] == "odd"
    assert len(looked) == 1
    predictor.set_image(volume)
    assert len(looked) == 2


def test_a_click_on_nan_padding_is_refused_and_others_are_answered(tmp_path) -> None:
    _, _, scan = two_blocks()
    voxels = scan.array.astype(np.float32)
    voxels[:, :, 30:], voxels[39, 0, 29] = np.nan, np.inf
    write_volume(scan.with_array(voxels), tmp_path / "padded.nii.gz")
    volume = read_volume(tmp_path / "padded.nii.gz")
    predictor = Predictor(KnownModel()).set_image(volume)
    for index in ((20, 20, 30), (0, 39, 39), (39, 0, 29)):
        place = ",".join(map(str, index))
        with pytest.raises(
            PromptError, match=rf"a click at {place}, where the scan has no number \(NaN padding\); expec"
        ):
            predictor.predict(at(volume, *index))
    found = predictor.predict([at(volume, 11, 11, 11), at(volume, 20, 20, 30, positive=False)])
    assert found.mask.array.any() and "NaN or infinite voxels" in found.remarks[0]


def test_without_an_image_it_says_what_to_do() -> None:
    with pytest.raises(InputError, match="without an image; expected an image; call set_image"):
        Predictor(KnownModel()).predict([Point((0, 0, 0))])
    with pytest.raises(PromptError, match="no prompt"):
        two_blocks()[1].predict([])


def test_a_new_image_forgets_the_last_one() -> None:
    model, predictor, volume = two_blocks()
    predictor.predict([at(volume, 11, 11, 11)])
    other = block_scan(upright(40, 40, 40), ((10, 15),) * 3)
    assert predictor.set_image(other).predict([at(other, 11, 11, 11)]).mask.array.sum() == 125
    assert model.encoded == 2


# Remarks


def test_a_click_that_is_not_in_the_mask_is_remarked_by_predictor_session_and_mask() -> None:
    _, predictor, volume = two_blocks()
    clicks = [at(volume, 11, 11, 11), at(volume, 5, 6, 7.25), at(volume, 9, 9, 9, positive=False)]
    remark = "not in the mask, though clicked as tumour: 5,6,7.25; look at the result with care"
    found = predictor.predict(clicks)
    assert found.remarks == (remark,) == found.mask.remarks
    session = Session(KnownModel(), volume)
    assert session.prompt(*clicks).remarks == (remark,) == session.remarks
    session.new_object()
    assert session.remarks == () and session.click((25, 25, 25)).remarks == (remark,)


def test_what_was_odd_in_the_file_is_remarked() -> None:
    _, _, volume = two_blocks()
    odd = Volume(volume.array, volume.grid, "MR", remarks=("two statements of the spacing differ",))
    model = KnownModel()
    model.describe(preprocessing=model.card.preprocessing.model_copy(update={"modality": "CT"}))
    found = Predictor(model).set_image(odd).predict([at(odd, 11, 11, 11)])
    assert found.remarks == (
        "two statements of the spacing differ",
        "the scan is MR, the model was trained on CT; look at the mask with care",
    )


@pytest.mark.parametrize(("modality", "gain"), [("MR", 1), ("MR", 7), ("", 1)])
def test_another_modality_is_standardised_where_the_model_wants_it_so(modality: str, gain: int) -> None:
    """Its foreground gets the model's mean and s.d., whatever its gain; the scan itself does not change."""
    _, _, volume = two_blocks()
    noise = np.random.default_rng(0).normal(500, 20, volume.array.shape)
    scan = Volume((gain * noise * (np.arange(40) > 9)).astype(np.int16), volume.grid, modality)
    model = KnownModel()
    wanted = {"modality": "CT", "mean": 40.0, "sd": 60.0, "standardise_others": True}
    model.describe(preprocessing=model.card.preprocessing.model_copy(update=wanted))
    predictor = Predictor(model).set_image(scan)
    (seen,) = predictor.encoded.images
    foreground = seen.array[scan.array > 0]
    assert foreground.mean() == pytest.approx(40, abs=1) and 55 < foreground.std() < 75
    assert predictor.volume is scan and predictor.standardised_bytes == seen.array.nbytes > 0
    assert "; its intensities were standardised; look" in predictor.predict(at(scan, 11, 11, 11)).remarks[0]
    ct = Volume(np.rint(noise).astype(np.int16) - 1000, volume.grid, "CT")
    predictor.set_image(ct)
    assert predictor.encoded.images == (ct,) and predictor.standardised_bytes == 0


def test_a_click_on_the_far_side_of_half_a_voxel_is_of_the_next_one_everywhere() -> None:
    """Halves round up, for clicks and box corners: 0.5 and 2.5 are voxels 1 and 3 (half to even would give 0 and 2)."""
    grid = upright(40, 40, 40)
    box = Box(tuple(grid.index_to_world((0.5, 2.5, 4.5))), tuple(grid.index_to_world((6.5, 8.5, 10.5))))
    low, high = box.index_range(grid)
    assert (low.tolist(), high.tolist()) == ([1, 3, 5], [7, 9, 11])
    assert grid.voxel_of((0.5, 2.5, 4.5)).tolist() == low.tolist()


def test_the_index_of_a_click_is_the_one_that_was_given() -> None:
    grid = upright(40, 40, 40).reorient("LPS")
    assert Point.at_index(grid, (0, 0.125, 39)).index_on(grid) == (0, 0.125, 39)
    assert "-0" not in str(Point.at_index(grid, (0, 0, 0)).index_on(grid))


# Crops that are kept


def rod(length: int) -> Volume:
    return block_scan(upright(24, 24, length), ((10, 14), (10, 14), (2, length - 2)))


def test_a_tumour_followed_through_more_crops_than_fit_beside_others_is_encoded_once(monkeypatch) -> None:
    """Ten crops where three fit: while the object is clicked all are kept, and those of another object make room."""
    monkeypatch.setattr(crops_module, "KEPT_BYTES", 3 * 3 * 4 * CROP**3)
    volume, model = rod(90), KnownModel()
    predictor = Predictor(model).set_image(volume)
    found = predictor.predict([at(volume, 12, 12, 8)])
    assert found.crops >= 9
    encoded = model.encoded
    predictor.predict([at(volume, 12, 12, 8), at(volume, 11, 12, 9)], found)
    assert model.encoded == encoded
    predictor.predict([at(volume, 2, 2, 2)])
    assert len(predictor.encoded.kept) <= 3


def test_a_mirrored_model_answers_with_the_mean_of_a_crop_and_its_mirror_image() -> None:
    """What a network sees on one side alone cancels out, after later clicks and in further crops, too."""
    volume = block_scan(upright(40, 24, 24), ((4, 36), (8, 16), (8, 16)))
    clicks = [at(volume, 19, 11, 11), at(volume, 20, 12, 12), at(volume, 2, 2, 2, positive=False)]
    plain, sided, mean = LikeClicks(), OneSided(), OneSided()
    mean.describe(mirrored=True)
    answers = []
    for model in (plain, sided, mean):
        predictor, found = Predictor(model).set_image(volume), None
        for number in (1, 2, 3):
            found = predictor.predict(clicks[:number], found)
            answers.append(found)
            if number == 1:
                encoded = model.encoded
        assert model.encoded == encoded and found.crops >= 3  # later clicks encode nothing
    assert mean.encoded == 2 * plain.encoded
    for known, one_side, both in zip(*(answers[n : n + 3] for n in (0, 3, 6)), strict=True):
        assert both.crops == known.crops
        # The mean of logits, so equal to the plain ones: but for the previous mask's, which are clamped.
        np.testing.assert_allclose(both.probabilities.array, known.probabilities.array, atol=1e-4)
        assert np.abs(one_side.probabilities.array - known.probabilities.array).max() > 0.05


@pytest.mark.parametrize("crops_that_fit", [1, 4])
def test_where_memory_is_short_some_of_a_tumours_crops_stay(monkeypatch, crops_that_fit: int) -> None:
    """Every click uses the crops in the same order: the first ones are still there, and the mask is right."""
    volume, model = rod(90), KnownModel()
    one_crop = 3 * 4 * CROP**3
    predictor = Predictor(model, features_bytes=crops_that_fit * one_crop).set_image(volume)
    found = predictor.predict([at(volume, 12, 12, 8)])
    np.testing.assert_array_equal(found.mask.array > 0, volume.array > 0)
    assert len(predictor.encoded.kept) <= crops_that_fit
    encoded = model.encoded
    again = predictor.predict([at(volume, 12, 12, 8), at(volume, 11, 12, 9)], found)
    assert model.encoded - encoded <= found.crops - crops_that_fit + 1
    np.testing.assert_array_equal(again.mask.array, found.mask.array)

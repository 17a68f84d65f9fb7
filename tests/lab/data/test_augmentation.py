"""The named profiles, measured on their samples: zoom, crops, flips, rotations, intensities, and how often each."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from voxsam.geometry import Grid
from voxsam.lab.data.augmentation import AUGMENTATIONS
from voxsam.lab.data.cases import Labelled
from voxsam.lab.data.sampling import Sampler
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

SIDE, DRAWS = 20, 240
SHARE = 0.08  # tolerance of a probability measured on DRAWS samples: 2.5 standard errors
USE = Preprocessing(clip=(-1000, 1000), mean=0, sd=50, axes="SAR")
TUMOUR = (36, 30, 33)  # (d, h, w) of its middle
CALM = 200.0  # HU of the body


def scan() -> Labelled:
    """A body of 200 HU in air; a ball of radius 6 is the tumour."""
    body = np.full((70, 64, 66), -1000.0, np.float32)
    body[6:64, 5:60, 4:62] = CALM
    d, h, w = np.indices(body.shape)
    label = (sum((axis - c) ** 2 for axis, c in zip((d, h, w), TUMOUR, strict=True)) <= 36).astype(np.uint8)
    grid = Grid.from_spacing(body.shape[::-1], (1, 1, 1))  # R, A, S: the arrays are (w, h, d)
    return Labelled.make(Volume(body.T.copy(), grid, "CT"), Volume(label.T.copy(), grid, "SEG"))


def sampler(profile: str, side: int = SIDE, **changes: object) -> Sampler:
    return Sampler(USE, side, AUGMENTATIONS[profile].model_copy(update=changes), profile)  # type: ignore[arg-type]


@cache
def samples(profile: str) -> list[dict]:
    given, use = scan(), sampler(profile)
    return [use.draw(given, np.random.default_rng([5, number])) for number in range(DRAWS)]


@pytest.mark.parametrize(
    ("profile", "background", "zoomed", "factors"),
    [
        ("released", 1 / 3, 0.8, (0.85, 1.25)),
        ("paper", 0.5, 0.3, (0.9, 1.1)),
    ],
)
def test_zoom_is_the_same_on_all_axes_in_its_range_and_share(profile, background, zoomed, factors):
    still = {"body": False, "flip": 0, "turn": 0, "shift": 0, "offset": 0, "background": 0}
    use, given = sampler(profile, side=32, **still), scan()
    sizes, uneven = [], []
    for number in range(DRAWS // 2):
        label = use.draw(given, np.random.default_rng(number))["label"][0]
        if not any(label.take(end, axis).any() for axis in range(3) for end in (0, -1)):  # all of it is in the crop
            spread = np.argwhere(label).std(axis=0) / (6 / np.sqrt(5))  # along each axis, in that of the ball
            uneven.append(np.ptp(spread) / spread.mean())
            sizes.append(spread.mean())
    sizes = np.array(sizes)
    assert len(sizes) > 60
    assert np.mean(uneven) < 0.06  # rows that come or go; with a zoom for each axis it is 0.16 and more
    assert factors[0] - 0.03 < sizes.min() < factors[0] + 0.06
    assert factors[1] - 0.06 < sizes.max() < factors[1] + 0.03
    beyond = zoomed * (1 - 0.1 / (factors[1] - factors[0]))  # by more than a twentieth
    assert np.mean(np.abs(sizes - 1.007) > 0.05) == pytest.approx(beyond, abs=1.5 * SHARE)
    assert AUGMENTATIONS[profile].background == pytest.approx(background)


@pytest.mark.parametrize(("profile", "background"), [("released", 1 / 3), ("paper", 0.5)])
def test_crops_about_the_tumour_and_beside_it(profile, background):
    """A crop about the tumour holds a voxel of it; one about the background need not."""
    use, given = sampler(profile, magnify=(1.0, 1.0), flip=0, turn=0), scan()
    empty = np.mean([not sample["label"].any() for sample in samples(profile)])
    assert 0.5 * background < empty < background
    for number in range(12):
        only = Sampler(USE, SIDE, use.augmentation.model_copy(update={"background": 0.0}), "paper")
        assert only.draw(given, np.random.default_rng(number))["label"].any()


@pytest.mark.parametrize("profile", ["released", "paper"])
def test_crops_wander_and_stay_in_the_body(profile):
    """The crop lies anywhere within 1.2 sides around its voxel, which is in the bounding box of the body."""
    given = scan()
    corner = np.zeros(given.scan.array.shape, np.uint8)
    corner[5, 6, 7] = 1  # near the body's corner (4, 5, 6)
    given = Labelled.make(given.scan, given.label.with_array(corner))
    use = sampler(profile, magnify=(1.0, 1.0), flip=0, turn=0, background=0)
    places = []
    for number in range(80):
        sample = use.draw(given, np.random.default_rng(number))
        assert sample["crop"].min() > 0, "no air: the crop lies in the body"
        if sample["label"].any():
            places.append(np.argwhere(sample["label"][0])[0])
    # The room of 24 voxels begins at the body's corner; the crop of 20 begins 0 to 4 voxels later on each axis.
    assert set(np.array(places)[:, 0]) == {0, 1} and np.array(places).max() <= 1
    assert 0 < len(places) < 80


def test_flips_and_turns_are_drawn_as_often_as_they_say():
    given = scan()
    ramp = np.indices(given.scan.array.shape).transpose(1, 2, 3, 0) @ [1.0, 3.0, 9.0]
    given = Labelled.make(given.scan.with_array(ramp.astype(np.float32)), given.label)
    still = {"magnify": (1.0, 1.0), "zoom_probability": 0, "shift": 0, "offset": 0, "background": 0, "body": False}
    for profile in ("released", "paper"):
        use = sampler(profile, **still, turn=0)
        steps = [
            [np.sign(np.diff(use.draw(given, np.random.default_rng(n))["crop"][0], axis=a).mean()) for a in range(3)]
            for n in range(60)
        ]
        np.testing.assert_allclose(np.mean(np.array(steps) < 0, axis=0), 0.5, atol=0.2)
        use = sampler(profile, **still, flip=0)
        turned = []
        for number in range(60):
            crop = use.draw(given, np.random.default_rng(number))["crop"][0] * USE.sd
            turned.append(not np.isclose(np.diff(crop, axis=1).mean(), 3) or np.diff(crop, axis=2).mean() < 0)
            assert np.diff(crop, axis=0).mean() == pytest.approx(9, abs=0.1)  # turned in the plane of h and w alone
        assert np.mean(turned) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(("profile", "largest"), [("released", 20 / 50), ("paper", 0.1)])
def test_intensities_are_shifted_in_half_of_the_samples(profile, largest):
    """By up to 20 HU before normalising, or 0.1 after it."""
    shifts = np.array([np.median(sample["crop"]) - CALM / USE.sd for sample in samples(profile)])
    moved = np.abs(shifts) > 1e-5
    assert moved.mean() == pytest.approx(0.5, abs=1.3 * SHARE)
    assert 0.9 * largest < np.abs(shifts).max() <= largest + 1e-5
    assert np.abs(shifts[moved]).mean() == pytest.approx(largest / 2, rel=0.15)


def test_the_points_of_each_profile():
    for sample in samples("paper"):
        points, label = sample["points"][sample["labels"] == 1].astype(int), sample["label"][0]
        assert len(points) == (40 if label.any() else 10)
        assert (label[tuple(points.T)] == label.any()).all()
    for sample in samples("released"):
        label, marks = sample["label"][0], sample["labels"]
        assert (marks[10:] == 1).all() and len(marks) == 30
        assert (marks[:10] == (1 if label.any() else -1)).all()
        if label.any():
            assert label[tuple(sample["points"][:10].astype(int).T)].all()

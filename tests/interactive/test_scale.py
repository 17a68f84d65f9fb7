"""The spacing that suits a lesion: found by looking, reported, kept; models of a single spacing do not choose."""

import numpy as np
import pytest
import torch

from voxsam import Session
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Predictor
from voxsam.interactive.scale import Scale, clicked_extent
from voxsam.network.card import Card
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import TINY
from voxsam.preprocess import Preprocessing, Window
from voxsam.prompts import Point
from voxsam.testing import stub_network
from voxsam.volume import Volume

SPACING_MM = (1.2, 1.6, 2.5)
SHAPE = (150, 110, 72)  # 180 mm on each axis, about
MIDDLE = (74, 56, 36)
RANGE = (1.0, 4.0)
MANY = Preprocessing(
    axes="SAR", spacing_mm=(2, 2, 2), spacing_range_mm=RANGE, clip=(0, 100), mean=50, sd=10, interpolation="area"
)


class Bright(Promptable):
    """Tumour is what is brighter than the mean: how it sees a ball depends on the spacing alone."""

    def __init__(self, preprocessing: Preprocessing = MANY) -> None:
        config = TINY.model_copy(update={"crop": 48, "marks": False})
        super().__init__(Card(name="bright", config=config, preprocessing=preprocessing))
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.encoded = 0

    def encode(self, crops_B1DHW, progress=None):
        self.encoded += 1
        return (crops_B1DHW,)

    def sample(self, features, points_BN3):
        return points_BN3.new_zeros((*points_BN3.shape[:2], 1))

    def static(self, features, crops_B1DHW):
        return crops_B1DHW

    def decode(self, features, crops_B1DHW, points=None, **_):
        return torch.cat([-crops_B1DHW, crops_B1DHW - 0.1], 1)  # the padding, 0, is no tumour


def ball(*balls: tuple[tuple[int, int, int], float]) -> tuple[Volume, np.ndarray]:
    """A scan with bright balls of a diameter in mm, and their mask."""
    at = np.indices(SHAPE).transpose(1, 2, 3, 0)
    inside = np.zeros(SHAPE, bool)
    for middle, diameter_mm in balls:
        inside |= np.linalg.norm((at - middle) * SPACING_MM, axis=-1) < diameter_mm / 2
    array = np.where(inside, 90, 10).astype(np.int16)
    return Volume(array, Grid.from_spacing(SHAPE, SPACING_MM), "CT"), inside


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def spacing_of(session: Session) -> float:
    (grid,) = {window.model_grid for window in session.prediction.windows}
    return float(grid.spacing_mm[0])


@pytest.mark.parametrize(("diameter_mm", "low", "high"), [(18, 1.0, 1.4), (44, 1.4, 3.0), (110, 3.0, 4.0)])
def test_the_spacing_follows_the_lesion(diameter_mm, low, high):
    scan, truth = ball((MIDDLE, diameter_mm))
    session = Session(Bright(), scan)
    mask = session.click(MIDDLE)
    assert low <= spacing_of(session) <= high
    assert dice(mask.array > 0, truth) > 0.85


def test_a_click_beside_a_large_lesions_middle_still_sees_all_of_it():
    scan, truth = ball((MIDDLE, 110))
    session = Session(Bright(), scan)
    mask = session.click((MIDDLE[0] + 35, MIDDLE[1], MIDDLE[2]))
    assert dice(mask.array > 0, truth) > 0.9


def spacing_of_masks(monkeypatch, **masks: tuple[float, float]) -> float:
    """Final spacing of a click whose masks at some spacings have these (diameter in voxels, probability), else none."""
    by_spacing = {float(name.removeprefix("at_").replace("_", ".")): mask for name, mask in masks.items()}

    def look(predictor, grid, clicks, before):
        window = Window.around(grid, grid.world_to_index(clicks[0].world_mm), (48,) * 3)
        across, sure = by_spacing.get(float(grid.spacing_mm[0]), (0, 0))
        away = np.linalg.norm(np.indices((48,) * 3).transpose(1, 2, 3, 0) - 24, axis=-1)
        return [window], lambda window, whole=True: np.where(away < across / 2, sure, 0).astype(np.float32)

    monkeypatch.setattr(Predictor, "_look", look)
    scan, _ = ball((MIDDLE, 44))
    predictor = Predictor(Bright(), follow=False).set_image(scan)
    return float(predictor.predict(Point.at_index(scan.grid, MIDDLE)).windows[0].model_grid.spacing_mm[0])


def test_the_surest_of_the_first_looks_counts_and_its_size_may_ask_for_another(monkeypatch):
    assert spacing_of_masks(monkeypatch, at_1=(16, 0.7), at_2=(16, 0.9), at_4=(16, 0.8)) == 2
    assert spacing_of_masks(monkeypatch, at_1=(16, 0.7), at_2=(16, 0.6), at_4=(16, 0.8)) == 4
    assert spacing_of_masks(monkeypatch, at_1=(9, 0.89), at_2=(16, 0.5), at_4=(24, 0.88)) == 4  # nearly as sure
    assert spacing_of_masks(monkeypatch, at_1=(6, 0.6), at_2=(8, 0.9), at_4=(16, 0.8)) == 1
    assert spacing_of_masks(monkeypatch, at_2=(10, 0.9), at_1_26=(16, 0.6)) == 1.26
    assert spacing_of_masks(monkeypatch, at_1=(40, 0.9), at_2_52=(16, 0.6)) == 2.52


def test_a_mask_that_has_the_click_is_not_left_for_none(monkeypatch):
    assert spacing_of_masks(monkeypatch, at_1=(40, 0.9)) == 1
    assert spacing_of_masks(monkeypatch, at_2=(8, 0.9)) == 2
    assert spacing_of_masks(monkeypatch) == 1  # none anywhere: what is too small to be seen


def test_what_negative_clicks_take_away_asks_for_no_closer_look(monkeypatch):
    """13 voxels of a crop of 48 are too few after a first click or positive ones, but enough after a negative one."""
    scale = Scale.of(MANY, 48)
    assert scale is not None
    assert scale.next(2, 13, np.zeros((2, 3)), corrected=True) == 2
    assert scale.next(2, 13, np.zeros((2, 3))) == 1.587
    assert scale.next(2, 10, np.zeros((2, 3)), corrected=True) == 1.26
    told = []
    monkeypatch.setattr(Scale, "next", lambda self, spacing, *given: told.append(given[2]) or spacing)
    scan, _ = ball((MIDDLE, 44))
    session = Session(Bright(), scan)
    session.click(MIDDLE)
    session.click((MIDDLE[0] + 2, *MIDDLE[1:]))
    session.click((MIDDLE[0] + 30, *MIDDLE[1:]), positive=False)
    assert told == [False, False, True]


def test_clicks_far_apart_on_a_turned_scan_still_fit_one_crop():
    """70 mm along an axis of the scan that lies between those of the patient: one crop at each first look."""
    scan, _ = ball((MIDDLE, 110))
    turn = np.eye(4)
    turn[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    turned = Volume(scan.array, Grid(SHAPE, turn @ scan.grid.affine), "CT")
    session = Session(Bright(), turned, follow=False)
    session.prompt(*(Point.at_index(turned.grid, (i, MIDDLE[1], MIDDLE[2])) for i in (45, 103)))
    assert len(session.prediction.windows) == 1


def test_a_told_spacing_is_kept_to():
    scan, _ = ball((MIDDLE, 110))
    session = Session(Bright(), scan, spacing_mm=1.5)
    session.click(MIDDLE)
    assert spacing_of(session) == 1.5


def test_a_later_click_stays_at_the_spacing_and_encodes_nothing():
    scan, _ = ball((MIDDLE, 44))
    model = Bright()
    session = Session(model, scan)
    session.click(MIDDLE)
    chosen, encoded = spacing_of(session), model.encoded
    session.click((MIDDLE[0] + 2, MIDDLE[1], MIDDLE[2]))
    assert spacing_of(session) == chosen and model.encoded == encoded


def test_undo_gives_the_mask_of_the_spacing_before():
    scan, _ = ball(((40, 56, 36), 16), ((115, 56, 36), 16))
    session = Session(Bright(), scan)
    first = session.click((40, 56, 36)).array
    fine = spacing_of(session)
    session.click((115, 56, 36))  # 90 mm away: both must lie in one crop
    assert spacing_of(session) > fine
    np.testing.assert_array_equal(session.undo().array, first)
    assert spacing_of(session) == fine


def test_objects_have_spacings_of_their_own():
    scan, truth = ball(((40, 56, 36), 14), ((110, 56, 36), 70))
    session = Session(Bright(), scan)
    session.click((40, 56, 36))
    small = spacing_of(session)
    session.new_object()
    mask = session.click((110, 56, 36))
    assert spacing_of(session) > small
    assert dice(mask.array > 0, truth) > 0.9


def test_a_model_of_one_spacing_looks_with_it():
    scan, _ = ball((MIDDLE, 18))
    session = Session(Bright(MANY.model_copy(update={"spacing_range_mm": None})), scan)
    session.click(MIDDLE)
    assert spacing_of(session) == 2.0


def test_a_spacing_that_the_model_cannot_look_with_is_refused():
    scan, _ = ball((MIDDLE, 18))
    with pytest.raises(InputError, match=r"a spacing of 5 mm for the model bright; expected 1 to 4 mm; leave it out"):
        Session(Bright(), scan, spacing_mm=5)
    with pytest.raises(InputError, match=r"a spacing of 5 mm for the model stub; expected its own, 6, 6, 6 mm"):
        Session(stub_network(), scan, spacing_mm=5)


def test_a_range_begins_with_its_finest_spacing():
    with pytest.raises(ValueError, match="the finest spacing first"):
        Preprocessing(clip=(0, 1), mean=0, sd=1, spacing_range_mm=(3, 1))


def test_the_ladder_runs_from_end_to_end_in_equal_steps():
    scale = Scale.of(MANY, 48)
    assert scale is not None
    assert (scale.ladder[0], scale.ladder[-1]) == RANGE
    steps = np.diff(np.log(scale.ladder))
    assert steps.max() < np.log(1.3) + 1e-3 and np.ptp(steps) < 1e-3


def test_a_mask_measures_as_a_ball_of_its_clicked_parts_and_their_mean_probability():
    grid = Grid.from_spacing((60, 60, 60), (2.0, 2.0, 2.0))
    window = Window(grid, (10, 5, 0), (40, 40, 40))
    probability = np.zeros((40, 40, 40), np.float32)
    at = np.indices(probability.shape).transpose(1, 2, 3, 0)
    probability[np.linalg.norm(at - 20, axis=-1) < 8] = 0.75
    probability[2:6, 2:6, 2:6] = 1  # not clicked
    click = grid.index_to_world([30.0, 25.0, 20.0])
    assert clicked_extent([(window, probability)], [click.tolist()]) == (pytest.approx(16, abs=0.3), 0.75)
    assert clicked_extent([(window, probability)], [grid.index_to_world([11.0, 6.0, 1.0]).tolist()]) == (0, 0)


# From click to click, and beyond a crop


class GoesOn(Bright):
    """A network that records which masks it was given."""

    goes_on = True

    def __init__(self) -> None:
        super().__init__()
        self.given: list = []

    def decode(self, features, crops_B1DHW, points=None, *, previous=None, **_):
        self.given.append(previous)
        return super().decode(features, crops_B1DHW, points)


def test_a_model_that_goes_on_from_a_mask_gets_the_last_one_and_none_at_first():
    scan, _ = ball((MIDDLE, 44))
    model = GoesOn()
    session = Session(model, scan)
    session.click(MIDDLE)
    assert all(previous is None for previous in model.given)
    (window, probability), *_ = session.prediction.pieces
    model.given.clear()
    session.click((MIDDLE[0] + 3, *MIDDLE[1:]))
    assert session.prediction.windows == (window,)
    (previous,) = model.given
    assert previous.shape == (1, 1, *window.shape)
    np.testing.assert_allclose(torch.sigmoid(previous[0, 0]).numpy(), probability.clip(1e-5, 1 - 1e-5), atol=1e-5)


def test_where_the_last_mask_did_not_look_the_next_is_told_nothing():
    scan, _ = ball((MIDDLE, 30))
    model = GoesOn()
    session = Session(model, scan, spacing_mm=1.0)
    session.click(MIDDLE)
    (window, _), *_ = session.prediction.pieces
    model.given.clear()
    far = (MIDDLE[0] + 18, *MIDDLE[1:])  # 22 mm: no longer well inside a crop of 48
    session.click(far)
    moved = session.prediction.windows[0]
    step = np.subtract(moved.start, window.start)
    assert np.abs(step).max() > 5
    previous = model.given[0][0, 0].numpy()
    known = np.zeros(moved.shape, bool)
    known[tuple(slice(max(0, -s), min(48, 48 - s)) for s in step)] = True
    assert (previous[~known] == 0).all() and (previous[known] != 0).mean() > 0.99


def test_a_mask_that_runs_away_is_kept_to_its_first_crop():
    """A ball with a bridge to everything else that is bright: a leak, as into an organ of the same density."""
    scan, _ = ball((MIDDLE, 24))
    array = scan.array.copy()
    array[:40], array[40:, 54:58, 34:38] = 90, 90  # a third of the scan, 40 mm beside the ball, and a bridge to it
    model = Bright()
    session = Session(model, scan.with_array(array), spacing_mm=1.0)
    session.click(MIDDLE)
    assert any("grew more than 4 times" in remark for remark in session.remarks)
    assert session.mask.volume_ml < 4 * 4 / 3 * np.pi * 1.2**3
    assert session.crops == 1

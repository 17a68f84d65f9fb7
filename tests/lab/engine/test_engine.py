"""The data engine: scans, painting, regions, samples, the split."""

import numpy as np
import pytest
import scipy.ndimage

from tests.lab.engine.conftest import with_balls
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.lab.engine.crops import SOURCES, EngineSettings, cut_to, draw_frame, draw_spacing
from voxsam.lab.engine.load import cases, nodule_part, read_split
from voxsam.lab.engine.painting import (
    BONE,
    FAT,
    LUNG,
    SOFT,
    Look,
    Shape,
    Site,
    draw_abutting,
    draw_shape,
    paint,
    smooth_noise,
)
from voxsam.lab.engine.scans import GAP, ORGAN, WALL, Scan
from voxsam.lab.engine.stream import EngineStream, Nodule, Sources, stable_region
from voxsam.preprocess import Preprocessing
from voxsam.seen import content

USE = Preprocessing(axes="SAR", spacing_mm=(2, 2, 2), clip=(-600, 300), mean=40, sd=60, interpolation="area")
SPACING = np.array([3.0, 1.5, 2.0])
CALM = Look(200.0, 0.5, (0.0, 0.0), 0.0, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0, 0.0, ())


def ball(diameter_mm: float) -> Shape:
    return Shape(diameter_mm, (1.0, 1.0, 1.0), np.eye(3), np.zeros((0, 4)), (0.0, 0.0, 0.0))


# Fields


def test_noise_has_unit_variance_and_the_wanted_correlation():
    field = smooth_noise((60, 60, 60), (2.0, 1.0, 1.0), 5.0, np.random.default_rng(0))
    assert field.shape == (60, 60, 60)
    assert field.std() == pytest.approx(1, abs=0.15)
    along = [np.corrcoef(field[:-n].ravel(), field[n:].ravel())[0, 1] for n in (1, 10)]  # 2 and 20 mm
    assert along[0] > 0.8 and abs(along[1]) < 0.3
    other = np.corrcoef(field[:, :-2].ravel(), field[:, 2:].ravel())[0, 1]  # 2 mm, too
    assert other == pytest.approx(along[0], abs=0.08)


# Scans


def test_places_lie_in_their_tissue(body, scan):
    ras = body.grid.reorient("SAR")
    first = ras.index_to_world(np.full(3, -0.5))
    for kind, (low, high) in {LUNG: (-900, -800), FAT: (-130, -70), BONE: (350, 450), ORGAN: (40, 80)}.items():
        assert len(scan.places[kind])
        at = first + (scan.places[kind].astype(float) @ np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]))
        index = np.rint(body.grid.world_to_index(at)).astype(int)
        inside = [(low < body.array[tuple(i)] < high) for i in index]
        assert np.mean(inside) > 0.8


def test_gaps_are_fat_in_soft_tissue_and_walls_lung_beside_it(body):
    i, j = (s * (np.arange(n) - n / 2) for n, s in zip(body.array.shape[:2], body.grid.spacing_mm[:2], strict=True))
    array = body.array.copy()
    array[np.hypot(i[:, None] + 5, j[None] - 45) < 7] = -100  # a cord of fat; the layer under the skin is no gap
    places = Scan.of("cord", body.with_array(array)).places
    first = body.grid.reorient("SAR").index_to_world(np.full(3, -0.5))
    to_right_front = np.array([[0, 0], [0, 1], [1, 0]])
    gaps, walls = ((first[:2] + places[kind].astype(float) @ to_right_front) for kind in (GAP, WALL))
    cord = body.grid.index_to_world((body.array.shape[0] / 2 - 2.5, body.array.shape[1] / 2 + 45 / 1.6, 0))[:2]
    assert np.mean(np.linalg.norm(gaps - cord, axis=1) < 12) > 0.9
    lung = body.grid.index_to_world((body.array.shape[0] / 2 + 12.5, body.array.shape[1] / 2, 0))[:2]
    assert (np.abs(np.linalg.norm(walls - lung, axis=1) - 21) < 7).all()  # its radius is 25 mm


def test_a_crop_is_read_at_its_place_spacing_and_turn(labelled):
    centre = np.array([90.0, 80.0, 96.0])  # mm along S, A, R: the axis of the cylinder
    step = np.diag([4.0, 3.0, 3.0])
    image, label, seen = labelled.read(centre, step, 32)
    assert image.shape == (32, 32, 32)
    assert seen[:, 16, 16].all()
    beyond = labelled.read(np.array([4.0, 80.0, 96.0]), step, 32)[2]
    assert beyond[16:, 16, 16].all() and not beyond[:15].any()  # 4 mm a step: from the 15th on below the scan
    assert label[16, 16, 16 - 12] == 1 and image[16, 16, 16 - 12] > 300  # the bone, 35 mm to the left of the axis
    assert image[16, 16, 16 + 8] < -700  # the lung, 25 mm to the right
    turned, _, _ = labelled.read(centre, step[:, [0, 2, 1]], 32)
    np.testing.assert_allclose(turned[16].T, image[16], atol=1)


def test_the_digest_is_of_the_voxels_not_of_the_file(body):
    turned = body.reorient("PSL")
    same = turned.with_array(turned.array.astype(np.float32))
    assert content(same) == content(body)
    other = body.array.copy()
    other[3, 4, 5] += 1
    assert content(body.with_array(other)) != content(body)


# Painting


def test_a_painted_ball_is_where_and_as_large_and_as_bright_as_told():
    image = np.full((30, 60, 45), 50.0, np.float32)
    site = Site.of(image, SPACING, 0.0)
    done = paint(site, np.array([15.0, 30.0, 20.0]), ball(30.0), CALM, np.random.default_rng(0), None)
    assert done is not None
    painted, mask = done
    assert mask.sum() * SPACING.prod() == pytest.approx(np.pi / 6 * 30**3, rel=0.05)
    assert np.argwhere(mask).mean(0) == pytest.approx([15, 30, 20], abs=0.1)
    extent = (np.ptp(np.argwhere(mask), axis=0) + 1) * SPACING
    assert extent == pytest.approx([30, 30, 30], abs=3.1)
    inner = scipy.ndimage.binary_erosion(mask)
    assert painted.image[inner].mean() == pytest.approx(200, abs=2)
    assert (painted.image[~scipy.ndimage.binary_dilation(mask, iterations=3)] == 50).all()
    assert (image == 50).all()  # the site that was given stays


def test_a_lesion_keeps_to_its_tissue_and_away_from_another():
    image = np.full((40, 40, 40), 50.0, np.float32)
    image[:, :, 25:] = -900
    site = Site.of(image, np.ones(3), 0.0)
    look = Look(**{**CALM.__dict__, "keeps": (SOFT,)})
    avoid = np.zeros(image.shape, bool)
    avoid[:, :15] = True
    done = paint(site, np.array([20.0, 20.0, 20.0]), ball(24.0), look, np.random.default_rng(0), avoid)
    assert done is not None
    assert done[1].any() and not done[1][:, :, 26:].any() and not (done[1] & avoid).any()
    assert (done[0].image[:, :, 30:] == -900).all()


def test_a_lesion_against_soft_tissue_is_as_dense_and_ends_there():
    image = np.full((40, 40, 40), -100.0, np.float32)
    image[:, :, 25:] = 50
    site, rng = Site.of(image, np.ones(3), 0.0), np.random.default_rng(0)
    looks = [draw_abutting(24.0, FAT, 50.0, rng) for _ in range(50)]
    assert np.std([look.mean_hu for look in looks]) == pytest.approx(12, rel=0.4)
    done = paint(site, np.array([20.0, 20.0, 20.0]), ball(24.0), looks[0], rng, None)
    assert done is not None and done[1][20, 20, 24] and not done[1][:, :, 26:].any()


def test_a_lesion_without_room_is_not_painted():
    site = Site.of(np.full((20, 20, 20), -900.0, np.float32), np.ones(3), 0.0)
    look = Look(**{**CALM.__dict__, "keeps": (SOFT,)})
    assert paint(site, np.full(3, 10.0), ball(10.0), look, np.random.default_rng(0), None) is None


def test_shapes_differ_and_are_no_larger_than_told():
    image = np.full((64, 64, 64), 50.0, np.float32)
    volumes = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        done = paint(Site.of(image, np.ones(3), 5.0), np.full(3, 32.0), draw_shape(30.0, rng), CALM, rng, None)
        assert done is not None
        assert scipy.ndimage.label(done[1])[1] == 1
        volumes.append(int(done[1].sum()))
    assert len(set(volumes)) == 6 and max(volumes) < 1.6 * np.pi / 6 * 30**3


# Regions


def test_a_region_is_the_thing_under_the_seed_and_not_what_touches_it_thinly():
    image = np.full((40, 40, 40), 40.0, np.float32)
    image[10:22, 10:22, 10:22] = 140
    image[22:32, 15:17, 15:17] = 140  # a thread
    image[30:38, 10:22, 10:22] = 140  # what hangs on it
    found = [stable_region(image, (15, 15, 15), 0.6, np.random.default_rng(n)) for n in range(12)]
    regions = [region for region in found if region is not None]
    assert regions
    for region in regions:
        assert region[15, 15, 15] and not region[33:].any()
        assert region.sum() == pytest.approx(12**3, rel=0.25)


def test_where_nothing_has_a_border_there_is_no_region():
    slope = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None] * 10, (40, 40, 40))
    assert all(stable_region(slope, (20, 20, 20), 0.6, np.random.default_rng(n)) is None for n in range(6))


# Crops


def test_the_spacing_follows_the_lesion_within_its_range():
    use = EngineSettings(voxels_spread=0.0, voxels_across=20)
    rng = np.random.default_rng(0)
    assert [draw_spacing(mm, use, rng) for mm in (4.0, 30.0, 60.0, 150.0)] == [1.0, 1.5, 3.0, 4.0]


def test_at_any_scale_a_lesion_is_seen_from_a_quarter_to_four_times_as_long():
    use, rng = EngineSettings(any_scale=1.0, voxels_across=20), np.random.default_rng(0)
    spacings = {mm: [draw_spacing(mm, use, rng) for _ in range(300)] for mm in (10.0, 40.0, 120.0)}
    assert max(spacings[10.0]) == 2.0  # five voxels long
    assert min(spacings[40.0]) < 1.1 and max(spacings[40.0]) > 3.6
    assert min(spacings[120.0]) == 1.5  # eighty


def test_a_frame_has_the_spacing_and_orthogonal_axes():
    frame = draw_frame(2.5, EngineSettings(stretch=0.0, turned=1.0), np.random.default_rng(1))
    np.testing.assert_allclose(frame.T @ frame, np.eye(3) * 2.5**2, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(frame, axis=0), 2.5)


def test_a_cut_keeps_the_whole_lesion_with_its_margins():
    label = np.zeros((60, 60, 60), bool)
    label[30:34, 28:30, 20:25] = True
    kept = cut_to(label, np.array([1.0, 2.0, 4.0]), np.random.default_rng(0))
    assert kept[label].all()
    margins = [30 - np.argwhere(kept)[:, 0].min(), (28 - np.argwhere(kept)[:, 1].min()) * 2]
    assert all(4 <= margin <= 60 for margin in margins)


# Samples


@pytest.fixture(scope="module")
def sources(scan: Scan, labelled: Scan) -> Sources:
    distance = np.linalg.norm(np.indices((18, 18, 18)) - 8.5, axis=0)
    nodule = Nodule(np.where(distance < 5, 30.0, -850.0).astype(np.float32), (distance < 5).astype(np.float32))
    return Sources([scan], [labelled], [nodule], [labelled], [labelled])


def stream(sources: Sources, seed: int = 0, **settings) -> EngineStream:
    return EngineStream(sources, EngineSettings(**settings), USE, 32, 50, seed)


ONLY = dict.fromkeys(SOURCES, 0.0)


@pytest.mark.parametrize("source", list(ONLY))
def test_a_sample_of_every_source_has_its_click_in_its_label(body, sources, source, monkeypatch):
    if source == "regions":
        monkeypatch.setattr("voxsam.lab.engine.stream.TRIES", 500)  # one voxel in ten has a region, here and in scans
        sources = Sources([Scan.of("balls", with_balls(body))])
    samples = stream(sources, **{**ONLY, source: 1.0})
    for number in range(6):
        sample = samples[number]
        assert sample["crop"].shape == (1, 32, 32, 32) and sample["crop"].dtype == np.float32
        assert np.isfinite(sample["crop"]).all() and np.abs(sample["crop"]).max() < 15
        assert set(np.unique(sample["label"])) == {0, 1}
        for point in sample["points"][sample["labels"] == 1]:
            assert sample["label"][0][tuple(point.astype(int))] == 1


def test_a_part_of_a_label_is_as_large_as_it_is_alone(body):
    label = np.zeros(body.array.shape, np.uint8)
    label[4:8, 4:8, 4:8] = label[20:32, 20:32, 20:32] = 1
    voxels, sizes = Scan.of("two", body, body.with_array(label, "SEG"), places=False).labelled[1]
    small, large = np.unique(sizes)
    assert large / small == pytest.approx(3, rel=0.25)
    assert len(voxels) == len(sizes) and (sizes == large).sum() > 10 * (sizes == small).sum()


def test_samples_depend_on_seed_and_number_alone(sources):
    one, other = stream(sources), stream(sources)
    _ = one[3]
    for key, value in one[5].items():
        np.testing.assert_array_equal(value, other[5][key])
    assert not np.array_equal(one[5]["crop"], stream(sources, seed=1)[5]["crop"])


def test_a_painted_lesion_changes_only_its_surroundings(sources, monkeypatch):
    plain = {**ONLY, "painted": 1.0, "neighbours": 0, "contrast": 0, "blur": 0, "cut": 0, "noise_hu": 0, "shift_hu": 0}
    sample = stream(sources, **plain)[0]
    values = sample["crop"][0][sample["label"][0] > 0]
    assert len(values) > 10 and values.std() < 3


def test_a_lesion_at_the_wall_of_the_lung_lies_in_the_lung(body, sources, monkeypatch):
    monkeypatch.setattr("voxsam.lab.engine.stream.PLACES", {WALL: 1.0})
    plain = {**ONLY, "painted": 1.0, "neighbours": 0, "contrast": 0, "blur": 0, "cut": 0, "noise_hu": 0, "shift_hu": 0}
    samples = stream(sources, diameter_mm=(30, 60), **plain)
    for number in range(4):
        crop, label = samples[number]["crop"][0], samples[number]["label"][0] > 0
        round_it = scipy.ndimage.binary_dilation(label, iterations=4) & ~label
        inner = scipy.ndimage.binary_erosion(label)
        assert abs(np.median(crop[inner]) * USE.sd + USE.mean - 60) < 60
        assert (crop[round_it] < -5).any() and (crop[round_it] > -1.5).any()  # lung on one side, tissue on the other


def test_a_share_of_a_source_that_is_not_there_is_refused(scan):
    with pytest.raises(InputError, match=r"a share of 1\.00 of nodules, of which the data has none"):
        EngineStream(Sources([scan]), EngineSettings(**{**ONLY, "nodules": 1.0}), USE, 32, 10, 0)


# The split


def test_no_patient_is_on_both_sides():
    for source, parts in read_split().items():
        names = [name for part in parts.values() for name in part]
        assert len(names) == len(set(names)), source
    assert not cases("lesions_ct", "train")
    assert set(cases("sarcoma_mr", "validation")) <= set(cases("sarcoma_ct", "validation"))


def test_the_sarcomas_that_are_held_out_are_those_of_the_first_weights():
    held = ("STS_003", "STS_004", "STS_005", "STS_040", "STS_042", "STS_047")
    assert cases("sarcoma_ct", "validation") == held
    assert len(cases("sarcoma_ct", "train")) == 18


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("LIDC-IDRI-0001_R_1", "excluded"),
        ("LIDC-IDRI-0314_R_2", "excluded"),
        ("LIDC-IDRI-0017_R_3", "validation"),
        ("LIDC-IDRI-0171_R_1", "train"),
    ],
)
def test_nodules_are_split_by_the_patient_in_their_name(case, part):
    assert nodule_part(case) == part


def test_an_unknown_source_is_refused():
    with pytest.raises(InputError, match="the source livers"):
        cases("livers", "train")


def test_the_grid_of_the_tests_is_anisotropic(body):
    assert isinstance(body.grid, Grid) and len(set(np.round(body.grid.spacing_mm, 2).tolist())) == 3


def test_half_of_the_painted_lesions_are_seen_at_any_scale(sources):
    drawn, rng = stream(sources, any_scale=0.5, voxels_spread=0.0, stretch=0.0), np.random.default_rng(0)
    sizes = [drawn._size(150.0, rng) for _ in range(400)]
    own = [np.isclose(np.linalg.norm(frame, axis=0), np.clip(mm / 24, 1, 4)).all() for mm, frame in sizes]
    assert 0.5 < np.mean(own) < 0.62  # some at any scale have the same by chance, at the ends of the range

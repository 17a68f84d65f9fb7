"""Generated phantoms: the same seed gives the same patient, in Hounsfield units and millimetres, with a fair label."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from voxsam.errors import GeometryError
from voxsam.phantoms import Phantom, Scene, make_phantom
from voxsam.phantoms.anatomy import part_into_legs
from voxsam.phantoms.body import Frame, coverage, draw_body, ellipsoid, lattice_noise, smooth_union, superellipse, tube

COARSE = {"shape": (48, 44, 32), "spacing_mm": (4.0, 4.0, 6.0)}  # 192 x 176 x 192 mm
SEEDS = range(12)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed, **COARSE) for seed in SEEDS]


def test_same_seed_same_voxels(phantoms):
    again = make_phantom(3, **COARSE)
    assert np.array_equal(again.scan.array, phantoms[3].scan.array)
    assert np.array_equal(again.label.array, phantoms[3].label.array)
    assert again.click == phantoms[3].click


def test_other_seed_other_patient(phantoms):
    assert not np.array_equal(phantoms[0].scan.array, phantoms[1].scan.array)


def test_default_grid():
    phantom = make_phantom(4)
    assert phantom.scan.array.shape == (96, 96, 96)
    assert phantom.scan.grid.axes == "LPS"
    np.testing.assert_allclose(phantom.scan.grid.spacing_mm, [2, 2, 2])
    assert phantom.scan.grid == phantom.label.grid
    assert (phantom.scan.modality, phantom.label.modality) == ("CT", "SEG")


def test_hounsfield_units(phantoms):
    for phantom in phantoms:
        scan = phantom.scan.array
        assert scan.dtype == np.int16
        assert -1024 <= scan.min() < -900  # air round the body, or in it
        fat, muscle = np.mean((scan > -150) & (scan < -60)), np.mean((scan > 20) & (scan < 90))
        assert fat > 0.01
        assert muscle > 0.03
        assert scan.max() > 250  # bone


def test_label_is_one_connected_part(phantoms):
    for phantom in phantoms:
        assert phantom.label.array.dtype == np.uint8
        assert set(np.unique(phantom.label.array)) == {0, 1}
        assert ndimage.label(phantom.label.array)[1] == 1


def test_click_lies_well_inside(phantoms):
    for phantom in phantoms:
        depth = ndimage.distance_transform_edt(np.pad(phantom.label.array, 1), sampling=COARSE["spacing_mm"])
        i, j, k = phantom.click
        assert depth[i + 1, j + 1, k + 1] >= 0.59 * depth.max()
        assert all(isinstance(index, int) for index in phantom.click)


def test_lesion_lies_in_the_body_and_is_soft_tissue_or_fat(phantoms):
    for phantom in phantoms:
        deep = ndimage.binary_erosion(phantom.label.array)
        inside = phantom.scan.array[deep if deep.any() else phantom.label.array > 0]
        assert -110 < np.median(inside) < 150


def test_lesion_shuns_bone(phantoms):
    # Apart from calcifications and blurred borders: less than a tenth of a lesion is cortical bone (> 300 HU).
    for phantom in phantoms:
        assert np.mean(phantom.scan.array[phantom.label.array > 0] > 300) < 0.1


def test_variety(phantoms):
    volumes = np.array([phantom.label.volume_ml for phantom in phantoms])
    assert volumes.min() >= 1.5
    assert volumes.max() <= 1000
    assert volumes.max() / volumes.min() > 10
    means = [float(phantom.scan.array[phantom.label.array > 0].mean()) for phantom in phantoms]
    assert np.std(means) > 10
    noise = [float((phantom.scan.array - ndimage.median_filter(phantom.scan.array, 3)).std()) for phantom in phantoms]
    assert max(noise) > 1.3 * min(noise)
    centres = np.array([ndimage.center_of_mass(phantom.label.array) for phantom in phantoms]) / COARSE["shape"]
    assert (centres.std(axis=0) > 0.08).all()  # the lesion is not always in the middle


def test_many_lesions_have_low_contrast(phantoms):
    differences = []
    for phantom in phantoms:
        near = ndimage.binary_dilation(phantom.label.array, iterations=3)
        ring = near & ~ndimage.binary_dilation(phantom.label.array)
        soft = ring & (np.abs(phantom.scan.array - 50) < 70)
        if soft.sum() > 20:
            lesion = np.median(phantom.scan.array[phantom.label.array > 0])
            differences.append(abs(lesion - np.median(phantom.scan.array[soft])))
    assert len(differences) >= 8
    assert np.mean(np.array(differences) < 40) > 0.4


@pytest.mark.parametrize("seed", [0, 4, 10])
def test_another_spacing_shows_the_same_lesion(seed):
    coarse = make_phantom(seed, (48, 44, 32), (4.0, 4.0, 6.0))
    fine = make_phantom(seed, (64, 88, 48), (3.0, 2.0, 4.0))
    assert fine.label.volume_ml == pytest.approx(coarse.label.volume_ml, rel=0.03)
    centres = [p.label.grid.index_to_world(ndimage.center_of_mass(p.label.array)) for p in (coarse, fine)]
    np.testing.assert_allclose(centres[0], centres[1], atol=1.0)


@pytest.mark.parametrize("axes", ["RAS", "SPL", "AIR"])
def test_other_axes_hold_the_same_voxels_at_the_same_places(axes):
    # 40 x 36 x 28 voxels of 4 x 5 x 6 mm along R/L, A/P, S/I, whatever the order.
    length = dict(zip("RLAPSI", (40, 40, 36, 36, 28, 28), strict=True))
    spacing = dict(zip("RLAPSI", (4.0, 4.0, 5.0, 5.0, 6.0, 6.0), strict=True))
    upright = make_phantom(8, (40, 36, 28), (4.0, 5.0, 6.0), axes="LPS")
    turned = make_phantom(8, [length[a] for a in axes], [spacing[a] for a in axes], axes=axes)
    assert turned.scan.grid.axes == axes
    assert turned.scan.array.shape == tuple(length[a] for a in axes)
    for index in [(0, 0, 0), (39, 0, 0), (5, 30, 11), turned.scan.grid.index_in(upright.scan.grid, turned.click)]:
        at = np.rint(upright.scan.grid.index_in(turned.scan.grid, index)).astype(int)
        place = tuple(np.rint(index).astype(int))
        assert turned.scan.array[tuple(at)] == upright.scan.array[place]
        assert turned.label.array[tuple(at)] == upright.label.array[place]
    assert tuple(np.rint(turned.scan.grid.index_in(upright.scan.grid, turned.click)).astype(int)) == upright.click


def test_wrong_axes_are_refused():
    with pytest.raises(GeometryError, match="one letter each of R/L, A/P, S/I"):
        make_phantom(0, axes="LLS")


# The shapes, by hand


@pytest.fixture
def line() -> Frame:
    """x = -20, -18 ... 20 mm through the world's origin."""
    return Frame.around(np.zeros(3), (21, 1, 1), (2.0, 3.0, 5.0))


def test_frame_is_centred():
    frame = Frame.around(np.array([10.0, 0, -5]), (4, 3, 2), (2.0, 3.0, 5.0))
    np.testing.assert_allclose(frame.x.ravel(), [7, 9, 11, 13])
    np.testing.assert_allclose(frame.y.ravel(), [-3, 0, 3])
    np.testing.assert_allclose(frame.z.ravel(), [-7.5, -2.5])
    assert frame.edge_mm == pytest.approx(30 ** (1 / 3))


def test_distances_of_shapes_along_x(line):
    ball = ellipsoid(line.place, np.zeros(3), np.array([8.0, 8, 8]))
    np.testing.assert_allclose(ball[[10, 12, 14, 16], 0, 0], [-8, -4, 0, 4], atol=1e-4)
    shifted = ellipsoid(line.place, np.array([6.0, 0, 0]), np.array([4.0, 9, 9]))
    np.testing.assert_allclose(shifted[[11, 15, 17], 0, 0], [0, 0, 4], atol=1e-4)
    turned = ellipsoid(line.place, np.zeros(3), np.array([3.0, 14, 5]), np.eye(3)[[1, 0, 2]])
    np.testing.assert_allclose(turned[[17, 20], 0, 0], [0, 6], atol=1e-4)  # the axis of 14 mm lies along x
    square = superellipse(line.x, line.y, 12.0, 7.0, 4.0)
    np.testing.assert_allclose(square[[16, 18], 0, 0], [0, 4], atol=1e-4)
    pipe = tube(line.x, line.y, 4.0, 0.0, 6.0)
    np.testing.assert_allclose(pipe[[7, 12, 15, 20], 0, 0], [4, -6, 0, 10], atol=1e-4)


def test_smooth_union_is_a_union_with_a_fillet():
    a, b = np.array([5.0, 0.0, -3.0]), np.array([-9.0, 0.0, 30.0])
    np.testing.assert_allclose(smooth_union(a, b, 4.0), [-9, -1, -3])  # a quarter of the blend where both are equal


def test_coverage_is_half_on_the_border():
    np.testing.assert_allclose(coverage(np.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 2.0), [1, 0.75, 0.5, 0.25, 0])


def test_noise_has_unit_spread_and_is_the_same_at_every_spacing():
    fine = Frame.around(np.zeros(3), (41, 41, 41), (3.0, 3.0, 3.0))
    coarse = Frame.around(np.zeros(3), (21, 41, 11), (6.0, 3.0, 12.0))
    first, second = (lattice_noise(np.random.default_rng(1), frame, 9.0) for frame in (fine, coarse))
    assert first.mean() == pytest.approx(0, abs=0.1)
    assert first.std() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(first[::2, :, ::4], second, atol=1e-4)


# Wide views and small lesions

WIDE = {"shape": (56, 48, 40), "spacing_mm": (6.0, 6.0, 6.0)}  # 336 x 288 x 240 mm


@pytest.fixture(scope="module")
def wide() -> list[Phantom]:
    return [make_phantom(seed, **WIDE, scene=Scene(wide=1.0)) for seed in range(16)]


def test_a_wide_view_holds_the_whole_cross_section(wide):
    """There is air on both sides of the body, and the tumour's slice shows its full width."""
    framed, widths = [], []
    for phantom in wide:
        scan = phantom.scan.array[:, :, phantom.click[2]]
        body = ndimage.binary_opening(scan > -200, iterations=1)
        across, along = np.nonzero(body.any(1))[0], np.nonzero(body.any(0))[0]
        framed.append(across[0] > 0 and across[-1] < 55)
        widths.append((np.ptp(across) + 1) * 6)
        assert np.ptp(along) * 6 > 60
    assert np.mean(framed) > 0.4  # tables and arms reach the border of the others
    assert np.median(widths) > 250  # a single thigh has at most 210 mm


def test_hips_part_into_two_legs():
    rng = np.random.default_rng(0)
    body = next(b for b in (draw_body(rng, wide=True) for _ in range(50)) if b.kind == "hips")
    frame = Frame.around(np.array([0, 0, body.crotch_z]), (61, 41, 61), (7.0, 7.0, 7.0))
    trunk = superellipse(frame.x, frame.y, body.half_x, body.half_y, 2.2) + 0 * frame.z
    inside = part_into_legs(body, frame, trunk, frame.x + 0 * trunk, frame.y + 0 * trunk) < 0
    below, above = inside[:, :, 5], inside[:, :, 55]
    assert ndimage.label(below)[1] == 2
    assert ndimage.label(above)[1] == 1
    np.testing.assert_array_equal(inside, inside[::-1])  # left as right


def test_small_lesions_are_small():
    volumes = [
        make_phantom(s, (72, 72, 60), (3.0, 3.0, 3.0), scene=Scene(small=1.0)).label.volume_ml for s in range(12)
    ]
    assert max(volumes) < 70
    assert min(volumes) < 6
    assert np.median(volumes) < 25


def test_scenes_are_drawn_with_their_probabilities():
    rng = np.random.default_rng(0)
    drawn = np.array([Scene(wide=0.7, small=0.2).draw(rng) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(0), [0.7, 0.2], atol=0.03)


def test_a_scene_leaves_the_ordinary_phantoms_as_they_were(phantoms):
    again = make_phantom(5, **COARSE, scene=Scene(wide=0.0, small=0.0))
    assert np.array_equal(again.scan.array, phantoms[5].scan.array)

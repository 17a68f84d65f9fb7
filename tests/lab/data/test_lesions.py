"""Labels on another grid: deepest points by hand, thin lesions that survive, extreme anisotropy in two steps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from voxsam.geometry import Grid
from voxsam.lab.data import prepare as preparing
from voxsam.lab.data.prepare import deepest_points, resample_label, resample_scan
from voxsam.resample import resample
from voxsam.volume import Volume

SPACING = np.array([0.7, 0.8, 5.0])
GRID = Grid.from_spacing((30, 24, 6), SPACING, (3, -4, 9))
TOLERANCE = 2e-3  # float32 sums of values up to a few thousand


def test_the_deepest_point_of_each_lesion():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:7, 2:7, 2:7] = True  # middle (4, 4, 4)
    mask[10, 10, 10:15] = True  # a line: its middle, not its end
    mask[15, 15, 0] = True  # one voxel at the border
    mask[16, 16, 1] = True  # touches it by a corner: the same lesion
    assert deepest_points(mask, np.ones(3)).tolist()[:2] == [[4, 4, 4], [10, 10, 12]]
    assert len(deepest_points(mask, np.ones(3))) == 3
    assert deepest_points(np.zeros((3, 3, 3), bool), np.ones(3)).shape == (0, 3)


def test_depth_is_measured_in_millimetres():
    mask = np.zeros((40, 9, 9), bool)
    mask[1:4, 1:4, 1:4] = True
    mask[3:33, 2, 2] = True  # a long thin tail; in voxels the cube's middle is deeper
    assert deepest_points(mask, np.array([1.0, 1, 1])).tolist() == [[2, 2, 2]]


def test_a_lesion_one_voxel_thin_survives_a_coarse_grid():
    mask = np.zeros(GRID.shape, np.uint8)
    mask[4, 5:15, 1] = 1  # a thread, 0.7 mm wide
    mask[20:28, 14:22, 2:5] = 1
    model_grid = GRID.reorient("SAR").respace((5, 4, 4))
    volume = Volume(mask, GRID, "SEG")
    assert not (resample(volume, model_grid, "area") > 0.5)[:, :, : int(10 / 4)].any(), "the thread would be lost"
    points = deepest_points(mask > 0, GRID.spacing_mm)
    label, kept = resample_label(volume, model_grid, points)
    assert label.dtype == np.uint8
    assert len(kept) == 2
    assert label[tuple(kept.T)].all()
    thread = kept[kept[:, 2].argmin()]
    there = model_grid.index_to_world(thread) - GRID.index_to_world((4, 9, 1))
    assert (np.abs(there) <= model_grid.affine[:3, :3].max(axis=1) / 2 + 1e-6).all()  # the voxel that it lies in


def test_a_sheet_one_voxel_thick_stays_a_sheet():
    """0.8 mm thick, 26 x 24 mm, on a grid of 3 mm: averaging would leave nothing, the deepest point only a speck."""
    grid = Grid.from_spacing((40, 36, 30), (0.8, 0.8, 0.8))
    mask = np.zeros(grid.shape, np.uint8)
    mask[4:37, 3:33, 14] = 1
    model_grid = grid.reorient("SAR").respace((3, 3, 3))
    assert not (resample(Volume(mask, grid), model_grid, "area") > 0.5).any()
    label, _ = resample_label(Volume(mask, grid, "SEG"), model_grid, deepest_points(mask > 0, grid.spacing_mm))
    layers = np.flatnonzero(label.any(axis=(1, 2)))
    assert len(layers) == 1  # as thin as the grid lets it be
    assert model_grid.index_to_world((layers[0], 0, 0))[2] == pytest.approx(14 * 0.8, abs=1.5)
    box = [np.ptp(np.flatnonzero(label[layers[0]].any(axis=a))) + 1 for a in (1, 0)]
    assert label[layers[0]].sum() == box[0] * box[1]  # without holes
    np.testing.assert_allclose(np.array(box) * 3, [30 * 0.8, 33 * 0.8], atol=3)


def test_a_thin_tail_stays_joined_and_thick_rims_do_not_grow():
    grid = Grid.from_spacing((50, 30, 30), (1, 1, 1))
    ball = sum((np.indices(grid.shape)[a] - c) ** 2 for a, c in enumerate((12, 15, 15))) < 81
    model_grid = grid.respace((3, 3, 3))
    alone, tailed = ball.copy(), ball.copy()
    tailed[12:48, 15, 15] = True
    plain, with_tail = (
        resample_label(Volume(m.astype(np.uint8), grid), model_grid, np.empty((0, 3), int))[0] for m in (alone, tailed)
    )
    np.testing.assert_array_equal(plain, resample(Volume(alone.astype(np.uint8), grid), model_grid, "area") > 0.5)
    added = with_tail - plain
    assert ndimage.label(with_tail, np.ones((3, 3, 3)))[1] == 1
    assert added.any(axis=(1, 2))[8:16].all() and added.sum() <= 12
    assert plain.sum() * 27 == pytest.approx(ball.sum(), rel=0.05)


def test_a_point_beyond_the_last_whole_voxel_goes_into_it():
    grid = Grid.from_spacing((7, 6, 5), (1, 1, 1))
    mask = np.zeros(grid.shape, np.uint8)
    mask[6, 5, 4] = 1
    label, kept = resample_label(Volume(mask, grid), grid.respace((3, 4, 2)), np.array([[6, 5, 4]]))
    assert label.shape == (2, 1, 2)
    assert kept.tolist() == [[1, 0, 1]]
    assert label[1, 0, 1] == 1


@pytest.mark.parametrize("method", ["linear", "area"])
def test_extreme_anisotropy_in_plane_first(method, monkeypatch):
    grid = Grid.from_spacing((30, 24, 6), (0.5, 0.6, 6.0)).reorient("LPS")
    scan = Volume(np.random.default_rng(0).normal(0, 300, grid.shape).astype(np.float32), grid)
    target = grid.reorient("SAR").respace((2, 1, 1.5))
    steps = []

    def spy(volume, onto, how):
        steps.append(onto.spacing_mm.round(3).tolist())
        return resample(volume, onto, how)

    monkeypatch.setattr(preparing, "resample", spy)
    found = resample_scan(scan, target, method)
    assert steps == [[6, 1, 1.5], [2, 1, 1.5]]
    np.testing.assert_allclose(found, resample(scan, target, method), atol=TOLERANCE)


def test_moderate_anisotropy_in_one_step(monkeypatch):
    calls = []
    monkeypatch.setattr(preparing, "resample", lambda *a: calls.append(a))
    resample_scan(Volume(np.zeros(GRID.shape), GRID), GRID, "linear")
    assert len(calls) == 1

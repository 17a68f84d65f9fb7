"""The simulated user clicks the largest wrong region, on the right side of it."""

from __future__ import annotations

import numpy as np
import torch

from voxsam.lab.training.task import corrections


def users(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and mask of one crop: 5 x 3 x 3 voxels are missing from the mask, 2 x 2 x 2 are wrong in it."""
    truth, mask = torch.zeros(1, 12, 10, 9), torch.zeros(1, 12, 10, 9)
    truth[0, 2:10, 2:5, 3:6] = 1
    mask[0, 2:5, 2:5, 3:6] = 1
    mask[0, 5:7, 7:9, 0:2] = 1
    return mask, truth


def test_a_missed_region_gets_a_positive_click_and_a_false_one_a_negative() -> None:
    mask, truth = volumes()
    for seed in range(10):
        points, labels = corrections(mask, truth, users(seed))
        d, h, w = points[0, 0].int().tolist()
        assert labels.tolist() == [[1]] and points.shape == (1, 1, 3)
        assert truth[0, d, h, w] == 1 and mask[0, d, h, w] == 0
    mask[0, 5:11, 6:10, 0:6] = 1
    for seed in range(10):
        points, labels = corrections(mask, truth, users(seed))
        d, h, w = points[0, 0].int().tolist()
        assert labels.tolist() == [[0]]
        assert truth[0, d, h, w] == 0 and mask[0, d, h, w] == 1


def test_half_of_the_clicks_are_the_deepest_voxel() -> None:
    mask, truth = volumes()
    clicks = [corrections(mask, truth, users(seed))[0][0, 0].tolist() for seed in range(60)]
    deepest = sum(click == [6.0, 3.0, 4.0] or click == [7.0, 3.0, 4.0] or click == [8.0, 3.0, 4.0] for click in clicks)
    assert 20 < deepest < 50


def test_nothing_wrong_is_padding_and_a_model_without_polarity_gets_no_negative() -> None:
    _, truth = volumes()
    assert corrections(truth, truth, users(0))[1].tolist() == [[-1]]
    everything = torch.ones_like(truth)
    assert corrections(everything, truth, users(0))[1].tolist() == [[0]]
    assert corrections(everything, truth, users(0), negatives=False)[1].tolist() == [[-1]]


def test_each_crop_of_a_batch_is_corrected_by_itself() -> None:
    mask, truth = volumes()
    points, labels = corrections(torch.cat([mask, truth]), torch.cat([truth, truth]), users(0, 1))
    assert points.shape == (2, 1, 3) and labels.tolist() == [[1], [-1]]

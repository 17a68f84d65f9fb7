"""The sheet of samples: where its tiles and outlines are."""

import numpy as np
import torch

from voxsam.lab.engine.pictures import CLICK, ENLARGED, GAP, LABEL, MASK, masks_of, sheet
from voxsam.testing import stub_network


def sample(seed: int = 0) -> dict[str, np.ndarray]:
    label = np.zeros((1, 16, 16, 16), np.float32)
    label[0, 6:11, 3:9, 2:7] = 1
    crop = np.random.default_rng(seed).normal(size=(1, 16, 16, 16)).astype(np.float32)
    return {
        "crop": crop,
        "label": label,
        "points": np.array([[8, 5, 4], [7, 4, 3]], np.float32),
        "labels": np.ones(2, int),
    }


def test_a_tile_is_plain_then_outlined_with_the_front_on_top():
    page = sheet([sample()] * 6)
    side = 16 * ENLARGED
    assert page.shape == (2 * (side + GAP), 5 * (2 * side + GAP), 3)
    tile = page[:side, : 2 * side]
    row, column = side - 1 - 5 * ENLARGED, side + 4 * ENLARGED
    assert tuple(tile[row, column]) == CLICK
    assert tuple(tile[side - 1 - 3 * ENLARGED, side + 4 * ENLARGED]) == LABEL  # the first row of the label
    plain = tile[:, :side]
    assert (plain[..., 0] == plain[..., 1]).all() and not (plain == LABEL).all(-1).any()


def test_the_masks_of_a_model_are_drawn_in_their_colour():
    torch.manual_seed(0)
    masks = masks_of(stub_network(), [sample()])
    assert masks[0].shape == (16, 16, 16) and masks[0].dtype == bool
    square = np.zeros((16, 16, 16), bool)
    square[8, 10:14, 10:14] = True
    assert (sheet([sample()], [square]) == MASK).all(-1).any()

"""Pictures of samples for visual inspection: each as the model sees it, and beside it the click and the target.

`python -m voxsam.lab.engine.pictures RECIPE DATA PICTURE.png [COUNT [MODEL]]` draws 30 samples of a recipe's engine, or
COUNT of them, with the masks of a model (a file, or a run's last.ckpt) for their first clicks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from voxsam.lab.data.sampling import Sample
from voxsam.network.promptable import Promptable

ENLARGED, COLUMNS, GAP = 2, 5, 4
LABEL, MASK, CLICK = (90, 220, 120), (255, 120, 60), (255, 230, 60)


def sheet(samples: Sequence[Sample], masks: Sequence[NDArray[np.bool_]] | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) the axial plane through each first click, twice: plain, and with click and label outline (green).

    `masks` are predictions for the samples, also outlined (orange).
    """
    tiles = [_tile(sample, None if masks is None else masks[n]) for n, sample in enumerate(samples)]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // COLUMNS)
    page = np.full((rows * (height + GAP), COLUMNS * (width + GAP), 3), 255, np.uint8)
    for n, tile in enumerate(tiles):
        row, column = divmod(n, COLUMNS)
        page[row * (height + GAP) : row * (height + GAP) + height, column * (width + GAP) :][:, :width] = tile
    return page


def _tile(sample: Sample, mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    d, h, w = np.rint(sample["points"][0]).astype(int).tolist()
    plane = sample["crop"][0, d]
    grey = (np.clip((plane + 3.2) / 6.4, 0, 1) * 255).astype(np.uint8)
    plain = _enlarged(np.repeat(grey[..., None], 3, 2))
    drawn = plain.copy()
    drawn[_outline(sample["label"][0, d] > 0)] = LABEL
    if mask is not None:
        drawn[_outline(mask[d])] = MASK
    drawn[h * ENLARGED : (h + 1) * ENLARGED, w * ENLARGED : (w + 1) * ENLARGED] = CLICK
    return np.concatenate([plain[::-1], drawn[::-1]], 1)  # rows increase towards the front, which is shown on top


def _enlarged(image: NDArray) -> NDArray:
    return image.repeat(ENLARGED, 0).repeat(ENLARGED, 1)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    large = np.pad(_enlarged(mask), 1)
    inner = large[1:-1, 1:-1] & large[:-2, 1:-1] & large[2:, 1:-1] & large[1:-1, :-2] & large[1:-1, 2:]
    return large[1:-1, 1:-1] & ~inner


def masks_of(model: Promptable, samples: Sequence[Sample]) -> list[NDArray[np.bool_]]:
    """A model's mask (D, H, W) for the first click of each sample."""
    found = []
    with torch.inference_mode():
        for sample in samples:
            crop, points, labels = (torch.from_numpy(sample[key])[None] for key in ("crop", "points", "labels"))
            logits = model(crop, points[:, :1], labels[:, :1])[0]
            found.append((logits[1] > logits[0]).numpy())
    return found


def main(recipe: str, data: str, picture: str, count: str = "30", model: str | None = None) -> None:
    """Draw the first samples of a recipe's engine."""
    from PIL import Image

    from voxsam.lab.engine.check import read_any
    from voxsam.lab.training.recipe import read_recipe
    from voxsam.lab.training.run import make_stream

    stream = make_stream(read_recipe(Path(recipe)), Path(data))
    samples = [stream[n] for n in range(int(count))]
    masks = None if model is None else masks_of(read_any(model), samples)
    Image.fromarray(sheet(samples, masks)).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

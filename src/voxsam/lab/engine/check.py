"""Scores of a model at the spacing that suits each validation lesion's size: its network without a session.

`python -m voxsam.lab.engine.check MODEL DATA [OUT.json]`: MODEL is a .safetensors file or the last.ckpt of a run. The
crop is centred on the click; the lesion's voxels outside it count for Dice, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.lab.engine.validation import Lesion, painted, sarcomas, whole_ct
from voxsam.lab.training.task import corrections
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Window, read_crop
from voxsam.resample import resample
from voxsam.weights.checkpoint import load_model
from voxsam.weights.file import read_pickle

ACROSS, SPACINGS_MM = 24.0, (1.0, 4.0)  # wanted length of a lesion in voxels, and the range of spacings for it
CORRECTED = 5


@dataclass(frozen=True)
class Checked:
    """Dice of one lesion after one random click and after each of five corrections; `hit`: the click is in the mask."""

    name: str
    group: str
    ml: float
    spacing_mm: float
    dice: tuple[float, ...]
    hit: bool
    more: float  # Dice after ten random clicks


def check(model: Promptable, lesions: Iterable[Lesion], across: float = ACROSS) -> Iterator[Checked]:
    """Check each lesion in one crop; its clicks depend only on its place in `lesions`."""
    use, side = model.card.preprocessing, model.config.crop
    for number, lesion in enumerate(lesions):
        rng = np.random.default_rng([7, number])
        spacing = float(np.clip(lesion.diameter_mm / across, *SPACINGS_MM))
        at = use.model_copy(update={"spacing_mm": (spacing,) * 3})
        grid = at.model_grid(lesion.scan.grid)
        voxels = np.argwhere(lesion.mask.array)
        click = lesion.mask.grid.index_in(grid, voxels[rng.integers(len(voxels))])
        window = Window.around(grid, click, (side,) * 3)
        crop = torch.from_numpy(read_crop(lesion.scan, window, at))[None, None]
        truth = resample(lesion.mask, window.grid, "area") > 0.5
        outside = max(0.0, len(voxels) * lesion.mask.grid.voxel_volume_ml * 1000 / spacing**3 - truth.sum())
        random = np.argwhere(truth)[rng.permutation(int(truth.sum()))[:9]] if truth.any() else np.zeros((0, 3), int)
        first = np.rint(click - window.start)
        with torch.inference_mode():
            dice, hit, more = _clicked(model, crop, truth, outside, first, random, rng)
        yield Checked(lesion.name, lesion.group, lesion.mask.volume_ml, spacing, dice, hit, more)


def _clicked(
    model: Promptable,
    crop: Tensor,
    truth: NDArray[np.bool_],
    outside: float,
    first: NDArray[np.float64],
    random: NDArray[np.int_],
    rng: np.random.Generator,
) -> tuple[tuple[float, ...], bool, float]:
    features = model.encode(crop)
    static = model.static(features, crop)
    points, labels = torch.tensor(first, dtype=torch.float32)[None, None], torch.ones(1, 1, dtype=torch.long)

    def mask(points: Tensor, labels: Tensor) -> NDArray[np.bool_]:
        logits = model.decode(
            features, crop, points, labels=labels, static=static, conditioning=model.card.conditioning
        )
        return (logits[0, 1] > logits[0, 0]).numpy()

    def dice(found: NDArray[np.bool_]) -> float:
        return float(2 * (found & truth).sum() / max(1.0, found.sum() + truth.sum() + outside))

    found = mask(points, labels)
    scores, hit = [dice(found)], bool(found[tuple(first.astype(int))])
    several = torch.cat([points, torch.tensor(random, dtype=torch.float32)[None]], 1)
    more = dice(mask(several, torch.ones(several.shape[:2], dtype=torch.long)))
    for _ in range(CORRECTED):
        new = corrections(torch.from_numpy(found)[None], torch.from_numpy(truth)[None], [rng])
        points, labels = torch.cat([points, new[0]], 1), torch.cat([labels, new[1]], 1)
        found = mask(points, labels)
        scores.append(dice(found))
    return tuple(scores), hit, more


def read_any(source: str) -> Promptable:
    """Load a model by name or file, or the averaged weights in a run's checkpoint."""
    path = Path(source)
    if path.suffix != ".ckpt":
        return load_model(source, "cpu")
    from voxsam.lab.training.keep import PREFIX
    from voxsam.lab.training.recipe import Recipe
    from voxsam.lab.training.start import make_network

    recipe = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))["recipe"]
    network = make_network(Recipe.model_validate({**recipe, "start_from": None}))
    state = read_pickle(path, "a checkpoint of voxsam train")["state_dict"]
    network.load_state_dict({name.removeprefix(PREFIX): x for name, x in state.items() if name.startswith(PREFIX)})
    return network.eval()


def table(rows: Iterable[Checked]) -> str:
    """A line for each group: mean Dice after 1 click, 10 random clicks, and 1 + 1 to 1 + 5 corrective clicks."""
    rows, lines = list(rows), []
    for group in dict.fromkeys(row.group for row in rows):
        of = [row for row in rows if row.group == group]
        dice = np.mean([row.dice for row in of], axis=0)
        corrected = " ".join(f"{d:.3f}" for d in dice[1:])
        more, hit = np.mean([row.more for row in of]), np.mean([row.hit for row in of])
        lines.append(f"{group:18s} n {len(of):2d}  1: {dice[0]:.3f}  10: {more:.3f}  1+: {corrected}  hit {hit:.2f}")
    return "\n".join(lines)


def main(model: str, data: str, out: str | None = None, *names: str) -> None:
    """Print the table, and write each lesion's row as JSON."""
    folder = Path(data)
    kinds = {"painted": painted, "sarcomas": sarcomas, "whole_ct": whole_ct}
    lesions = chain.from_iterable(kinds[name](folder) for name in names or kinds)
    rows = list(check(read_any(model), lesions))
    sys.stdout.write(table(rows) + "\n")
    if out is not None:
        Path(out).write_text(json.dumps([row.__dict__ for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

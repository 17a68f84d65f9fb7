"""Accuracy on scans that training never saw: one click on each held-out case, Dice on the scan's own grid.

    python -m benchmarks.held_out FOLDER [--model voxsam-tiny] [--recipe recipes/voxsam-tiny.yaml] [--write CARD.md]

FOLDER is in MSD / nnU-Net raw layout. The click is the voxel deepest in the tumour; `--trials N` adds N clicks drawn
uniformly from the tumour, seeded. `--write` puts the table between the markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.table import markdown_table, write_between_markers
from voxsam.data.cases import Case, find_cases
from voxsam.evaluation.metrics import dice
from voxsam.io import read_volume
from voxsam.model import load_model
from voxsam.model.network import VoxSAMNetwork
from voxsam.prompts import spread
from voxsam.session import Session
from voxsam.training.recipe import read_recipe

MARKER = "held-out"


def score_case(model: VoxSAMNetwork, case: Case, trials: int) -> dict[str, float | str]:
    """Volume, Dice and seconds of the deepest click, and the mean Dice of `trials` random ones."""
    scan, truth = read_volume(case.image), read_volume(case.label, labels=True)
    tumour = truth.array > 0
    start = time.perf_counter()
    session = Session(model, scan)
    mask = session.click(spread(tumour, scan.grid.spacing_mm, 1)[0].tolist())
    seconds = time.perf_counter() - start
    voxels = np.argwhere(tumour)
    rng = np.random.default_rng(0)
    drawn = [
        dice(Session(model, scan).click(voxels[rng.integers(len(voxels))].tolist()).array > 0, tumour)
        for _ in range(trials)
    ]
    row: dict[str, float | str] = {"case": case.name, "mL": round(truth.volume_ml)}
    row |= {"Dice, deepest voxel": dice(mask.array > 0, tumour)}
    if drawn:
        row |= {f"mean of {trials} random clicks": float(np.mean(drawn)), "worst": min(drawn)}
    return row | {"crops": session.crops, "seconds": round(seconds, 2)}


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="voxsam-tiny")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/voxsam-tiny.yaml"))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    held_out = read_recipe(arguments.recipe).held_out
    rows = [score_case(model, c, arguments.trials) for c in find_cases(arguments.folder) if c.name in held_out]
    numbers = [key for key, value in rows[0].items() if not isinstance(value, str)]
    rows.append({"case": "mean", **{key: float(np.mean([float(row[key]) for row in rows])) for key in numbers}})
    table = markdown_table(rows)
    print(table)
    if arguments.write is not None:
        write_between_markers(arguments.write, MARKER, table)


if __name__ == "__main__":
    main()

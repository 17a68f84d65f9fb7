"""A data set of phantoms on disk, in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from voxsam.errors import FileError
from voxsam.io import write_mask, write_volume
from voxsam.phantoms.phantoms import CLOSE, Scene, make_phantom

MODALITY, LABELS = {"0": "CT"}, {"background": 0, "tumour": 1}


def write_phantoms(
    folder: Path,
    seeds: Sequence[int],
    grid: tuple[Sequence[int], Sequence[float]],
    scene: Scene = CLOSE,
    progress: Callable[[str, float], None] | None = None,
    brighter_hu: int = 0,
) -> None:
    """A scan and a label for each seed, on a `grid` of so many voxels (i, j, k) at such a spacing in mm.

    With `brighter_hu` every tumour is so much brighter: a task that a small network learns in a few minutes.

    Raises FileError for a folder that holds something already or cannot be made, GeometryError as `make_phantom`.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileError(f"{folder} is not empty", "a new or an empty folder", "choose another with -o")
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} ({error.strerror})", "a folder that can be made", "choose another") from error
    for number, seed in enumerate(seeds):
        if progress is not None:
            progress(f"phantom {number + 1} of {len(seeds)}", number / len(seeds))
        name, phantom = f"phantom_{seed:04d}", make_phantom(seed, *grid, scene=scene)
        scan = phantom.scan.with_array((phantom.scan.array + brighter_hu * phantom.label.array).astype(np.int16))
        write_volume(scan, folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(phantom.label, folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "name": folder.name,
        "description": "generated CT scans, each with one soft-tissue tumour",
        "channel_names": MODALITY,
        "labels": LABELS,
        "numTraining": len(seeds),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

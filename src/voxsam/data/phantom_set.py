"""A data set of phantoms on disk, in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from voxsam.data.phantoms import make_phantom
from voxsam.errors import FileError
from voxsam.io import write_mask, write_volume

MODALITY, LABELS = {"0": "CT"}, {"background": 0, "tumour": 1}


def write_phantoms(
    folder: Path,
    count: int,
    seed: int,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """`count` scans and labels with seeds from `seed` on, on grids of `shape` voxels (i, j, k) and `spacing_mm`.

    Raises FileError for a folder that holds something already or cannot be made, GeometryError as `make_phantom`.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileError(f"{folder} is not empty", "a new or an empty folder", "choose another with -o")
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} ({error.strerror})", "a folder that can be made", "choose another") from error
    names = [f"phantom_{seed + number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        if progress is not None:
            progress(f"phantom {number + 1} of {count}", number / count)
        phantom = make_phantom(seed + number, shape, spacing_mm)
        write_volume(phantom.scan, folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(phantom.label, folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "name": folder.name,
        "description": "generated CT scans, each with one soft-tissue tumour",
        "channel_names": MODALITY,
        "labels": LABELS,
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

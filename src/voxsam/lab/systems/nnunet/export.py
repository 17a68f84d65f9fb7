"""A prepared data set's training and validation cases as an nnU-Net raw data set; test cases stay out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxsam.atomic import atomic_path, make_folder
from voxsam.io import write_mask, write_volume
from voxsam.lab.data.store import PreparedData
from voxsam.lab.evaluation.protocol import read_case
from voxsam.lab.evaluation.selection import choose_cases, find_labelled
from voxsam.volume import Volume

SAME_AFFINE = 1e-3  # mm: two readings of one header
READER = "NibabelIOWithReorient"  # turns every file to RAS, so that scans of any orientation may be mixed


def export(store: PreparedData, folder: Path) -> None:
    """Write the raw data set into `folder`: dataset.json last, so that a half-written one is begun again.

    The label is the tumour (1) alone. A .nii.gz image that nnU-Net reads as VoxSAM does is linked, every other one is
    written anew, each channel to its own file. Raises what reading the sources raises.
    """
    if (folder / "dataset.json").is_file():
        return
    for part in ("imagesTr", "labelsTr"):
        make_folder(folder / part)
    train, validation = store.split["train"], store.split["validation"]
    found, _ = find_labelled(store.folder)
    for case in choose_cases(found, [*train, *validation]):
        images, tumour = read_case(case)
        for number, image in enumerate(images):
            target = folder / "imagesTr" / f"{case.name}_{number:04d}.nii.gz"
            if len(case.images) != len(images) or not _linked(case.images[number], image, target):
                write_volume(image, target)
        label = Volume(tumour.astype(np.uint8), images[0].grid, "SEG")
        write_mask(label, folder / "labelsTr" / f"{case.name}.nii.gz")
    # nnU-Net wants validation cases: it watches them, and keeps the last checkpoint all the same.
    _write(folder / "splits_final.json", [{"train": list(train), "val": list(validation or train)}])
    description = {
        "channel_names": _channel_names(store),
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(train) + len(validation),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": READER,
    }
    _write(folder / "dataset.json", description)


def _channel_names(store: PreparedData) -> dict[str, str]:
    """nnU-Net normalises by the name: "CT" by the data set's statistics, any other by the scan's own."""
    kinds, names = store.description.preprocessing, store.description.channels
    return {
        str(n): "CT" if kind.modality == "CT" else name for n, (kind, name) in enumerate(zip(kinds, names, strict=True))
    }


def _linked(source: Path, image: Volume, target: Path) -> bool:
    """Link the file if nibabel, which nnU-Net reads with, finds the same grid in it."""
    if not source.name.endswith(".nii.gz"):
        return False
    header: Any = nib.load(source)  # type: ignore[attr-defined]
    same = header.shape == image.grid.shape and np.allclose(header.affine, image.grid.affine, atol=SAME_AFFINE)
    if same:
        target.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            target.symlink_to(source.resolve())
    return bool(same)


def _write(path: Path, contents: Sequence | dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")

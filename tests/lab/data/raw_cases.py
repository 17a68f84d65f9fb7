"""Tiny data sets in their original layouts, written with nibabel."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

AFFINE = np.array([[1.0, 0, 0, -7], [0, 2, 0, 11], [0, 0, 3, 5], [0, 0, 0, 1]])  # R, A, S; 1 x 2 x 3 mm
KITS_AFFINE = np.array([[0.0, 0, -1, 9], [0, -2, 0, 3], [-3, 0, 0, 40], [0, 0, 0, 1]])  # I, P, L; 3 x 2 x 1 mm
SHAPE = (20, 16, 12)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """CT-like integers."""
    return np.random.default_rng(seed).integers(-900, 300, shape).astype(np.int16)


def block(shape: tuple[int, ...] = SHAPE, value: int = 1) -> NDArray[np.uint8]:
    """A label with a box of 4 x 4 x 4 voxels that begins at (5, 6, 4)."""
    label = np.zeros(shape, np.uint8)
    label[5:9, 6:10, 4:8] = value
    return label


def save(array: NDArray, path: Path, affine: NDArray = AFFINE) -> Path:
    """Write one NIfTI file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def forget_orientation(path: Path) -> None:
    """Set the qform and sform codes of a .nii.gz, from byte 252 of its header on, to 0."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[252:256] = bytes(4)
    path.write_bytes(gzip.compress(bytes(data)))


def decathlon(folder: Path, names: str = "abc", channels: int = 1, **description: object) -> Path:
    """nnU-Net raw layout: case a has seed 0, b seed 1, ...; channel 1 of case a has seed 100, ..."""
    for number, name in enumerate(names):
        for channel in range(channels):
            save(noise(number + 100 * channel), folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        save(block(), folder / "labelsTr" / f"{name}.nii.gz")
    fields = {"channel_names": {str(c): "CT" for c in range(channels)}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps({**fields, **description}))
    return folder

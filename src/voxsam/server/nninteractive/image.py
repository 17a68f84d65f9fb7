"""The client's image as a Volume: one channel, the spacing it names, axes that are known or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from voxsam.errors import ImageError
from voxsam.geometry import Grid
from voxsam.io.checks import as_stored, check_scan, check_spacing, guess_modality
from voxsam.server.errors import TooLarge
from voxsam.volume import Volume

NAME = "the image"  # in messages
AXES = "SPL"  # slice, row, column: how SimpleITK, 3D Slicer and napari hand over the array of a supine patient's scan

Three = tuple[float, float, float]
Four = tuple[float, float, float, float]


class Itk(BaseModel):
    """Where an image lies, as SimpleITK says it: (x, y, z), LPS, mm; `direction` is the matrix row by row."""

    spacing: Three
    origin: Three
    direction: tuple[float, float, float, float, float, float, float, float, float]


class ImageProperties(BaseModel):
    """What a client may say of its image; other keys are ignored.

    `spacing`: mm along the array's axes. `sitk_stuff`: what nnU-Net's reader gives, for an array with reversed axes.
    `affine`: VoxSAM's own, 4 x 4, array index -> RAS+ mm. The later one of these counts.
    """

    spacing: Three = (1.0, 1.0, 1.0)
    sitk_stuff: Itk | None = None
    affine: tuple[Four, Four, Four, Four] | None = None

    def grid(self, shape: Sequence[int]) -> Grid:
        """The grid of an array (X, Y, Z). Raises GeometryError for one that makes no sense."""
        if self.affine is not None:
            return Grid(tuple(shape), np.array(self.affine))  # type: ignore[arg-type]
        if self.sitk_stuff is not None:
            steps = np.reshape(self.sitk_stuff.direction, (3, 3)) * self.sitk_stuff.spacing
            grid = Grid.from_lps(shape[::-1], steps, self.sitk_stuff.origin)
            return grid.reorient(grid.axes[::-1])
        return Grid.from_spacing(shape[::-1], self.spacing[::-1]).reorient(AXES)


def check_image_shape(shape: Sequence[int], most_voxels: int) -> None:
    """Raises ImageError for what is not one channel (1, X, Y, Z), TooLarge for too many voxels."""
    by = " x ".join(map(str, shape))
    if len(shape) != 4:
        raise ImageError(f"an image of {len(shape)} axes ({by})", "4: one channel, then X, Y, Z", "send image[None]")
    if shape[0] != 1:
        raise ImageError(f"an image of {shape[0]} channels", "one channel: the model takes one", "send one of them")
    if np.prod(shape, dtype=float) > most_voxels:
        raise TooLarge(f"an image of {by} voxels", f"at most {most_voxels:,}", "crop the scan")


def as_volume(image: NDArray[Any], properties: ImageProperties) -> Volume:
    """The scan (X, Y, Z) of an image (1, X, Y, Z). Raises ImageError, GeometryError for one that cannot be used."""
    array = as_stored(image[0])
    grid = properties.grid(array.shape)
    check_spacing(NAME, grid)
    check_scan(NAME, array)
    return Volume(array, grid, guess_modality(array))

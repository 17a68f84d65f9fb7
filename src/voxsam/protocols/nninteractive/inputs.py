"""Check what a client sends and convert it: its image to a Volume, its interactions to VoxSAM's prompts.

An image has one channel, the spacing it declares, and axes that are given or assumed. Indices are those of its own
array (X, Y, Z). The interactions become

    point              Point
    3D box             Box: the mask stays in it
    2D box             Box, unbounded along the axis on which it is one voxel thick; the click is in the drawn slice
    negative box       a negative Point in its middle
    scribble           Scribble: clicks spread over the stroke
    lasso              clicks spread over the inner part of the area that its contour encloses

An initial mask becomes a MaskHint (voxsam.protocols.segment).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from pydantic import BaseModel

from voxsam.boxes import bounding_box, is_empty
from voxsam.errors import ImageError, PromptError
from voxsam.geometry import Grid
from voxsam.io.checks import as_stored, check_scan, check_spacing, guess_modality
from voxsam.preprocess import Slices
from voxsam.prompts import SCRIBBLE_NEGATIVE, SCRIBBLE_POSITIVE, Box, Point, Prompt, Scribble, spread
from voxsam.server.errors import TooLarge
from voxsam.volume import Volume

NAME = "the image"  # in messages
AXES = "SPL"  # slice, row, column: how SimpleITK and 3D Slicer hand over the array of a supine patient's axial scan
TURNED_AXES = "SAR"  # how napari-nifti 0.0.20 does, which then gives negative spacings
AXES_BY_SLICE = ("SPL", "PSL", "LPS")  # by the axis that goes through the slices; the last one is napari-nifti 0.0.17's
SAME = 0.01  # relative: in-plane spacings that differ by less are the same

FAR_MM = 1e6  # to the border of a flat area across its plane, where it has none

Range = tuple[float, float]
Three = tuple[float, float, float]
Four = tuple[float, float, float, float]


class Itk(BaseModel):
    """An image's geometry as SimpleITK gives it: (x, y, z), LPS, mm; `direction` is the matrix row by row."""

    spacing: Three
    origin: Three
    direction: tuple[float, float, float, float, float, float, float, float, float]


class ImageProperties(BaseModel):
    """What a client may declare about its image; other keys are ignored.

    `spacing`: mm along the array's axes. `sitk_stuff`: what nnU-Net's reader gives, for an array with reversed axes.
    `affine`: VoxSAM's own, 4 x 4, array index -> RAS+ mm. The last of these that is given counts.
    """

    spacing: Three = (1.0, 1.0, 1.0)
    sitk_stuff: Itk | None = None
    affine: tuple[Four, Four, Four, Four] | None = None

    def grid(self, shape: Sequence[int]) -> Grid:
        """The grid of an array (X, Y, Z). Raises GeometryError for an impossible one."""
        if self.affine is not None:
            return Grid(tuple(shape), np.array(self.affine))  # type: ignore[arg-type]
        if self.sitk_stuff is not None:
            steps = np.reshape(self.sitk_stuff.direction, (3, 3)) * self.sitk_stuff.spacing
            grid = Grid.from_lps(shape[::-1], steps, self.sitk_stuff.origin)
            return grid.reorient(grid.axes[::-1])
        return Grid.from_spacing(shape, np.abs(self.spacing).tolist(), axes=self._axes)

    @property
    def _axes(self) -> str:
        """The array's axes, as far as the spacing alone can tell: all values are negative if the axes are turned; one
        that differs from two equal ones is the slice spacing.
        """
        spacing = np.array(self.spacing)
        if (spacing < 0).all():
            return TURNED_AXES
        for axis, axes in enumerate(AXES_BY_SLICE):
            a, b = np.delete(np.abs(spacing), axis)
            if np.isclose(a, b, rtol=SAME) and not np.isclose(abs(spacing[axis]), a, rtol=SAME):
                return axes
        return AXES


def check_image_shape(shape: Sequence[int], max_voxels: int) -> None:
    """Raises ImageError for what is not one channel (1, X, Y, Z), TooLarge for too many voxels."""
    by = " x ".join(map(str, shape))
    if len(shape) != 4:
        raise ImageError(f"an image of {len(shape)} axes ({by})", "4: one channel, then X, Y, Z", "send image[None]")
    if shape[0] != 1:
        raise ImageError(f"an image of {shape[0]} channels", "one channel: the model takes one", "send one of them")
    if np.prod(shape, dtype=float) > max_voxels:
        raise TooLarge(f"an image of {by} voxels", f"at most {max_voxels:,}", "crop the scan")


def as_volume(image: NDArray[Any], properties: ImageProperties) -> Volume:
    """The scan (X, Y, Z) of an image (1, X, Y, Z). Raises ImageError, GeometryError for one that cannot be used."""
    return on_grid(image[0], properties.grid(image[0].shape))


def on_grid(array: NDArray[Any], grid: Grid) -> Volume:
    """The scan of an array on a grid. Raises as `as_volume` does."""
    array = as_stored(array)
    check_spacing(NAME, grid)
    check_scan(NAME, array)
    return Volume(array, grid, guess_modality(array))


# Interactions


class Interaction(BaseModel):
    """The fields of every interaction. `override_capability_checks` has no effect: no model can be forced."""

    include_interaction: bool
    run_prediction: bool = True
    override_capability_checks: bool = False


class PointInteraction(Interaction):
    """A click on a voxel."""

    coordinates: tuple[float, float, float]

    def prompts(self, grid: Grid) -> list[Prompt]:
        """The click. Raises PromptError if it lies outside the image."""
        return [Point.at_index(grid, self.coordinates, self.include_interaction)]


class BoxInteraction(Interaction):
    """A box, [first, last + 1] on each axis; 2D if it is one voxel thick on one."""

    bbox_coords: tuple[Range, Range, Range]

    def prompts(self, grid: Grid) -> list[Prompt]:
        """The box, clipped to the image. Raises PromptError for a box without voxels on it."""
        ends = np.array(self.bbox_coords)
        if not np.isfinite(ends).all() or (ends[:, 0] >= ends[:, 1]).any():
            raise PromptError(f"a box {ends.tolist()}", "first < last + 1 on each axis", "draw a box with an inside")
        low = np.floor(ends[:, 0] + 0.5)
        high = np.maximum(np.floor(ends[:, 1] + 0.5) - 1, low)  # included
        last = np.array(grid.shape) - 1
        if (low > last).any() or (high < 0).any():
            raise PromptError(f"a box {ends.tolist()}", f"one on the image, up to {last + 1}", "draw it on the image")
        flat = low == high
        low, high = low.clip(0), high.clip(max=last)
        middle = Point.at_index(grid, ((low + high) / 2).tolist(), self.include_interaction)
        if not self.include_interaction:
            return [middle]
        box = Box.at_index(grid, np.where(flat, 0, low), np.where(flat, last, high))  # type: ignore[arg-type]
        return [Box(box.corner_mm, box.opposite_mm, middle.world_mm) if flat.any() else box]


class MaskInteraction(Interaction):
    """The metadata of a scribble or a lasso: the part of the image that its array covers; None: all of it."""

    interaction_bbox: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None

    def place(self, shape: Sequence[int]) -> Slices:
        """The part of an image of `shape`. Raises PromptError for one that is empty or extends beyond the image."""
        ends = self.interaction_bbox or tuple((0, n) for n in shape)
        if any(not 0 <= low < high <= n for (low, high), n in zip(ends, shape, strict=True)):
            raise PromptError(f"interaction_bbox {ends}", f"a part of the image {tuple(shape)}", "cut it to the image")
        i, j, k = (slice(low, high) for low, high in ends)
        return i, j, k

    def scribble(self, mask: NDArray[np.bool_], grid: Grid) -> list[Prompt]:
        """The prompt of a stroke (the part's shape), as it was drawn. Raises PromptError if it is empty."""
        stroke, start = _trimmed(mask, "a scribble")
        value = SCRIBBLE_POSITIVE if self.include_interaction else SCRIBBLE_NEGATIVE
        labels = (stroke * value).astype(np.uint8)
        return [Scribble(Volume(labels, self._grid(grid, start, labels.shape), "SEG"))]

    def lasso(self, mask: NDArray[np.bool_], grid: Grid) -> list[Prompt]:
        """The clicks for a closed contour or the area in it (the part's shape). Raises PromptError if it is empty."""
        contour, start = _trimmed(mask, "a lasso")
        area = np.asarray(scipy.ndimage.binary_fill_holes(np.squeeze(contour)), dtype=bool).reshape(contour.shape)
        spacing_mm = np.where(np.array(contour.shape) == 1, FAR_MM, grid.spacing_mm)
        here = self._grid(grid, start, contour.shape)
        return [Point.at_index(here, index, self.include_interaction) for index in spread(area, spacing_mm)]

    def _grid(self, grid: Grid, start: NDArray[np.int_], shape: Sequence[int]) -> Grid:
        first = [part.start for part in self.place(grid.shape)]
        return grid.crop(first + start, shape)  # type: ignore[arg-type]


class SeedInteraction(BaseModel):
    """The metadata of an initial mask."""

    run_prediction: bool = False
    override_capability_checks: bool = False


def _trimmed(mask: NDArray[np.bool_], what: str) -> tuple[NDArray[np.bool_], NDArray[np.int_]]:
    """A mask cut to the voxels that are set, and where that part begins. Raises PromptError if none is."""
    box = bounding_box(mask)
    if is_empty(box):
        raise PromptError(f"{what} without voxels", "voxels that are not 0", "draw one")
    return mask[box], np.array([part.start for part in box])

"""The client's image as a Volume: the directions of its axes, its spacing, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from pydantic import ValidationError

from voxsam.errors import GeometryError, ImageError
from voxsam.protocols.nninteractive.inputs import ImageProperties, as_volume, check_image_shape
from voxsam.server.errors import TooLarge

SHAPE = (4, 5, 6)
HU = np.random.default_rng(3).integers(-1000, 900, (1, *SHAPE)).astype(np.int16)


def test_axis_0_goes_up_axis_1_to_the_back_axis_2_to_the_left():
    grid = as_volume(HU, ImageProperties(spacing=(5.0, 0.7, 0.9))).grid
    assert grid.shape == SHAPE and grid.axes == "SPL"
    first, step = grid.index_to_world((0, 0, 0)), np.eye(3)
    np.testing.assert_allclose(grid.index_to_world(step[0]) - first, (0, 0, 5.0))
    np.testing.assert_allclose(grid.index_to_world(step[1]) - first, (0, -0.7, 0))
    np.testing.assert_allclose(grid.index_to_world(step[2]) - first, (-0.9, 0, 0))


@pytest.mark.parametrize(
    "spacing, axes",
    [
        ((5.0, 0.7, 0.7), "SPL"),  # SimpleITK, 3D Slicer
        ((-5.0, -0.7, -0.7), "SAR"),  # napari-nifti 0.0.20
        ((-1.0, -1.0, -1.0), "SAR"),
        ((0.7, 0.7, 5.0), "LPS"),  # napari-nifti 0.0.17
        ((0.7, 5.0, 0.7), "PSL"),
        ((0.702, 0.7, 0.3), "LPS"),
        ((1.0, 1.0, 1.0), "SPL"),
        ((3.0, 2.0, 1.0), "SPL"),
    ],
)
def test_signs_and_the_spacing_that_stands_out_say_where_the_axes_point(spacing, axes):
    grid = as_volume(HU, ImageProperties(spacing=spacing)).grid
    assert grid.axes == axes and grid.shape == SHAPE
    np.testing.assert_allclose(grid.spacing_mm, np.abs(spacing))
    step = grid.index_to_world((1, 0, 0)) - grid.index_to_world((0, 0, 0))
    towards = {"S": (0, 0, 1), "L": (-1, 0, 0), "P": (0, -1, 0)}[axes[0]]
    np.testing.assert_allclose(step, np.multiply(towards, abs(spacing[0])), atol=1e-12)


def test_without_spacing_voxels_are_of_1_mm():
    assert as_volume(HU, ImageProperties()).grid.spacing_mm.tolist() == [1, 1, 1]


def test_what_nnunets_reader_says_puts_every_voxel_where_simpleitk_has_it():
    image = sitk.GetImageFromArray(HU[0])
    image.SetSpacing((0.9, 0.7, 5.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0.8, 0.6, 0, 0, 0, 1, 0.6, -0.8, 0))  # oblique, rows and slices exchanged
    keys = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    grid = as_volume(HU, ImageProperties.model_validate({"spacing": [5, 0.7, 0.9], "sitk_stuff": keys})).grid
    for z, y, x in [(0, 0, 0), (3, 4, 5), (1, 4, 0)]:
        lps = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(grid.index_to_world((z, y, x)), np.array(lps) * (-1, -1, 1), atol=1e-9)


def test_an_affine_says_it_all():
    affine = np.array([[0, 2.0, 0, 1], [3.0, 0, 0, 2], [0, 0, 0.5, 3], [0, 0, 0, 1]])
    grid = as_volume(HU, ImageProperties(affine=affine.tolist(), spacing=(9, 9, 9))).grid
    np.testing.assert_array_equal(grid.affine, affine)


def test_values_are_kept_and_ct_is_known_by_them():
    volume = as_volume(HU, ImageProperties())
    np.testing.assert_array_equal(volume.array, HU[0])
    assert volume.array.dtype == np.int16 and volume.modality == "CT"
    assert as_volume(HU.astype(np.float64) / 7, ImageProperties()).array.dtype == np.float32


def test_properties_that_mean_nothing_here_are_ignored():
    assert ImageProperties.model_validate({"nibabel_stuff": {}, "spacing": [1, 2, 3]}).spacing == (1, 2, 3)


@pytest.mark.parametrize(
    ("shape", "error", "words"),
    [
        (SHAPE, ImageError, r"3 axes \(4 x 5 x 6\); expected 4: one channel"),
        ((2, *SHAPE), ImageError, "2 channels; expected one channel"),
        ((1, 600, 600, 600), TooLarge, "1 x 600 x 600 x 600 voxels; expected at most 1,000,000"),
        ((1, 2**62, 2**62, 2**62), TooLarge, "at most 1,000,000"),
    ],
)
def test_shapes_that_are_refused_before_anything_is_unpacked(shape, error, words):
    with pytest.raises(error, match=words):
        check_image_shape(shape, 1_000_000)


@pytest.mark.parametrize(
    ("image", "properties", "error", "words"),
    [
        (HU, {"spacing": (0, 1, 1)}, GeometryError, "spacing"),
        (HU, {"spacing": (float("nan"), 1, 1)}, GeometryError, "affine"),
        (HU, {"spacing": (1, 1, 5000)}, GeometryError, "the image has a spacing of 1 x 1 x 5000 mm"),
        (np.full((1, *SHAPE), np.nan, np.float32), {}, ImageError, "120 NaN or infinite voxels"),
        (np.zeros((1, *SHAPE), np.uint8), {}, ImageError, "all voxels of the image are 0"),
        (np.arange(20.0).reshape(1, 1, 4, 5), {}, ImageError, "2D image"),
    ],
)
def test_images_that_are_no_scan_are_refused(image, properties, error, words):
    with pytest.raises(error, match=words):
        as_volume(image, ImageProperties(**properties))


def test_a_spacing_of_two_numbers_is_refused():
    with pytest.raises(ValidationError, match="spacing"):
        ImageProperties.model_validate({"spacing": [1, 2]})

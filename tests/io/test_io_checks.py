"""Values that are not Hounsfield units, and the remarks on them."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest

from voxsam.io import read_volume
from voxsam.io.checks import not_hounsfield


def body() -> np.ndarray:
    """A CT in HU: air, fat and soft tissue with noise, a little bone."""
    rng = np.random.default_rng(0)
    array = np.full((40, 36, 20), -1000.0)
    array[6:34, 5:31] = -90
    array[9:31, 8:28] = 45
    array[19:22, 24:27] = 700
    return np.round(array + rng.normal(0, 12, array.shape)).clip(-1024, 3000)


HU = body()
UNIT = (HU - HU.min()) / (HU.max() - HU.min())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((HU + 1024).astype(np.uint16), "an offset is missing; with 1024 subtracted it would be Hounsfield units"),
        ((HU + 1000).clip(0).astype(np.int16), "an offset is missing"),
        (UNIT.astype(np.float32), "its values lie between 0 and .*: they were scaled"),
        ((2 * UNIT - 1).astype(np.float32), "its values lie between -1 and .*: they were scaled"),
        (((HU - HU.mean()) / HU.std()).astype(np.float32), "they were scaled|these are no Hounsfield units"),
        (((HU + 160) / 400 * 255).clip(0, 255).astype(np.uint8), "0 to 255: 8 bits of a window"),
        ((UNIT * 800 + 20).astype(np.int16), "where air has -1000 and fat -100"),
    ],
    ids=["+1024", "+1000", "0..1", "-1..1", "z", "8 bits", "MR"],
)
def test_values_that_are_no_hounsfield_units(values, words):
    assert re.search(words, not_hounsfield(values))


@pytest.mark.parametrize(
    "values",
    [HU, HU.astype(np.int16), HU.astype(np.float32), HU.clip(-160, 240), HU[7:33, 6:30], HU[7:12] * 0.999],
    ids=["float64", "int16", "float32", "windowed", "without air", "resampled"],
)
def test_hounsfield_units_are_left_alone(values):
    assert not_hounsfield(values) == ""


def test_a_dicom_ct_without_its_intercept_is_remarked(tmp_path, write_series):
    array = (np.zeros((6, 7, 9)) + np.linspace(0, 800, 9)).astype(np.int16)
    (remark,) = read_volume(write_series(tmp_path / "ct", array=array)).remarks
    assert remark.startswith("ct calls itself a CT, but its lowest value is 0, where air has -1000")
    assert read_volume(write_series(tmp_path / "mr", array=array, Modality="MR")).remarks == ()


def test_a_nifti_leaves_it_to_the_model_whether_it_has_to_be_a_ct(tmp_path):
    image = nib.Nifti1Image((UNIT * 800).astype(np.int16), np.eye(4))
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "mr.nii")
    assert read_volume(tmp_path / "mr.nii").remarks == ()

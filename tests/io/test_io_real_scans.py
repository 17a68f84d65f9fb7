"""Real scans: formats of the same patient agree, and masks are on their scans."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from voxsam.errors import ImageError
from voxsam.io import read_volume, write_mask


def test_the_dicom_series_equals_its_nifti_where_they_overlap(shared_data):
    series = read_volume(shared_data / "dicom/sts_003_ct_rtstruct")
    nifti = read_volume(shared_data / "sarcoma_ct/imagesTr/STS_003_0000.nii.gz")
    assert series.modality == nifti.modality == "CT"
    assert series.grid.axes == nifti.grid.axes == "LPS"
    start = nifti.grid.index_in(series.grid, (0, 0, 0))
    i, j, k = np.rint(start).astype(int)
    assert start == pytest.approx([i, j, k], abs=1e-3)
    assert series.grid.crop((i, j, k), nifti.grid.shape).close_to(nifti.grid)
    ni, nj, nk = nifti.grid.shape
    assert np.array_equal(series.array[i : i + ni, j : j + nj, k : k + nk], nifti.array)


@pytest.mark.parametrize(
    ("folder", "modality"),
    [("dicom/sts_003_ct_rtstruct/image", "CT"), ("dicom/ct_3slice_and_seg/ct-3slice", "CT"),
     ("dicom/prostate_adc_and_seg/ADC", "MR")],
)  # fmt: skip
def test_a_series_agrees_with_simpleitks_own_reader(shared_data, folder, modality):
    volume = read_volume((shared_data / folder).parent)  # beside it lie SEG, RTSTRUCT, NRRD: all left alone
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(shared_data / folder)))
    assert volume.modality == modality
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    last = [n - 1 for n in image.GetSize()]
    for index in [(0, 0, 0), (last[0], 0, 0), (0, last[1], 0), (0, 0, last[2]), last]:
        physical = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert volume.grid.index_to_world(index) == pytest.approx(physical, abs=0.01)


def test_each_slice_of_the_oblique_series_lies_at_its_own_position(shared_data):
    folder = shared_data / "dicom/prostate_adc_and_seg"
    volume = read_volume(folder)
    for k in (0, 7, 19):  # these files happen to be numbered along the normal
        header = pydicom.dcmread(folder / f"ADC/1-{k + 1:02d}.dcm")
        assert volume.grid.index_to_world((0, 0, k)) == pytest.approx(
            np.array(header.ImagePositionPatient) * [-1, -1, 1], abs=0.01
        )
        assert np.array_equal(volume.array[:, :, k], header.pixel_array.T)


def test_rescaled_slices_in_falling_order(shared_data):
    folder = shared_data / "dicom/ct_3slice_and_seg"
    volume = read_volume(folder)
    assert volume.grid.affine[2, 3] == pytest.approx(-128.69, abs=1e-4)  # file 03 lies lowest
    lowest = pydicom.dcmread(folder / "ct-3slice/03.dcm").pixel_array
    assert np.array_equal(volume.array[:, :, 0], lowest.T.astype(np.float32) - 1024)


@pytest.mark.parametrize("case", ["sarcoma_ct", "sarcoma_mr"])
def test_labels_lie_on_their_scans_and_masks_come_back(shared_data, tmp_path, case):
    image = sorted((shared_data / case / "imagesTr").glob("*.nii.gz"))[0]
    label = shared_data / case / "labelsTr" / image.name.replace("_0000", "")
    scan, labels = read_volume(image), read_volume(label, labels=True)
    assert scan.modality == ("CT" if case == "sarcoma_ct" else "") and scan.array.dtype == np.float32
    assert labels.grid.close_to(scan.grid) and labels.array.dtype == np.uint8 and labels.modality == "SEG"
    with pytest.raises(ImageError, match="this looks like a label map"):
        read_volume(label)
    write_mask(scan.with_array(labels.array), tmp_path / "m.nii.gz")
    before, after = nib.load(image), nib.load(tmp_path / "m.nii.gz")
    assert np.array_equal(before.affine, after.affine)
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert before.header[field] == after.header[field]


def test_the_organs_scan(shared_data):
    scan = read_volume(shared_data / "organs_ct/ct.nii.gz")
    organs = read_volume(shared_data / "organs_ct/organs.nii.gz", labels=True)
    assert scan.grid.axes == "RAS" and scan.array.dtype == np.int32 and scan.modality == "CT"
    assert organs.grid == scan.grid and organs.array.max() > 15
    liver, spleen = (
        np.mean(scan.grid.index_to_world(np.argwhere(organs.array == label)), axis=0)[0] for label in (5, 1)
    )
    assert liver > spleen  # the liver lies on the patient's right, where x grows

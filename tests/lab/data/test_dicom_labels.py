"""DICOM written by `voxsam segment` is read as labels by prepare and evaluate."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from voxsam.io import read_volume, write_mask
from voxsam.lab.data.cases import Case, LabelChoice
from voxsam.lab.data.faults import check_case
from voxsam.lab.evaluation.protocol import read_case

SHAPE = (12, 10, 6)


@pytest.fixture
def scan(tmp_path):
    """A small axial CT of noise."""
    array = np.random.default_rng(0).integers(-1000, 300, SHAPE).astype(np.int16)
    series, study = generate_uid(), generate_uid()
    (tmp_path / "ct").mkdir()
    for k in range(SHAPE[2]):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID, image.Modality = CTImageStorage, generate_uid(), "CT"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, study
        image.ImagePositionPatient, image.ImageOrientationPatient = [5, -7, 2.5 * k], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.Rows, image.Columns = [0.75, 0.5], SHAPE[1], SHAPE[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelData = array[:, :, k].T.tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            image.SOPInstanceUID,
        )
        image.save_as(tmp_path / "ct" / f"{k}.dcm", enforce_file_format=True)
    return read_volume(tmp_path / "ct")


@pytest.mark.parametrize("name", ["m.seg.dcm", "m.rtstruct.dcm", "m.nrrd"])
def test_a_mask_that_was_written_is_a_label(tmp_path, scan, name):
    if name == "m.seg.dcm":
        pytest.importorskip("highdicom")
    array = np.zeros(SHAPE, np.uint8)
    array[2:7, 3:8, 1:3] = 1
    write_mask(scan.with_array(array, "SEG"), tmp_path / name)
    case = Case("p", (tmp_path / "ct",), tmp_path / name)
    check = check_case(case, LabelChoice())
    assert check.faults == () and check.measures is not None
    assert check.measures.volume_ml == pytest.approx(50 * 0.5 * 0.75 * 2.5 / 1000)
    images, tumour = read_case(case)
    assert np.array_equal(tumour, array == 1) and images[0].grid.shape == SHAPE

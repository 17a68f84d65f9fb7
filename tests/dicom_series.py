"""A volume as a DICOM series that archives accept: patient, study, frame of reference, one file per slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from voxsam.volume import Volume


def write_dicom(volume: Volume, folder: Path, **extra) -> Dataset:
    """Write the series, and return its first header. `extra` overrides elements of all slices; None removes one."""
    folder.mkdir(parents=True)
    origin, spacing, direction = volume.grid.to_lps()
    common = {
        "SOPClassUID": CTImageStorage,
        "PatientName": "Test^Case",
        "PatientID": "T1",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": generate_uid(),
        "StudyDate": "20260102",
        "StudyTime": "",
        "StudyID": "1",
        "StudyDescription": "chest",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": 3,
        "SeriesDescription": "thin slices",
        "FrameOfReferenceUID": generate_uid(),
        "Modality": "CT",
        "ImageOrientationPatient": [float(f"{x:.9f}") for x in direction[:, :2].T.ravel()],
        "PixelSpacing": [float(spacing[1]), float(spacing[0])],
        "SliceThickness": float(spacing[2]),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": volume.grid.shape[1],
        "Columns": volume.grid.shape[0],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    for k in range(volume.grid.shape[2]):
        image, meta = Dataset(), FileMetaDataset()
        position = origin + direction[:, 2] * spacing[2] * k
        own = {
            "SOPInstanceUID": generate_uid(),
            "InstanceNumber": k + 1,
            "ImagePositionPatient": [float(f"{x:.6f}") for x in position],
            "PixelData": volume.array[:, :, k].T.astype(np.int16).tobytes(),
        }
        for keyword, value in {**common, **own, **extra}.items():
            if value is not None:
                setattr(image, keyword, value)
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, image.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta = meta
        image.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)
    return image


def write_disc(real: Path, folder: Path) -> None:
    """Write two real CT series, of 3 images and of more, as a disc: a DICOMDIR, and equal file names in two folders."""
    disc = FileSet()
    for part in ("ct_3slice_and_seg/ct-3slice", "sts_003_ct_rtstruct/image"):
        for file in sorted((real / part).iterdir()):
            disc.add(file)
    disc.write(folder)
    assert len(list(folder.rglob("IM000000"))) == 2 and (folder / "DICOMDIR").is_file()

"""Fixtures of the file tests: grids, a scan whose voxels all differ, and writers of DICOM series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from io_phantoms import COLUMN, GRIDS, NORMAL, ORIGIN, PIXEL_SPACING, ROW, SHAPE, SLICE_STEP
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from voxsam.geometry import Grid


@pytest.fixture(params=GRIDS.values(), ids=GRIDS.keys())
def grid(request: pytest.FixtureRequest) -> Grid:
    """Anisotropic grids of shape SHAPE in many orientations."""
    return Grid(SHAPE, request.param)


@pytest.fixture
def scan_array() -> np.ndarray:
    """(6, 7, 9) int16, every voxel different: 100 i + 10 j + k - 30."""
    i, j, k = np.indices(SHAPE)
    return (100 * i + 10 * j + k - 30).astype(np.int16)


def _dataset(pixels: np.ndarray, position: np.ndarray, number: int, series: str, extra: dict[str, Any]) -> FileDataset:
    """One CT image; `pixels` (i, j). `extra` overrides elements; None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    elements = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "SeriesInstanceUID": series,
        "SeriesNumber": 4,
        "SeriesDescription": "phantom",
        "InstanceNumber": number,
        "ImagePositionPatient": [float(f"{x:.6f}") for x in position],
        "ImageOrientationPatient": [*ROW, *COLUMN],
        "PixelSpacing": list(PIXEL_SPACING),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[0],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1 if pixels.dtype == np.int16 else 0,
        "PixelData": pixels.T.tobytes(),
    }
    for keyword, value in (elements | extra).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


@pytest.fixture
def write_series(scan_array: np.ndarray) -> Callable[..., Path]:
    """A function that writes `scan_array` as a series and returns the folder.

    `extra` overrides elements in all slices; `edit(dataset, k)` changes slice k, or returns False to leave it out.
    File names and instance numbers run in an order that is not that of the positions.
    """

    def write(
        folder: Path,
        edit: Callable[[pydicom.Dataset, int], Any] = lambda dataset, k: True,
        step: np.ndarray = SLICE_STEP * NORMAL,
        array: np.ndarray = scan_array,
        series: str = "1.2.3.4",
        prefix: str = "IM",
        **extra: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(array.shape[2]):
            number = (k * 4) % 9  # 0, 4, 8, 3, 7, ...
            dataset = _dataset(array[:, :, k], ORIGIN + k * step, number, series, extra)
            if edit(dataset, k) is not False:
                dataset.save_as(folder / f"{prefix}{number:02d}.dcm", enforce_file_format=True)
        return folder

    return write


STUDY = {
    "StudyInstanceUID": "1.2.3.9",
    "FrameOfReferenceUID": "1.2.3.8",
    "PatientName": "Phantom^Anna",
    "PatientID": "P-7",
    "PatientSex": "F",
    "StudyDate": "20240229",
    "SpecificCharacterSet": "ISO_IR 100",
}


@pytest.fixture
def write_study(write_series: Callable[..., Path]) -> Callable[..., Path]:
    """As write_series, with what a mask needs to refer to the series: study, frame of reference, patient."""

    def write(folder: Path, *args: Any, **extra: Any) -> Path:
        return write_series(folder, *args, **(STUDY | extra))

    return write


def _items(**elements: Any) -> Sequence:
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


@pytest.fixture
def write_enhanced(scan_array: np.ndarray) -> Callable[..., Path]:
    """A function that writes `scan_array` as one multi-frame file whose frames run in an order of their own.

    `edit(frame_item, k)` changes the functional groups of slice k, `pack(pixels)` compresses a frame for `syntax`.
    """

    def write(
        path: Path,
        order: tuple[int, ...] = (4, 0, 8, 1, 7, 2, 6, 3, 5),
        edit: Callable[[pydicom.Dataset, int], Any] = lambda item, k: None,
        pack: Callable[[np.ndarray], bytes] | None = None,
        syntax: str = ExplicitVRLittleEndian,
        array: np.ndarray = scan_array,
        **extra: Any,
    ) -> Path:
        kind = {"SOPClassUID": EnhancedCTImageStorage, "NumberOfFrames": len(order), "PixelData": None}
        places = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
        dataset = _dataset(array[:, :, 0], ORIGIN, 1, "1.2.3.4", STUDY | kind | places | extra)
        shared = pydicom.Dataset()
        shared.PlaneOrientationSequence = _items(ImageOrientationPatient=[*ROW, *COLUMN])
        shared.PixelMeasuresSequence = _items(PixelSpacing=list(PIXEL_SPACING), SliceThickness=SLICE_STEP)
        frames = []
        for k in order:
            frame = pydicom.Dataset()
            position = [float(f"{x:.6f}") for x in ORIGIN + k * SLICE_STEP * NORMAL]
            frame.PlanePositionSequence = _items(ImagePositionPatient=position)
            edit(frame, k)
            frames.append(frame)
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
        pixels = [array[:, :, k].T for k in order]
        dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.TransferSyntaxUID = EnhancedCTImageStorage, syntax
        packed = pack is not None
        dataset.PixelData = encapsulate([pack(p) for p in pixels]) if pack else b"".join(p.tobytes() for p in pixels)
        dataset["PixelData"].VR = "OB" if packed else "OW"
        dataset["PixelData"].is_undefined_length = packed
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def scaling_of() -> Callable[[float, float], Sequence]:
    """A function that makes the functional group which scales a frame."""
    return lambda slope, intercept: _items(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")

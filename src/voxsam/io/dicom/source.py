"""DicomSource: what a mask needs from its scan's series to be written as a DICOM object that refers to it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray

from voxsam.errors import FileError, GeometryError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.io.dicom.files import Slice
from voxsam.resample import resample
from voxsam.volume import Volume

MANUFACTURER = "VoxSAM contributors"
DESCRIPTION = "VoxSAM segmentation, not reviewed, research use only"
SERIES_NUMBER = 9100  # far above scanners' numbers; series of a study may share a number
# Kept of the first header: identification, patient, acquisition, relations, image, study, procedure, per-frame groups.
KEPT_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0040, 0x5200)
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")  # to refer to a series
# Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): copied, or empty if the series has none.
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
# Copied where the series has them: what else a PACS or a study of de-identified scans files a patient by.
ALSO_REPEATED = (
    *("TimezoneOffsetFromUTC", "StudyDescription", "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    "LongitudinalTemporalInformationModified",
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID"),
)


@dataclass(frozen=True)
class SourceFrame:
    """One slice of a series: the instance that holds it, its frame number there (0: the only one), and its position."""

    sop_class: str
    sop_instance: str
    number: int
    position_lps_mm: tuple[str, ...]  # ImagePositionPatient as written


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A series without its pixels: Volume.header["dicom"] of a scan read from DICOM.

    `common` is the first instance's header without private elements; patient data stays in it and in what is written
    from it. `frames` are in the order of the volume's index k.
    """

    grid: Grid
    common: pydicom.Dataset
    frames: tuple[SourceFrame, ...]

    @classmethod
    def of(cls, slices: Sequence[Slice], grid: Grid) -> DicomSource:
        """The source of sorted slices; reads the first one's header again, in full."""
        with slices[0].stored.open() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as files.read_slice
            common = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        for tag in [tag for tag, _ in common.items() if tag.group not in KEPT_GROUPS]:
            del common[tag]
        frames = []
        for image in slices:
            sop_class, sop_instance = (str(image.header.get(name, "")) for name in ("SOPClassUID", "SOPInstanceUID"))
            position = tuple(str(value) for value in image.header.ImagePositionPatient)
            frames.append(SourceFrame(sop_class, sop_instance, image.frame, position))
        return cls(grid, common, tuple(frames))

    @property
    def is_multi_frame(self) -> bool:
        """Whether the slices are frames of multi-frame files."""
        return any(frame.number for frame in self.frames)

    def require(self) -> None:
        """Raises FileError or UnsupportedError if no DICOM object can refer to the series."""
        missing = [keyword for keyword in NEEDED if not self.common.get(keyword)]
        missing += ["SOPInstanceUID"] * any(not frame.sop_instance for frame in self.frames)
        missing += ["SOPClassUID"] * any(not frame.sop_class for frame in self.frames)
        if missing:
            given = f"a mask of a DICOM series without {', '.join(missing)}"
            raise FileError(given, "a series that can be referred to", "export it again, or write .nii.gz")
        if self.is_multi_frame and len({frame.sop_instance for frame in self.frames}) > 1:
            given = "a mask of a series of several multi-frame files"
            raise UnsupportedError(given, "one multi-frame file or one file per slice", "write .nii.gz or .nrrd")

    def voxels(self, mask: Volume) -> NDArray[np.uint8]:
        """(k, j, i) voxels of the mask in the order of the series: slice, row, column.

        The mask's axes may be permuted or flipped (of the same scan as NIfTI). Raises GeometryError for another grid.
        """
        if not mask.grid.close_to(self.grid):
            if not mask.grid.reorient(self.grid.axes).close_to(self.grid):
                given = f"a mask on {mask.grid} for a DICOM series on {self.grid}"
                raise GeometryError(given, "the same voxels", "give the series that the scan was made from")
            return resample(mask, self.grid, "nearest").astype(np.uint8).T
        return mask.array.T

    def repeat_in(self, dataset: pydicom.Dataset) -> None:
        """Copy the patient and the study of the series into a new object; required elements it lacks are left empty.

        The object is in UTF-8, so that segment names may have any letters, whatever the character set of the series.
        """
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for keyword in PATIENT_AND_STUDY:
            setattr(dataset, keyword, None)
        for keyword in (*PATIENT_AND_STUDY, *ALSO_REPEATED):
            if keyword in self.common:
                dataset[keyword] = self.common[keyword]

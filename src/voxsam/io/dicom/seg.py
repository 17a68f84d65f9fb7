"""DICOM-SEG out, through highdicom (the extra `dicom`); dicom_seg_read reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.valuerep import DS

from voxsam import __version__
from voxsam.errors import UnsupportedError
from voxsam.io.dicom.pixels import shallow_copy
from voxsam.io.dicom.source import (
    COLOURS,
    DESCRIPTION,
    MANUFACTURER,
    PATIENT_AND_STUDY,
    SERIES_NUMBER,
    DicomSource,
    segment_names,
)
from voxsam.volume import Volume


def write(
    mask: Volume, path: Path, source: DicomSource, *, names: Sequence[str] = (), model: str = "", labelmap: bool = False
) -> None:
    """Write a mask of the series `source` as one DICOM-SEG: label n becomes segment n.

    BINARY, or with `labelmap` the newer LABELMAP (Supplement 243), which few viewers read yet. Every segment is a
    neoplasm (SNOMED CT), its algorithm is VoxSAM with its version and `model`; every instance of the series is
    referred to. Raises UnsupportedError without highdicom, otherwise as DicomSource does.
    """
    hd = highdicom()
    voxels = source.voxels(mask)
    names = segment_names(voxels, names)
    images, order = _source_images(source)
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=voxels[order],
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=[_description(hd, number, name, model) for number, name in enumerate(names, 1)],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="VoxSAM",
        software_versions=__version__,
        device_serial_number="0",
        content_label="TUMOUR",
        content_description=DESCRIPTION,
        series_description=DESCRIPTION,
        omit_empty_frames=bool(voxels.any()),
    )
    source.repeat_in(segmentation)
    segmentation.save_as(path, enforce_file_format=True)


def highdicom() -> Any:
    """The package. Raises UnsupportedError if it is not installed."""
    try:
        import highdicom as package
    except ImportError as error:
        given = "writing DICOM-SEG without the highdicom package"
        raise UnsupportedError(given, "the dicom extra", "pip install 'voxsam[dicom]'") from error
    return package


def _description(hd: Any, number: int, name: str, model: str) -> Any:
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="VoxSAM",
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source=MANUFACTURER,
        parameters={"model": model} if model else None,
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type="SEMIAUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id=name,
        display_color=hd.color.CIELabColor.from_rgb(*COLOURS[(number - 1) % len(COLOURS)]),
    )


def _source_images(source: DicomSource) -> tuple[list[pydicom.Dataset], NDArray[np.intp]]:
    """The headers that highdicom refers to, in its order, and the index k of each of their frames.

    They hold what it needs and no patient: it refuses values that are not quite DICOM, so repeat_in comes afterwards.
    """
    base = _base_image(source)
    if source.is_multi_frame:
        base.SOPClassUID, base.SOPInstanceUID = source.frames[0].sop_class, source.frames[0].sop_instance
        base.NumberOfFrames = len(source.frames)
        _share_groups(base, source.common)
        return [base], np.argsort([frame.number for frame in source.frames])
    base.ImageOrientationPatient = source.common.ImageOrientationPatient
    base.PixelSpacing = source.common.PixelSpacing
    base.SliceThickness = source.common.get("SliceThickness") or _step(source)
    base.SpacingBetweenSlices = _step(source)
    images = []
    for frame in source.frames:
        image = shallow_copy(base)
        image.SOPClassUID, image.SOPInstanceUID = frame.sop_class, frame.sop_instance
        image.ImagePositionPatient = list(frame.position_lps_mm)
        images.append(image)
    return images, np.arange(len(images))


def _base_image(source: DicomSource) -> pydicom.Dataset:
    image, common = pydicom.Dataset(), source.common
    for keyword in PATIENT_AND_STUDY:
        setattr(image, keyword, None)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "Modality"):
        setattr(image, keyword, common.get(keyword))
    image.PositionReferenceIndicator = common.get("PositionReferenceIndicator")
    if common.get("LossyImageCompression") == "01":
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in common:
                image[keyword] = common[keyword]
    return image


def _share_groups(image: pydicom.Dataset, common: pydicom.Dataset) -> None:
    """The functional groups of a multi-frame header; what all frames have in common stands in the shared ones."""
    shared = shallow_copy(common.SharedFunctionalGroupsSequence[0])
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if keyword not in shared:
            shared[keyword] = common.PerFrameFunctionalGroupsSequence[0][keyword]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = common.PerFrameFunctionalGroupsSequence


def _step(source: DicomSource) -> object:
    return DS(float(source.grid.spacing_mm[2]), auto_format=True)

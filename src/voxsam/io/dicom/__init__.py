"""DICOM: series and multi-frame images in; DICOM-SEG and RTSTRUCT in and out."""

"""Grids on which every mix-up of axes shows, and the geometry of the DICOM series that the tests write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

SHAPE = (6, 7, 9)
ROW = np.array([0.6, 0.8, 0.0])  # direction along which columns count, LPS
COLUMN = np.array([-0.48, 0.36, 0.8])  # direction along which rows count
NORMAL = np.array([0.64, -0.48, 0.6])  # ROW x COLUMN
ORIGIN = np.array([-30.0, 12.5, 100.0])
PIXEL_SPACING = (0.7, 0.5)  # between rows (j), between columns (i)
SLICE_STEP = 2.5

_ROTATION = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])


def _affine(axes: np.ndarray, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = origin
    return affine


GRIDS = {
    "anisotropic": _affine(np.eye(3), (0.75, 1.5, 3.25), (-10.5, 20.25, 300)),
    "flipped": _affine(np.diag([-1.0, -1, 1]), (0.75, 1.5, 3.25), (10.5, -20.25, -300)),
    "mirrored": _affine(np.diag([-1.0, 1, 1]), (0.75, 1.5, 3.25), (10.5, 20, 30)),
    "permuted": _affine(np.array([[0, 0, -1.0], [1, 0, 0], [0, 1, 0]]), (0.75, 1.5, 3.25), (1, 2, 3)),
    "oblique": _affine(_ROTATION, (0.75, 1.5, 3.25), (-12.5, 34.75, 5)),
    "oblique, permuted, mirrored": _affine(_ROTATION[:, [2, 0, 1]] * [1, -1, 1], (0.5, 1.25, 4), (99, -8, 7)),
}


def smooth_array() -> np.ndarray:
    """(20, 24, 9) int16, compressible: tiny noisy slices grow under RLE, and GDCM does not read those back."""
    i, j, k = np.indices((20, 24, 9))
    return (10 * (i // 3) - 7 * (j // 4) + 100 * k - 300).astype(np.int16)


def packed_by_gdcm(pixels: np.ndarray, compressor: str, folder: Path) -> pydicom.Dataset:
    """A slice (column, row) as GDCM compresses it; leaves nothing in `folder`."""
    file = folder / "packed.dcm"
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(file))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(pixels.T[None]))
    packed = pydicom.dcmread(file)
    file.unlink()
    return packed

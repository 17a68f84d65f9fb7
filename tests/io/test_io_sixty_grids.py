"""Masks on sixty grids (exact, oblique, imperfect, flipped, sheared) are at the same place in other programs."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from voxsam.geometry import Grid
from voxsam.io import read_volume, write_mask
from voxsam.volume import Volume

SHAPE = (72, 60, 30)
SPACINGS = ((0.7, 0.8, 2.5), (1.0, 1.0, 1.0), (0.35, 0.5, 5.0))
SAME_PLACE_MM = 0.05
LPS = np.array([-1.0, -1, 1])
ANGLES = ((17, 8, -33), (-4, 61, 12), (2, -3, 1), (90.3, -0.2, 45))


def turned(angles: tuple[float, float, float]) -> np.ndarray:
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def sheared(axes: np.ndarray, degrees: float) -> np.ndarray:
    """The third axis leaning towards the second."""
    lean = np.radians(degrees)
    return np.stack([axes[:, 0], axes[:, 1], np.cos(lean) * axes[:, 2] + np.sin(lean) * axes[:, 1]], axis=1)


def directions() -> dict[str, np.ndarray]:
    """Twenty matrices of unit columns."""
    flips = itertools.islice(itertools.product((1, -1), repeat=3), 1, 5)
    found = {"exact": np.eye(3), "permuted": np.eye(3)[:, [2, 0, 1]]}
    found |= {f"flipped {sign}": np.diag(np.array(sign, float)) for sign in flips}
    found |= {f"oblique {angles}": turned(angles) for angles in ANGLES}
    found |= {f"oblique, flipped {angles}": turned(angles) * [1, -1, 1] for angles in ANGLES[:2]}
    found |= {f"three decimals {angles}": np.round(turned(angles), 3) for angles in ANGLES[:3]}
    found |= {f"four decimals {angles}": np.round(turned(angles), 4) for angles in ANGLES[:2]}
    found |= {f"drift of {degrees}": sheared(turned(ANGLES[0]), degrees) for degrees in (0.01, 0.03, 0.05)}
    return found


GRIDS = [
    pytest.param(axes, spacing, id=f"{name}, {spacing}")
    for (name, axes), spacing in itertools.product(directions().items(), SPACINGS)
]


def test_there_are_sixty():
    assert len(GRIDS) == 60


def mask_on(grid: Grid, **more) -> tuple[Volume, list[tuple[int, int, int]]]:
    """A mask, and those of its voxels that are looked for: 2 to 9, at the corners of a box near the grid's."""
    array = np.zeros(grid.shape, np.uint8)
    corners = list(itertools.product(*((2, n - 3) for n in grid.shape)))
    for value, corner in enumerate(corners, 2):
        array[corner] = value
    array[10:30, 20:25, 5:9] = 1
    return Volume(array, grid, "SEG", **more), corners


@pytest.mark.parametrize(("axes", "spacing"), GRIDS)
def test_nifti_nrrd_and_metaimage(tmp_path, axes, spacing):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, (-30.5, 41.25, 900)
    mask, corners = mask_on(Grid(SHAPE, affine))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"m{suffix}"
        write_mask(mask, path)
        image = sitk.ReadImage(str(path))
        for value, corner in enumerate(corners, 2):
            place = mask.grid.index_to_world(corner)
            assert image[corner] == value
            assert np.array(image.TransformIndexToPhysicalPoint(corner)) * LPS == pytest.approx(
                place, abs=SAME_PLACE_MM
            )
        back = read_volume(path, labels=True)
        assert np.array_equal(back.array, mask.array) and back.grid.close_to(mask.grid)
    loaded = nib.load(tmp_path / "m.nii.gz")
    assert np.array_equal(np.asanyarray(loaded.dataobj), mask.array)
    assert nib.affines.apply_affine(loaded.affine, corners) == pytest.approx(
        mask.grid.index_to_world(corners), abs=SAME_PLACE_MM
    )


def series(folder: Path, axes: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    """A series whose files give their position with as many decimals as `axes` has."""
    folder.mkdir()
    lps = axes * LPS[:, None]
    if np.linalg.det(lps) < 0:
        lps[:, 2] *= -1  # a series is sorted along its normal
    for k in range(SHAPE[2]):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        image.Modality, image.StudyInstanceUID, image.SeriesInstanceUID = "CT", "1.2.4", "1.2.5"
        image.FrameOfReferenceUID = "1.2.6"
        image.ImagePositionPatient = [
            round(float(x), 3) for x in np.array([-30.5, 41.25, 900]) + k * spacing[2] * lps[:, 2]
        ]
        image.ImageOrientationPatient = [round(float(x), 6) for x in lps[:, :2].T.ravel()]
        image.PixelSpacing, image.Columns, image.Rows = [spacing[1], spacing[0]], SHAPE[0], SHAPE[1]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelData = np.full(SHAPE[1::-1], 10 * k - 900, np.int16).tobytes()
        image["PixelData"].VR = "OW"
        image.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return folder


def places_of_frames(path: Path) -> dict[int, list[np.ndarray]]:
    """Where each segment has voxels, LPS mm, by the frames' own positions and orientations."""
    from pydicom.pixels import pixel_array

    dataset, found = pydicom.dcmread(path), {}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = (float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing)
    for pixels, item in zip(pixel_array(dataset), dataset.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        segment = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for j, i in np.argwhere(pixels):
            found.setdefault(segment, []).append(origin + i * columns * turn[:3] + j * rows * turn[3:])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "spacing"), GRIDS)
def test_dicom_seg_and_rtstruct(tmp_path, axes, spacing):
    hd = pytest.importorskip("highdicom")
    scan = read_volume(series(tmp_path / "ct", axes, spacing))
    mask, corners = mask_on(scan.grid, header=scan.header)
    write_mask(mask, tmp_path / "m.seg.dcm")
    write_mask(mask, tmp_path / "m.rtstruct.dcm")
    for name in ("m.seg.dcm", "m.rtstruct.dcm"):
        assert np.array_equal(read_volume(tmp_path / name, labels=True, scan=scan).array, mask.array)
    first = pydicom.dcmread(tmp_path / "ct" / "000.dcm")
    turn, rows, columns = np.array(first.ImageOrientationPatient, float), spacing[1], spacing[0]
    places = places_of_frames(tmp_path / "m.seg.dcm")
    for value, (i, j, k) in enumerate(corners, 2):
        image = pydicom.dcmread(tmp_path / "ct" / f"{k:03d}.dcm")
        expected = np.array(image.ImagePositionPatient, float) + i * columns * turn[:3] + j * rows * turn[3:]
        assert places[value] == [pytest.approx(expected, abs=SAME_PLACE_MM)]
        assert scan.grid.index_to_world((i, j, k)) * LPS == pytest.approx(expected, abs=SAME_PLACE_MM)
    segmentation = hd.seg.segread(tmp_path / "m.seg.dcm")
    instances = [frame.sop_instance for frame in scan.header["dicom"].frames]
    pixels = segmentation.get_pixels_by_source_instance(instances, combine_segments=True, ignore_spatial_locations=True)
    assert np.array_equal(pixels, mask.array.T)


DCMQI = shutil.which("segimage2itkimage")  # of the package dcmqi, which has no build for every machine


@pytest.mark.slow
@pytest.mark.skipif(DCMQI is None, reason="dcmqi is not installed (pip install dcmqi): its own reader cannot be asked")
@pytest.mark.parametrize(("axes", "spacing"), GRIDS)
def test_dcmqi_reads_our_dicom_seg_at_the_same_place(tmp_path, axes, spacing):
    """Its third axis is the normal of the first two: slices that lean are shifted there, but by no more than that."""
    scan = read_volume(series(tmp_path / "ct", axes, spacing))
    mask, corners = mask_on(scan.grid, header=scan.header)
    write_mask(mask, tmp_path / "m.seg.dcm")
    (tmp_path / "out").mkdir()
    command = [DCMQI, "--inputDICOM", "m.seg.dcm", "--outputDirectory", "out", "--outputType", "nrrd"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # type: ignore[arg-type]
    assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
    i, j, k = scan.grid.affine[:3, :3].T
    normal = np.cross(i, j) / np.linalg.norm(np.cross(i, j))
    lean_mm = np.linalg.norm(k - k @ normal * normal)  # of a slice against the one before it
    for value, corner in enumerate(corners, 2):
        image = sitk.ReadImage(str(tmp_path / "out" / f"{value}.nrrd"))
        (index,) = np.argwhere(sitk.GetArrayFromImage(image).T).tolist()
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * LPS
        assert place == pytest.approx(scan.grid.index_to_world(corner), abs=SAME_PLACE_MM + corner[2] * lean_mm)

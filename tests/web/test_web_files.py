"""The browser reads files as Python does: the same voxels at the same place, and the same messages for faults."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from tests.dicom_series import write_dicom
from tests.io.io_phantoms import GRIDS, packed_by_gdcm
from tests.web.golden import play
from voxsam.errors import InputError, SeriesError
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_volume
from voxsam.volume import Volume

SHAPE = (16, 20, 9)
CASES: dict[str, Callable[[Path], str]] = {}  # each writes files into a folder and returns which of them is the scan


def case(function: Callable[[Path], str]) -> Callable[[Path], str]:
    CASES[function.__name__.strip("_")] = function
    return function


def _array() -> np.ndarray:
    """(i, j, k) int16 that compresses, no two neighbours alike."""
    i, j, k = np.indices(SHAPE)
    return (40 * i + 11 * j + 7 * k - 1000 + (i * j) % 5).astype(np.int16)


def _volume(grid: str = "oblique") -> Volume:
    return Volume(_array(), Grid(SHAPE, GRIDS[grid]), "CT")


# NIfTI

for _name in GRIDS:
    CASES[f"nifti, {_name}"] = lambda folder, name=_name: _written(_volume(name), folder / "a.nii.gz")
    CASES[f"mha, {_name}"] = lambda folder, name=_name: _written(_volume(name), folder / "a.mha")
    CASES[f"nrrd, {_name}"] = lambda folder, name=_name: _written(_volume(name), folder / "a.nrrd")
for _type in ("uint8", "int8", "uint16", "int32", "uint32", "float32", "float64"):
    CASES[f"nifti of {_type}"] = lambda folder, name=_type: _nifti(
        folder, (_array() % 97).astype(name), GRIDS["oblique"]
    )


def _written(volume: Volume, path: Path) -> str:
    write_volume(volume, path)
    return path.name


def _nifti(folder: Path, array: np.ndarray, affine: np.ndarray, edit=lambda header: None, kind=nib.Nifti1Image) -> str:
    image = kind(array, affine)
    edit(image.header)
    nib.save(image, folder / "a.nii")
    return "a.nii"


@case
def _nifti_scaled(folder: Path) -> str:
    return _nifti(folder, _array(), GRIDS["flipped"], lambda header: header.set_slope_inter(0.1, -7.25))


@case
def _nifti_scaled_by_whole_numbers(folder: Path) -> str:
    return _nifti(folder, _array(), GRIDS["flipped"], lambda header: header.set_slope_inter(2, -1024))


@case
def _nifti_2_big_endian(folder: Path) -> str:
    header = nib.Nifti2Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.save(nib.Nifti2Image(_array(), GRIDS["oblique"], header), folder / "a.nii")
    return "a.nii"


@case
def _nifti_2_by_its_qform(folder: Path) -> str:
    return _nifti(folder, _array(), GRIDS["oblique"], _by_qform, nib.Nifti2Image)


@case
def _nifti_by_its_qform(folder: Path) -> str:
    return _nifti(folder, _array(), GRIDS["oblique, permuted, mirrored"], _by_qform)


def _by_qform(header) -> None:
    header.set_qform(header.get_sform(), 1)
    header["srow_x"], header["sform_code"] = 0, 0


@case
def _nifti_without_forms(folder: Path) -> str:
    def edit(header) -> None:
        header["sform_code"] = header["qform_code"] = 0

    return _nifti(folder, _array(), GRIDS["anisotropic"], edit)


@case
def _nifti_in_metres_that_contradicts_itself(folder: Path) -> str:
    image = nib.Nifti1Image(_array(), None)
    image.header.set_qform(np.diag([0.002, 0.002, 0.002, 1]), 1)
    image.header.set_sform(np.diag([0.001, 0.001, 0.003, 1]), 1)
    image.header.set_xyzt_units(1)
    nib.save(image, folder / "a.nii")
    return "a.nii"


@case
def _nifti_pair(folder: Path) -> str:
    nib.save(nib.Nifti1Pair(_array(), GRIDS["oblique"]), folder / "a.hdr")
    return "a.hdr"


@case
def _nifti_with_nan(folder: Path) -> str:
    array = _array().astype(np.float32) / 3
    array[0, 1, 2], array[5, :3, 1] = np.inf, np.nan
    return _nifti(folder, array, GRIDS["oblique"])


@case
def _nifti_that_calls_nothing_its_modality(folder: Path) -> str:
    return _nifti(folder, _array() + 1000, GRIDS["oblique"])


# NRRD and MetaImage


@case
def _nrrd_detached(folder: Path) -> str:
    _itk(folder / "a.nhdr", compressed=True)
    return "a.nhdr"


@case
def _mhd(folder: Path) -> str:
    _itk(folder / "a.mhd", compressed=False)
    return "a.mhd"


@case
def _mhd_compressed(folder: Path) -> str:
    _itk(folder / "a.mhd", compressed=True)
    return "a.mhd"


def _itk(path: Path, compressed: bool) -> None:
    image = sitk.GetImageFromArray(_array().T)
    image.SetSpacing((0.7, 1.5, 3.0))
    image.SetOrigin((-12.5, 30.25, -400.0))
    sitk.WriteImage(image, str(path), compressed)


NRRD = """NRRD0004
# a comment
type: {type}
dimension: 3
space: {space}
sizes: {sizes}
space directions: (0,2,0) (0,0,3) (-4,0,0)
space origin: (1,-2,3.5)
kinds: {kinds}
encoding: {encoding}
{more}
"""


def _nrrd(folder: Path, body: bytes, **fields: str) -> str:
    sizes = " ".join(map(str, SHAPE))
    usual = {
        "type": "short",
        "space": "RAS",
        "encoding": "raw",
        "kinds": "domain domain domain",
        "more": "endian: little",
    }
    text = NRRD.format(**{"sizes": sizes} | usual | fields)
    (folder / "a.nrrd").write_bytes(text.encode() + b"\n" + body)
    return "a.nrrd"


@case
def _nrrd_in_ras_big_endian(folder: Path) -> str:
    return _nrrd(folder, _array().astype(">i2").tobytes(order="F"), more="endian: big")


@case
def _nrrd_without_a_place(folder: Path) -> str:
    return _edited(_nrrd(folder, _array().tobytes(order="F")), folder, rb"space origin: [^\n]*\n", b"")


@case
def _nrrd_of_an_unknown_place(folder: Path) -> str:
    return _edited(_nrrd(folder, _array().tobytes(order="F")), folder, rb"origin: [^\n]*", b"origin: (nan, 2, 3)")


@case
def _refused_origin_in_words(folder: Path) -> str:
    return _edited(_nrrd(folder, _array().tobytes(order="F")), folder, rb"origin: [^\n]*", b"origin: (there, 2, 3)")


@case
def _refused_place_of_no_scanner(folder: Path) -> str:
    return _edited(_nrrd(folder, _array().tobytes(order="F")), folder, rb"origin: [^\n]*", b"origin: (0, 1e39, 3)")


def _edited(name: str, folder: Path, old: bytes, new: bytes) -> str:
    text, count = re.subn(old, new, (folder / name).read_bytes())
    assert count == 1
    (folder / name).write_bytes(text)
    return name


@case
def _nrrd_in_words(folder: Path) -> str:
    return _nrrd(folder, " ".join(map(str, _array().ravel(order="F"))).encode(), encoding="ascii")


@case
def _nrrd_in_hex_of_an_unknown_space(folder: Path) -> str:
    return _nrrd(folder, _array().tobytes(order="F").hex().encode(), encoding="hex", space="scanner-xyz")


@case
def _nrrd_in_centimetres_without_byte_order(folder: Path) -> str:
    return _nrrd(folder, _array().tobytes(order="F"), more='space units: "cm" "cm" "cm"')


# DICOM


def _series(folder: Path, grid: str = "oblique", edit=lambda dataset, k: True, **extra) -> str:
    write_dicom(_volume(grid), folder / "ct", **extra)
    for k, path in enumerate(sorted((folder / "ct").iterdir())):
        dataset = pydicom.dcmread(path)
        path.unlink()
        if edit(dataset, k) is not False:
            dataset.save_as(folder / "ct" / f"IM{(k * 4) % 9:02d}.dcm", enforce_file_format=True)
    return "ct"


@case
def _dicom(folder: Path) -> str:
    return _series(folder)


@case
def _dicom_rescaled(folder: Path) -> str:
    return _series(folder, "flipped", RescaleSlope=1, RescaleIntercept=-1024)


@case
def _dicom_rescaled_by_fractions_of_each_slice(folder: Path) -> str:
    def edit(dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + k / 8, -3.5

    return _series(folder, edit=edit)


@case
def _dicom_of_12_bits_with_an_overlay_above(folder: Path) -> str:
    def edit(dataset, k: int) -> None:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
        dataset.PixelData = ((_array()[:, :, k].T.astype(np.int32) + 1000) | 0x3000).astype(np.uint16).tobytes()

    return _series(folder, edit=edit, RescaleIntercept=-1000)


@case
def _dicom_zip(folder: Path) -> str:
    _series(folder)
    shutil.make_archive(str(folder / "ct"), "zip", folder / "ct")
    return "ct.zip"


@case
def _dicom_with_gantry_tilt(folder: Path) -> str:
    def edit(dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, round(0.6 * k, 3), 3.0 * k]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    return _series(folder, edit=edit)


@case
def _dicom_implicit(folder: Path) -> str:
    return _rewritten(folder, implicit_vr=True, little_endian=True, uid=ImplicitVRLittleEndian)


@case
def _dicom_big_endian(folder: Path) -> str:
    return _rewritten(folder, implicit_vr=False, little_endian=False, uid=ExplicitVRBigEndian)


def _rewritten(folder: Path, implicit_vr: bool, little_endian: bool, uid: str) -> str:
    _series(folder)
    for path in (folder / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        if not little_endian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = uid
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit_vr, little_endian=little_endian, enforce_file_format=True)
    return "ct"


@case
def _dicom_without_preamble(folder: Path) -> str:
    _series(folder)
    for path in (folder / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        bare = pydicom.Dataset(dict(dataset.items()))
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return "ct"


for _uid in (RLELossless, JPEGLSLossless):
    CASES[f"dicom, {_uid.name}"] = lambda folder, uid=_uid: _series(
        folder, edit=lambda dataset, k: dataset.compress(uid) and None
    )
for _compressor in ("JPEG", "JPEG2000"):
    CASES[f"dicom, {_compressor} by GDCM"] = lambda folder, name=_compressor: _packed_by_gdcm(folder, name)


def _packed_by_gdcm(folder: Path, compressor: str) -> str:
    def edit(dataset, k: int) -> None:
        packed = packed_by_gdcm(_array()[:, :, k], compressor, folder)
        dataset["PixelData"] = packed["PixelData"]
        dataset.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID

    return _series(folder, edit=edit, RescaleIntercept=-24)


def _item(**elements) -> Sequence:
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


@case
def _dicom_enhanced(folder: Path) -> str:
    return _enhanced(folder, None)


@case
def _dicom_enhanced_and_compressed(folder: Path) -> str:
    return _enhanced(folder, JPEGLSLossless)


def _enhanced(folder: Path, syntax: str | None) -> str:
    write_dicom(_volume(), folder / "ct")
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    shutil.rmtree(folder / "ct")
    order, whole = [4, 0, 8, 1, 7, 2, 6, 3, 5], slices[0]
    shared = _item(
        PlaneOrientationSequence=_item(ImageOrientationPatient=whole.ImageOrientationPatient),
        PixelMeasuresSequence=_item(PixelSpacing=whole.PixelSpacing),
    )
    frames = []
    for k in order:
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = _item(ImagePositionPatient=slices[k].ImagePositionPatient)
        frame.PixelValueTransformationSequence = _item(RescaleSlope=1, RescaleIntercept=10 * k, RescaleType="HU")
        frames.append(frame)
    whole.PixelData = b"".join(slices[k].PixelData for k in order)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(whole, keyword)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = shared, Sequence(frames)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.NumberOfFrames = len(order)
    if syntax:
        whole.compress(syntax)
    whole.save_as(folder / "ct.dcm", enforce_file_format=True)
    return "ct.dcm"


@case
def _dicom_with_a_localizer_and_a_copy(folder: Path) -> str:
    _series(folder)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesNumber": 1}
    write_dicom(_volume("flipped"), folder / "ct" / "scout", **scout)
    shutil.copy(folder / "ct" / "IM04.dcm", folder / "ct" / "copy.dcm")
    (folder / "ct" / "notes.txt").write_text("no image")
    return "ct"


# What is refused


@case
def _refused_missing_slice(folder: Path) -> str:
    return _series(folder, edit=lambda dataset, k: k != 4)


@case
def _refused_uneven_slices(folder: Path) -> str:
    def edit(dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0, 3.0 * k + (1.2 if k > 4 else 0)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    return _series(folder, edit=edit)


@case
def _refused_duplicate_slices(folder: Path) -> str:
    first: list = []

    def edit(dataset, k: int) -> None:
        first.append(dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = first[max(0, k - (k == 3))]

    return _series(folder, edit=edit)


@case
def _refused_two_series(folder: Path) -> str:
    _series(folder)
    write_dicom(_volume("flipped"), folder / "ct" / "other", SeriesNumber=7, SeriesDescription="thick")
    return "ct"


@case
def _refused_colour_dicom(folder: Path) -> str:
    def edit(dataset, k: int) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.BitsAllocated = 3, "RGB", 8
        dataset.PixelData = bytes(3 * dataset.Rows * dataset.Columns)

    return _series(folder, edit=edit)


@case
def _refused_inverted_dicom(folder: Path) -> str:
    return _series(folder, PhotometricInterpretation="MONOCHROME1")


@case
def _refused_label_map(folder: Path) -> str:
    return _nifti(folder, (_array() > 0).astype(np.uint8), np.eye(4))


@case
def _refused_flat_image(folder: Path) -> str:
    return _nifti(folder, _array()[:, :, :1], np.eye(4))


@case
def _refused_constant_image(folder: Path) -> str:
    return _nifti(folder, np.full(SHAPE, 7, np.int16), np.eye(4))


@case
def _refused_four_volumes(folder: Path) -> str:
    return _nifti(folder, np.stack([_array()] * 4, -1), np.eye(4))


@case
def _refused_singular_affine(folder: Path) -> str:
    def edit(header) -> None:
        header["srow_z"] = header["srow_y"]

    return _nifti(folder, _array(), np.eye(4), edit)


@case
def _refused_cut_off_gzip(folder: Path) -> str:
    write_volume(_volume(), folder / "a.nii.gz")
    content = gzip.compress(gzip.decompress((folder / "a.nii.gz").read_bytes())[:3000])
    (folder / "a.nii.gz").write_bytes(content[:-30])
    return "a.nii.gz"


@case
def _refused_empty_file(folder: Path) -> str:
    (folder / "a.nii.gz").touch()
    return "a.nii.gz"


@case
def _refused_vector_nrrd(folder: Path) -> str:
    return _nrrd(folder, _array().tobytes(), kinds="vector domain domain")


@case
def _refused_missing_voxels(folder: Path) -> str:
    _itk(folder / "a.mhd", compressed=False)
    (folder / "a.raw").unlink()
    return "a.mhd"


SERIES = {"refused_two_series": "7"}  # asked for in a second turn


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for each case: the files that Python wrote, and what the browser's code read from them."""
    root = tmp_path_factory.mktemp("files")
    for name, write in CASES.items():
        folder = root / name
        folder.mkdir()
        scan = write(folder)
        jobs = {"": {}, " of series": {"series": SERIES[name]}} if name in SERIES else {"": {}}
        for suffix, more in jobs.items():
            if suffix:
                shutil.copytree(folder, root / (name + suffix))
            (root / (name + suffix) / "job.json").write_text(json.dumps({"files": scan, **more}))
    play("files", root)
    return root


@pytest.mark.parametrize("name", [*CASES, *(f"{name} of series" for name in SERIES)])
def test_the_browser_reads_what_python_reads(read: Path, name: str) -> None:
    folder = read / name
    job, found = json.loads((folder / "job.json").read_text()), json.loads((folder / "read.json").read_text())
    try:
        scan = read_volume(folder / job["files"], series=job.get("series", ""))
    except InputError as error:
        assert name.startswith("refused") and "of series" not in name
        assert found["problem"]["given"] == error.given and found["problem"]["expected"] == error.expected
        if isinstance(error, SeriesError):
            fields = ("uid", "description", "modality", "count", "shape", "spacing_mm", "localizer")
            assert found["problem"]["series"] == [{key: facts[key] for key in fields} for facts in error.series]
        return
    assert "problem" not in found, found
    voxels = np.fromfile(folder / "voxels.bin").reshape(scan.grid.shape, order="F")
    np.testing.assert_array_equal(voxels, scan.array)
    np.testing.assert_allclose(found["affine"], scan.grid.affine, rtol=0, atol=1e-6)
    assert found["modality"] == scan.modality
    assert found["remarks"] == [remark.replace(str(folder), "") for remark in scan.remarks]
    integers = scan.array.dtype.kind in "iu" or (
        (scan.array == np.rint(scan.array)).all() and "nifti of float" not in name
    )
    assert ("Float" not in found["type"]) == bool(integers)

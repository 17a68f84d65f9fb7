"""Python reads the files that the browser writes: the same voxels at the same place, and the contents of a report."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.dicom_series import write_dicom
from tests.io.io_phantoms import GRIDS
from tests.web.golden import play
from voxsam.geometry import Grid, flip_lps
from voxsam.io import read_volume, write_volume
from voxsam.io.objects import read_objects
from voxsam.volume import Volume

SHAPE = (16, 20, 9)
KINDS = ["nifti", "masks", "seg", "stl", "report", "json", "rtstruct"]
SCANS = {"nifti": "a.nii", "nrrd": "a.nrrd", "sheared": "a.mha", "dicom": "ct", "overlap": "ct"}


def _ball(middle: tuple[int, int, int], radius: float) -> np.ndarray:
    away = np.indices(SHAPE) - np.array(middle)[:, None, None, None]
    return (np.square(away).sum(0) <= radius**2).astype(np.uint8)


FIRST, APART, SHARING = _ball((5, 6, 4), 3.2), _ball((12, 13, 5), 2.1), _ball((8, 7, 4), 3.2)


def _scan(folder: Path, name: str) -> None:
    i, j, k = np.indices(SHAPE)
    affine = np.array(GRIDS["oblique"])
    if name == "sheared":
        affine[1, 2] += 1.3  # as a gantry tilt does
    volume = Volume((40 * i + 11 * j + 7 * k - 1000).astype(np.int16), Grid(SHAPE, affine), "CT")
    if SCANS[name] == "ct":
        write_dicom(volume, folder / "ct", PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")
    elif name == "nifti":
        image = nib.Nifti1Image(volume.array, affine)
        image.header.set_sform(affine, 2)
        image.header.set_qform(np.diag([2, 2, 2, 1]), 1)
        nib.save(image, folder / "a.nii")
    else:
        write_volume(volume, folder / SCANS[name])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("written")
    for name, scan in SCANS.items():
        folder = root / name
        folder.mkdir()
        _scan(folder, name)
        masks = [FIRST, SHARING if name == "overlap" else APART]
        line = {"mm": 12.5, "ends": [[3, 6, 4], [8.5, 6, 4]]}
        objects = []
        for n, mask in enumerate(masks, 1):
            (folder / f"mask{n}.bin").write_bytes(mask.tobytes("F"))
            click = {"kind": "point", "index": [5, 6, 4], "positive": n == 1}
            objects.append(
                {
                    "number": 2 * n - 1,  # as after a deletion
                    "mask": f"mask{n}.bin",
                    "facts": {"name": f"Lesion {n} <left>"},
                    "clicks": [click],
                    "volume_ml": 1.25,
                    "longest": line,
                    "perpendicular": None,
                    "remarks": ["look twice"],
                    "class_name": "bright" if n == 1 else None,
                }
            )
        job = {"files": scan, "write": {"kinds": KINDS, "objects": objects}}
        (folder / "job.json").write_text(json.dumps(job))
    play("files", root)
    return root


def _labels() -> np.ndarray:
    return FIRST + 3 * APART


@pytest.mark.parametrize("name", ["nifti", "nrrd", "sheared", "dicom"])
def test_a_label_map_lies_on_the_scan(written: Path, name: str) -> None:
    scan = read_volume(written / name / SCANS[name])
    mask = read_volume(written / name / "written" / "mask.nii.gz", labels=True)
    np.testing.assert_array_equal(mask.array, _labels())
    assert mask.grid.close_to(scan.grid, 1e-4) and len(mask.remarks) == (name == "nifti")  # it contradicts itself, too
    image = nib.load(written / name / "written" / "mask.nii.gz")
    assert image.get_data_dtype() == np.uint8
    if name == "nifti":
        theirs = nib.load(written / name / "a.nii").header
        for field in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "pixdim", "xyzt_units"):
            np.testing.assert_array_equal(image.header[field], theirs[field])
    elif name == "sheared":
        assert image.header["qform_code"] == 0  # which a quaternion cannot say
    else:
        np.testing.assert_allclose(image.header.get_qform(), scan.grid.affine, atol=1e-4)


def test_a_zip_holds_a_file_for_each_object(written: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(written / "overlap" / "written" / "masks.zip") as archive:
        assert archive.namelist() == ["1_Lesion_1__left_.nii.gz", "3_Lesion_2__left_.nii.gz"]
        archive.extractall(tmp_path)
    for path, mask in zip(sorted(tmp_path.iterdir()), (FIRST, SHARING), strict=True):
        np.testing.assert_array_equal(read_volume(path, labels=True).array, mask)


def test_what_a_label_map_cannot_hold_is_refused(written: Path) -> None:
    refused = written / "overlap" / "written" / "mask.nii.gz.refused"
    assert "a label map of objects that share voxels; expected objects apart" in refused.read_text()
    assert "not DICOM" in (written / "nifti" / "written" / "mask.seg.dcm.refused").read_text()
    assert "voxsam serve" in (written / "dicom" / "written" / "mask.rtstruct.dcm.refused").read_text()


@pytest.mark.parametrize(("name", "second"), [("dicom", APART), ("overlap", SHARING)])
def test_a_dicom_seg_is_read_back_by_python_and_highdicom(written: Path, name: str, second: np.ndarray) -> None:
    scan = read_volume(written / name / "ct")
    path = written / name / "written" / "mask.seg.dcm"
    found = read_objects(path, scan)
    assert [one.name for one in found] == ["Lesion 1 <left>", "Lesion 2 <left>"]
    for one, mask in zip(found, (FIRST, second), strict=True):
        np.testing.assert_array_equal(one.region.on_all(scan).array, mask)
        assert not one.remarks
    whole = hd.seg.segread(path)
    first = pydicom.dcmread(next((written / name / "ct").iterdir()))
    assert (str(whole.PatientName), whole.StudyInstanceUID) == ("Müller^Änne", first.StudyInstanceUID)
    assert whole.FrameOfReferenceUID == first.FrameOfReferenceUID and whole.SeriesInstanceUID != first.SeriesInstanceUID
    description = whole.get_segment_description(1)
    assert description.algorithm_type.value == "SEMIAUTOMATIC" and "1.25 mL" in description.SegmentDescription
    np.testing.assert_allclose(
        description.RecommendedDisplayCIELabValue, hd.color.CIELabColor.from_rgb(255, 90, 95).value, atol=2
    )
    series, instances = whole.ReferencedSeriesSequence[0], {str(uid) for *_, uid in whole.get_source_image_uids()}
    assert len(series.ReferencedInstanceSequence) == SHAPE[2]
    assert instances <= {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    volume = whole.get_volume(combine_segments=False, segment_numbers=[2])
    origin = np.array(volume.affine @ [0, 0, 0, 1])[:3]  # of the slices that the segment has, in LPS mm
    where = scan.grid.world_to_index(flip_lps(origin))
    np.testing.assert_allclose(where, np.rint(where), atol=1e-3)
    assert volume.array.sum() == second.sum()


def test_surfaces_lie_round_the_voxels(written: Path) -> None:
    scan = read_volume(written / "nifti" / "a.nii")
    lines = (written / "nifti" / "written" / "surface.stl").read_text().splitlines()
    assert [line for line in lines if line.startswith("solid")] == [
        f"solid Lesion_{n}_<left> SPACE=LPS" for n in (1, 2)
    ]
    corners = np.array([line.split()[1:] for line in lines if line.strip().startswith("vertex")], float)
    index = scan.grid.world_to_index(flip_lps(corners))
    inside = np.argwhere(_labels())
    np.testing.assert_allclose(index.min(0), inside.min(0), atol=0.75)
    np.testing.assert_allclose(index.max(0), inside.max(0), atol=0.75)
    facets = corners.reshape(-1, 3, 3)
    volume = np.einsum("ij,ij->i", facets[:, 0], np.cross(facets[:, 1], facets[:, 2])).sum() / 6000
    expected = np.count_nonzero(_labels()) * scan.grid.voxel_volume_ml
    assert 0.75 * expected < volume < 1.1 * expected  # positive: normals point outwards


def test_the_report_says_what_was_made(written: Path) -> None:
    report = json.loads((written / "dicom" / "written" / "report.json").read_text())
    scan = read_volume(written / "dicom" / "ct")
    assert report["scan"]["shape"] == list(SHAPE) and report["scan"]["axes"] == scan.grid.axes
    np.testing.assert_allclose(report["scan"]["spacing_mm"], scan.grid.spacing_mm, atol=1e-5)
    assert report["patient"] == {"name": "Müller^Änne", "id": "T1"}
    first = report["objects"][0]
    assert (first["label"], first["voxels"], first["name"]) == (1, int(FIRST.sum()), "Lesion 1 <left>")
    assert report["clicks"][0] == {"index": [5, 6, 4], "positive": True} and report["messages"] == ["look twice"] * 2
    assert [found["class"] for found in report["objects"]] == ["bright", None]
    page = (written / "dicom" / "written" / "report.html").read_text()
    assert "<tr><th>Class 1</th><td>bright</td></tr>" in page and "Class 3" not in page
    assert "Lesion 1 &lt;left&gt; (Neoplasm)" in page and "Müller^Änne" in page and "<script" not in page

"""DICOM from end to end: a real series in, prompts of any kind, and a DICOM mask that highdicom puts on the series."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from voxsam.cli import main
from voxsam.geometry import flip_lps
from voxsam.io import read_volume, write_volume
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

CT, MR = "dicom/sts_003_ct_rtstruct", "dicom/prostate_adc_and_seg"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(stub_network(polarity=False, name="stub-model"), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _segment(scan: Path, model: Path, output: Path, *prompts: str) -> int:
    return main(["segment", str(scan), "--model", str(model), "-o", str(output), "--quiet", *prompts])


@pytest.mark.parametrize(("series", "click"), [(CT, "74,76,25"), (MR, "120,110,9")])
def test_a_click_becomes_a_segmentation_of_the_series(shared_data, tmp_path, model, series, click):
    hd = pytest.importorskip("highdicom")
    for name in ("mask.nii.gz", "mask.seg.dcm", "mask.rtstruct.dcm"):
        assert _segment(shared_data / series, model, tmp_path / name, "--click", click) == 0
    scan = read_volume(shared_data / series)
    expected = read_volume(tmp_path / "mask.nii.gz", labels=True).array
    assert 0 < expected.sum() < expected.size / 2
    for name in ("mask.seg.dcm", "mask.rtstruct.dcm"):
        assert np.array_equal(read_volume(tmp_path / name, labels=True, grid=scan.grid).array, expected)
    segmentation = hd.seg.segread(tmp_path / "mask.seg.dcm")
    pixels = segmentation.get_pixels_by_source_instance(
        [frame.sop_instance for frame in scan.header["dicom"].frames],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(pixels, expected.T)
    algorithm = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmParameters == "model=stub-model"
    patient = pydicom.dcmread(next(p for p in sorted((shared_data / series).rglob("*.dcm")))).PatientID
    assert segmentation.PatientID == patient


def test_measures_go_into_a_structured_report_beside_the_segmentation(shared_data, tmp_path, model, capsys):
    """On an oblique series: its lines have the lengths that the JSON report says, and lie where it says."""
    hd = pytest.importorskip("highdicom")
    sr, report = tmp_path / "mask.sr.dcm", tmp_path / "report.json"
    words = ("--click", "120,110,9", "--sr", str(sr))
    assert _segment(shared_data / MR, model, tmp_path / "mask.seg.dcm", *words, "--report", str(report)) == 0
    (found,) = json.loads(report.read_text())["objects"]
    content, grid = hd.sr.srread(sr).content, read_volume(shared_data / MR).grid
    (volume,) = content.get_volumetric_roi_measurement_groups()[0].get_measurements()
    assert volume.value == pytest.approx(found["volume_ml"], abs=1e-5)
    diameters = content.get_image_measurement_groups()[0].get_measurements()
    for diameter, line in zip(diameters, (found["longest"], found["perpendicular"]), strict=True):
        assert diameter.value == pytest.approx(line["mm"], abs=1e-3)
        ends_mm = flip_lps(diameter.referenced_coordinates[0].value)
        np.testing.assert_allclose(grid.world_to_index(ends_mm), line["ends"], atol=0.01)
    for name in ("mask.nii.gz", "mask.rtstruct.dcm"):
        assert "expected a mask as DICOM-SEG" in _refused(capsys, shared_data / MR, model, tmp_path / name, *words)


@pytest.mark.parametrize("option", ["--hint", "--scribble"])
def test_prompts_from_a_segmentation_and_an_rtstruct(shared_data, tmp_path, model, option):
    lesion, contours = shared_data / MR / "seg/1-1.dcm#3", shared_data / CT / "mask/RS.dcm"
    assert _segment(shared_data / MR, model, tmp_path / "a.nii.gz", option, str(lesion)) == 0
    assert _segment(shared_data / CT, model, tmp_path / "b.nii.gz", option, str(contours)) == 0
    assert _segment(shared_data / CT, model, tmp_path / "c.nii.gz", option, f"{contours}#1") == 0
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def _refused(capsys, *words) -> str:
    capsys.readouterr()
    assert _segment(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_segments_to_choose_from(shared_data, tmp_path, model, capsys):
    mask = shared_data / MR / "seg/1-1.dcm"
    line = _refused(capsys, shared_data / MR, model, tmp_path / "m.nii.gz", "--hint", str(mask))
    assert "segments 1 and 2 of 1-1.dcm overlap" in line and "1-1.dcm#N as a prompt" in line
    line = _refused(capsys, shared_data / MR, model, tmp_path / "m.nii.gz", "--hint", f"{mask}#7")
    assert "segment 7 of 1-1.dcm; expected one of 1 Normal" in line and "3 Lesion" in line


def test_a_dicom_mask_of_another_scan_is_refused_before_the_model_runs(tmp_path, model, capsys):
    stub = stub_scan()
    write_volume(stub.scan, tmp_path / "scan.nii.gz")
    click = ",".join(map(str, stub.click))
    line = _refused(capsys, tmp_path / "scan.nii.gz", model, tmp_path / "m.rtstruct.dcm", "--click", click)
    assert "m.rtstruct.dcm for a scan that was not read from DICOM; expected a DICOM series" in line
    assert not (tmp_path / "m.rtstruct.dcm").exists()

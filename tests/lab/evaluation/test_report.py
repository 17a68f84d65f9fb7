"""The report as JSON and as a page: known numbers, escaped text, nothing loaded from outside."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io.segments import Code, SegmentInfo
from voxsam.region import Region
from voxsam.report.figures import overview_figure
from voxsam.report.report import (
    ReportedObject,
    facts_for_people,
    png_size,
    report_dict,
    write_report_html,
    write_report_json,
)
from voxsam.volume import Volume

GRID = Grid.from_spacing((20, 16, 12), (1.0, 2.0, 3.0))


def _volumes() -> tuple[Volume, Volume]:
    voxels = np.random.default_rng(0).normal(40, 20, GRID.shape).astype(np.int16)
    mask = np.zeros(GRID.shape, dtype=np.uint8)
    mask[4:8, 3:6, 2:4] = 1  # 4 x 3 x 2 voxels of 6 cubic mm: 4 mm by 6 mm in the axial plane
    return Volume(voxels, GRID, "CT"), Volume(mask, GRID, "SEG")


def test_the_numbers_of_a_box() -> None:
    scan, mask = _volumes()
    report = report_dict(
        scan=scan, scan_name="a/b/ct.nii.gz", mask=mask, model="m", clicks=[((5, 4, 2), True)], truth=mask
    )
    (found,) = report["objects"]
    assert (found["voxels"], found["volume_ml"]) == (24, 0.144)
    assert 6.0 <= found["longest_axial_diameter_mm"] <= np.hypot(4, 6)
    assert found["longest"]["mm"] == found["longest_axial_diameter_mm"] and report["date"] and "patient" not in report
    ends = np.array(found["longest"]["ends"])
    assert np.linalg.norm(GRID.index_to_world(ends[1]) - GRID.index_to_world(ends[0])) == pytest.approx(
        found["longest"]["mm"], abs=1e-3
    )
    assert (ends >= (3.5, 2.5, 2)).all() and (ends <= (7.5, 5.5, 3)).all(), "indices of the scan"
    assert report["scan"]["name"] == "ct.nii.gz" and report["dice"] == 1.0


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    scan, mask = _volumes()
    report = report_dict(scan=scan, scan_name="ct", mask=mask, model="m", messages=["followed"])
    write_report_json(tmp_path / "r.json", report)
    assert json.loads((tmp_path / "r.json").read_text()) == report


def test_the_page_escapes_and_loads_nothing(tmp_path: Path) -> None:
    scan, mask = _volumes()
    overview_figure(scan, mask, [((5.0, 4.0, 2.0), True)], tmp_path / "p.png")
    facts = facts_for_people(report_dict(scan=scan, scan_name="<script>.nii", mask=mask, model="m"))
    write_report_html(tmp_path / "r.html", title="a < b", facts=facts, picture=tmp_path / "p.png", messages=["x & y"])
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;.nii" in page and "a &lt; b" in page and "x &amp; y" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_picture_that_is_no_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_text("no")
    with pytest.raises(FileError, match="is not a PNG"):
        write_report_html(tmp_path / "r.html", title="t", facts={}, picture=tmp_path / "p.png")
    assert not (tmp_path / "r.html").exists()


def test_the_picture_changes_with_the_mask(tmp_path: Path) -> None:
    scan, mask = _volumes()
    moved = mask.with_array(np.roll(mask.array, 5, axis=0))
    for name, drawn in (("a", mask), ("b", moved), ("empty", mask.with_array(np.zeros_like(mask.array)))):
        overview_figure(scan, drawn, [((5.0, 4.0, 2.0), True)], tmp_path / f"{name}.png")
    pictures = {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert len(pictures) == 3 and png_size(tmp_path / "a.png") == (1600, 900)


def test_objects_that_share_voxels_are_each_measured_and_told_with_their_clicks() -> None:
    scan, mask = _volumes()
    both = Region.of(mask.array), Region.of(np.roll(mask.array, 2, axis=0))
    node = SegmentInfo("node", (1, 2, 3), Code("59441001", "SCT", "Lymph Node"))
    objects = [
        ReportedObject(1, both[0], SegmentInfo("mass", (0, 0, 0)), [((5, 4, 2), True)]),
        ReportedObject(3, both[1], node, [((7, 4, 2), True), ((3, 4, 2), False)], edited=True),
    ]
    report = report_dict(scan=scan, scan_name="ct", mask=mask, model="m", objects=objects)
    assert [(found["label"], found["voxels"]) for found in report["objects"]] == [(1, 24), (3, 24)]
    people = facts_for_people(report)
    assert people["Object 3"] == "node (Lymph Node), edited by hand" and people["Object 1"] == "mass (Neoplasm)"
    assert people["Clicks 3"] == "(7, 4, 2) positive; (3, 4, 2) negative" and "Perpendicular 1" in people


def test_a_dicom_scans_report_says_whose_it_is() -> None:
    scan, mask = _volumes()
    common = SimpleNamespace(get={"PatientID": "P-7", "StudyDate": "20260102", "SeriesNumber": 3}.get)
    dicom = Volume(scan.array, scan.grid, "CT", {"dicom": SimpleNamespace(common=common)})
    report = report_dict(scan=dicom, scan_name="ct", mask=mask, model="m", seconds={"all steps": 2})
    assert report["patient"] == {"name": "", "id": "P-7"} and report["study"]["date"] == "20260102"
    people = facts_for_people(report)
    assert (people["Patient"], people["Study"], people["Series"]) == ("P-7", "20260102", "3")

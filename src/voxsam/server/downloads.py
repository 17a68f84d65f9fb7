"""Files to take away: the scan for the page's viewer, the masks, the report. All of it is work for a thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxsam.atomic import atomic_path
from voxsam.errors import UnsupportedError
from voxsam.interactive.predictor import Prediction
from voxsam.io import nifti, write_mask
from voxsam.volume import Volume

FAST = 1  # compression of the scan: it is sent once, and to wait for a smaller file takes longer
MEDIA = {
    "mask.nii.gz": "application/gzip",
    "mask.seg.dcm": "application/dicom",
    "report.json": "application/json",
    "report.html": "text/html; charset=utf-8",
}


def write_scan(volume: Volume, path: Path) -> None:
    """The scan as .nii.gz, int16 where that holds its voxels, else float32.

    Its header has one affine (sform = qform) and nothing of the source's: viewers that prefer another form of a header
    with two would put the voxels elsewhere.
    """
    array = volume.array
    is_whole = array.dtype.kind in "iu" and np.iinfo(np.int16).min <= array.min() and array.max() <= np.iinfo("i2").max
    plain = replace(volume, array=array.astype(np.int16 if is_whole else np.float32, copy=False), header={})
    with atomic_path(path) as temporary:
        nifti.write(plain, temporary, FAST)


def report_facts(
    name: str, model: str, scan: Volume, mask: Volume, answers: Mapping[int, Prediction]
) -> dict[str, Any]:
    """The facts of evaluation.report for a session's mask and the answers of its objects."""
    from voxsam.report.report import report_dict

    points = [point for answer in answers.values() for point in answer.clicks]
    clicks = [(scan.grid.world_to_index(point.world_mm).round(3).tolist(), point.positive) for point in points]
    messages = [message for answer in answers.values() for message in answer.remarks]
    return report_dict(scan=scan, scan_name=name, mask=mask, model=model, clicks=clicks, messages=messages)


def write_download(kind: str, path: Path, scan: Volume, mask: Volume, facts: dict[str, Any]) -> None:
    """Write one of MEDIA to `path`. `facts` are those of evaluation.report. Raises UnsupportedError for DICOM-SEG of a
    scan that was not DICOM.
    """
    if kind == "mask.seg.dcm":
        if "dicom" not in scan.header:
            given, expected = "DICOM-SEG of a scan that is not DICOM", "a DICOM series"
            raise UnsupportedError(given, expected, "download the NIfTI instead")
        write_mask(mask, path, model=facts["model"])
    elif kind == "mask.nii.gz":
        write_mask(mask, path)
    else:
        _write_report(kind, path, scan, mask, facts)


def _write_report(kind: str, path: Path, scan: Volume, mask: Volume, facts: dict[str, Any]) -> None:
    from voxsam.report.figures import overview_figure  # matplotlib: a second to import
    from voxsam.report.report import facts_for_people, write_report_html, write_report_json

    if kind == "report.json":
        write_report_json(path, facts)
        return
    picture = path.with_name("overview.png")
    clicks = [(click["index"], click["positive"]) for click in facts["clicks"]]
    overview_figure(scan, mask, clicks, picture)
    people = facts_for_people(facts)
    write_report_html(path, title="VoxSAM", facts=people, picture=picture, messages=facts["messages"])

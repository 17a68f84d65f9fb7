"""Downloads: the scan for a viewer, the mask as NIfTI or DICOM-SEG, the report as JSON or a page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from voxsam.atomic import atomic_path
from voxsam.errors import UnsupportedError
from voxsam.io import nifti, write_mask
from voxsam.server.api import OF_SESSIONS, TheService, TheSession
from voxsam.server.service import Service
from voxsam.volume import Volume

router = APIRouter(prefix="/api/sessions", tags=["downloads"], responses=OF_SESSIONS)


class Kind(StrEnum):
    """The files that may be asked for."""

    MASK = "mask.nii.gz"
    DICOM_SEG = "mask.seg.dcm"
    FACTS = "report.json"
    REPORT = "report.html"


UNSAFE = re.compile(r"[^A-Za-z0-9_\-]+")
SCAN_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.nrrd|\.mha|\.zip)$", re.IGNORECASE)
FAST = 1  # compression of the scan: it is sent once, and to wait for a smaller file takes longer
MEDIA = {
    "mask.nii.gz": "application/gzip",
    "mask.seg.dcm": "application/dicom",
    "report.json": "application/json",
    "report.html": "text/html; charset=utf-8",
}


@router.get("/{id}/scan", summary="The scan as .nii.gz, its affine the only one", response_class=FileResponse)
async def scan(service: TheService, session: TheSession) -> FileResponse:
    volume = session.require_volume()
    return await _file(service, "scan.nii.gz", "application/gzip", lambda path: write_scan(volume, path))


@router.get("/{id}/download/{kind}", summary="The mask or the report as a file", response_class=FileResponse)
async def download(service: TheService, session: TheSession, kind: Kind) -> FileResponse:
    volume, name, model = session.require_volume(), session.journal.work.name, service.saved.model
    stem = UNSAFE.sub("_", SCAN_SUFFIX.sub("", name)).strip("_") or "scan"
    mask, predictions = await asyncio.wrap_future(session.run(lambda seen: (seen.mask, dict(seen.predictions))))

    def write(path: Path) -> None:
        from voxsam.report.report import report_dict

        points = [point for found in predictions.values() for point in found.clicks]
        clicks = [(volume.grid.world_to_index(point.world_mm).round(3).tolist(), point.positive) for point in points]
        remarks = [remark for found in predictions.values() for remark in found.remarks]
        facts = report_dict(scan=volume, scan_name=name, mask=mask, model=model, clicks=clicks, messages=remarks)
        write_download(kind, path, volume, mask, facts)

    return await _file(service, f"{stem}_{kind}", MEDIA[kind], write)


async def _file(service: Service, name: str, media: str, write: Callable[[Path], None]) -> FileResponse:
    """Let a thread write the file, one at a time, and send it; then its folder is removed."""
    folder = ExitStack()
    try:
        async with service.sending:
            path = folder.enter_context(service.store.scratch_folder()) / name
            await asyncio.to_thread(write, path)
    except BaseException:
        folder.close()
        raise
    return FileResponse(path, media_type=media, filename=name, background=BackgroundTask(folder.close))


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

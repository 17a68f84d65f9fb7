"""Downloads: the scan for a viewer, the mask as NIfTI or DICOM-SEG, the report as JSON or a page."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from voxsam.server.api.common import OF_SESSIONS, TheService, TheSlot
from voxsam.server.desk import sitting_of, volume_of
from voxsam.server.downloads import MEDIA, write_download, write_scan

router = APIRouter(prefix="/api/sessions", tags=["downloads"], responses=OF_SESSIONS)


class Kind(StrEnum):
    """The files that may be asked for."""

    MASK = "mask.nii.gz"
    DICOM_SEG = "mask.seg.dcm"
    FACTS = "report.json"
    REPORT = "report.html"


UNSAFE = re.compile(r"[^A-Za-z0-9_\-]+")
SCAN_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.nrrd|\.mha|\.zip)$", re.IGNORECASE)


@router.get("/{id}/scan", summary="The scan as .nii.gz, its affine the only one", response_class=FileResponse)
async def scan(service: TheService, slot: TheSlot) -> FileResponse:
    volume = volume_of(slot)
    folder = service.archive.scratch_folder()
    return await _file(folder / "scan.nii.gz", "application/gzip", lambda path: write_scan(volume, path))


@router.get("/{id}/download/{kind}", summary="The mask or the report as a file", response_class=FileResponse)
async def download(service: TheService, slot: TheSlot, kind: Kind) -> FileResponse:
    volume, name = volume_of(slot), sitting_of(slot).work.name
    mask, facts = await service.desk.report(slot)
    stem = UNSAFE.sub("_", SCAN_SUFFIX.sub("", name)).strip("_") or "scan"
    path = service.archive.scratch_folder() / f"{stem}_{kind}"
    return await _file(path, MEDIA[kind], lambda path: write_download(kind, path, volume, mask, facts))


async def _file(path: Path, media: str, write: Callable[[Path], None]) -> FileResponse:
    """Let a thread write the file, and send it; then its folder, which holds nothing else, is removed."""
    away = BackgroundTask(shutil.rmtree, path.parent, ignore_errors=True)
    try:
        await asyncio.to_thread(write, path)
    except BaseException:
        await away()
        raise
    return FileResponse(path, media_type=media, filename=path.name, background=away)

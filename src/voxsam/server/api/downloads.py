"""Downloads: the scan's voxels and the scan, masks as NIfTI, DICOM-SEG, RTSTRUCT or surfaces, the report."""

from __future__ import annotations

import asyncio
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, StreamingResponse
from starlette.background import BackgroundTask

from voxsam.atomic import atomic_path
from voxsam.errors import UnsupportedError
from voxsam.interactive.session import reported
from voxsam.io import nifti
from voxsam.io.objects import write_objects
from voxsam.report.metrics import measure
from voxsam.report.report import ReportedObject, report_dict
from voxsam.report.sr import write_sr
from voxsam.server.api import OF_SESSIONS, TheService, TheSession
from voxsam.server.service import Service
from voxsam.volume import Volume

router = APIRouter(prefix="/api/sessions", tags=["downloads"], responses=OF_SESSIONS)


Kind = Literal["mask.nii.gz", "masks", "mask.seg.dcm", "sr", "rtstruct", "stl", "report.json", "report.html"]
FILES: dict[Kind, tuple[str, str]] = {  # each one's name and media type
    "mask.nii.gz": ("mask.nii.gz", "application/gzip"),
    "masks": ("masks.zip", "application/zip"),
    "mask.seg.dcm": ("mask.seg.dcm", "application/dicom"),
    "sr": ("seg_and_sr.zip", "application/zip"),
    "rtstruct": ("mask.rtstruct.dcm", "application/dicom"),
    "stl": ("surface.stl", "model/stl"),
    "report.json": ("report.json", "application/json"),
    "report.html": ("report.html", "text/html; charset=utf-8"),
}
UNSAFE = re.compile(r"[^A-Za-z0-9_\-]+")
SCAN_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.nrrd|\.mha|\.zip)$", re.IGNORECASE)
FAST = 1  # compression of the scan: it is sent once, and making a smaller file takes longer
COARSE_BYTES = 24 << 20  # of the slices that are sent first, if a scan is larger
COARSE_SLICES = 24  # that are sent first, at least


@router.get(
    "/{id}/voxels",
    summary="The scan's voxels, slice by slice, coarse first",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def voxels(
    session: TheSession,
    start: Annotated[int, Query(alias="from", ge=0, description="Slices that the client has already.")] = 0,
) -> StreamingResponse:
    """Not compressed: on a local network, compressing takes longer than sending more."""
    array = session.require_volume().array
    kind = await asyncio.to_thread(_sent_type, array)
    count = array.shape[2]
    nbytes = array[:, :, 0].size * kind.itemsize
    first, order = slice_order(count, nbytes)
    order = order[start:]

    def pieces() -> Iterator[bytes]:
        for k in order:
            if session.released:
                return
            yield struct.pack("<I", k) + array[:, :, k].astype(kind).tobytes("F")

    headers = {
        "Content-Length": str(len(order) * (4 + nbytes)),
        "X-Voxel-Type": kind.name,
        "X-Slice-Bytes": str(nbytes),
        "X-Coarse-Slices": str(first),
    }
    return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)


def slice_order(count: int, nbytes: int) -> tuple[int, list[int]]:
    """The number of slices of `nbytes` in a coarse scan, and all slices: those first, then ever finer ones between."""
    step = 1
    while count * nbytes > step * COARSE_BYTES and count >= 2 * step * COARSE_SLICES:
        step *= 2
    order = list(range(0, count, step))
    first = len(order)
    while step > 1:
        order += range(step // 2, count, step)
        step //= 2
    return first, order


def _sent_type(array: np.ndarray) -> np.dtype[Any]:
    """Little-endian int16 where that holds all voxels, else float32."""
    is_whole = array.dtype.kind in "iu" and np.iinfo(np.int16).min <= array.min() and array.max() <= np.iinfo("i2").max
    return np.dtype("<i2" if is_whole else "<f4")


@router.get("/{id}/scan", summary="The scan as .nii.gz, its affine the only one", response_class=FileResponse)
async def scan(service: TheService, session: TheSession) -> FileResponse:
    volume = session.require_volume()
    return await _file(service, "scan.nii.gz", "application/gzip", lambda path: write_scan(volume, path))


@router.get("/{id}/download/{kind}", summary="Masks, surfaces or the report as a file", response_class=FileResponse)
async def download(service: TheService, session: TheSession, kind: Kind) -> FileResponse:
    volume, name, model = session.require_volume(), session.journal.work.name, service.saved.model
    stem = UNSAFE.sub("_", SCAN_SUFFIX.sub("", name)).strip("_") or "scan"
    mask, objects = await asyncio.wrap_future(session.run(lambda found: (found.mask, reported(found))))

    def write(path: Path) -> None:
        if kind not in ("report.json", "report.html"):
            _write_objects(kind, path, volume, objects, model)
            return
        facts = report_dict(
            scan=volume,
            scan_name=name,
            mask=mask,
            model=model,
            clicks=[click for found in objects for click in found.clicks],
            seconds={"all steps": session.seconds},
            messages=mask.remarks,
            objects=objects,
        )
        _write_report(path, volume, mask, facts)

    ending, media = FILES[kind]
    return await _file(service, f"{stem}_{ending}", media, write)


async def _file(service: Service, name: str, media: str, write: Callable[[Path], None]) -> FileResponse:
    """Write the file on a thread, one at a time, and send it; its folder is removed afterwards."""
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
    """Write the scan as .nii.gz, int16 if that holds its voxels, else float32.

    Its header has one affine (sform = qform) and nothing from the source's: given two, viewers that prefer the other
    form would put the voxels elsewhere.
    """
    array = volume.array
    plain = replace(volume, array=array.astype(_sent_type(array), copy=False), header={})
    with atomic_path(path) as temporary:
        nifti.write(plain, temporary, FAST)


def _write_objects(kind: Kind, path: Path, scan: Volume, objects: Sequence[ReportedObject], model: str) -> None:
    """Write masks or surfaces. Raises UnsupportedError for a DICOM object of a scan that was not DICOM, ImageError for
    a label map of objects that share voxels.
    """
    if kind in ("mask.seg.dcm", "sr", "rtstruct") and "dicom" not in scan.header:
        what = "RTSTRUCT" if kind == "rtstruct" else "DICOM-SEG"
        raise UnsupportedError(f"{what} of a scan that is not DICOM", "a DICOM series", "download the NIfTI instead")
    if kind == "stl":
        from voxsam.report.view3d import write_stl  # imports scikit-image: not when the server starts

        write_stl([(found.info.name, found.region) for found in objects], scan.grid, path)
        return
    words = {found.number: measure(found.region, scan.grid).in_words() for found in objects}
    drawn = {found.number: (replace(found.info, description=words[found.number]), found.region) for found in objects}
    if kind != "sr":
        write_objects(drawn, scan, path, model=model)
        return
    seg, sr = path.with_name("mask.seg.dcm"), path.with_name("measurements.sr.dcm")
    write_objects(drawn, scan, seg, model=model)
    write_sr(sr, seg, scan)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as together:
        for file in (seg, sr):
            together.write(file, file.name)


def _write_report(path: Path, scan: Volume, mask: Volume, facts: dict[str, Any]) -> None:
    from voxsam.report.figures import overview_figure  # matplotlib: a second to import
    from voxsam.report.report import facts_for_people, write_report_html, write_report_json

    if path.suffix == ".json":
        write_report_json(path, facts)
        return
    picture = path.with_name("overview.png")
    clicks = [(click["index"], click["positive"]) for click in facts["clicks"]]
    overview_figure(scan, mask, clicks, picture)
    people = facts_for_people(facts)
    write_report_html(path, title="VoxSAM", facts=people, picture=picture, messages=facts["messages"])

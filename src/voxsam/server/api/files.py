"""Scans to open: what the served folders hold, and what is sent."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from voxsam.server.api.common import TheService, failures
from voxsam.server.folders import Entry

router = APIRouter(prefix="/api", tags=["scans"])


class Listing(BaseModel):
    """What a folder holds, folders first."""

    entries: list[Entry]


class Upload(BaseModel):
    """What an upload has now."""

    upload: str = Field(description="Its id: the source of a session, or for further files.")
    files: int
    bytes: int


@router.get("/files", summary="List a served folder", responses=failures(_404="no such folder"))
async def files(
    service: TheService,
    folder: Annotated[str, Query(max_length=16, description="The id of a folder in /api/info.", examples=["0"])],
    path: Annotated[str, Query(max_length=4096, description="A folder in it, as listed; empty: itself.")] = "",
) -> Listing:
    return Listing(entries=await asyncio.to_thread(service.folders.entries, folder, path))


@router.post(
    "/uploads",
    status_code=201,
    summary="Send a file: a scan, a zip, or one file of a DICOM series",
    responses=failures(
        _404="no such upload", _408="the body stopped coming", _413="the upload is too large", _503="the disk is full"
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(
    service: TheService,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=1024, description="The file's name: its end says what it is.")],
    upload: Annotated[str | None, Query(max_length=64, description="An upload that this file belongs to.")] = None,
) -> Upload:
    key, tally = await service.uploads.take(request.stream(), name, upload)
    return Upload(upload=key, files=tally.files, bytes=tally.bytes)

"""What the server is, and the scans that may be opened: /healthz, /metrics, /api/info, /api/files, /api/uploads."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel, Field

import voxsam
from voxsam.io.segments import TYPES
from voxsam.server.api import TheService, failures
from voxsam.server.edits import ObjectType
from voxsam.server.folders import Entry, Folder
from voxsam.server.messages import MAX_PROMPTS, MAX_STROKE_VOXELS

router = APIRouter()


class Preset(BaseModel):
    """An intensity window (HU) for viewing a kind of tissue."""

    name: str
    low: float
    high: float


class ModelFacts(BaseModel):
    """What the model is and takes."""

    name: str
    modality: str
    prompts: dict[str, bool] = Field(examples=[{"positive": True, "negative": True, "box": True}])
    licence: str


class Info(BaseModel):
    """What a client should know before it opens a scan."""

    version: str
    model: ModelFacts
    presets: list[Preset]
    folders: list[Folder]
    demo: bool
    local: bool = Field(description="Whether the page with its engine in the browser is served, too: at local/.")
    project: str | None = Field(description="The name of the project whose scans are worked through.")
    saves: bool = Field(description="Whether the work outlives the server.")
    types: list[ObjectType] = Field(description="What an object may be, beside any other code.")
    limits: dict[str, int | float]


class Listing(BaseModel):
    """What a folder holds, folders first."""

    entries: list[Entry]


class Upload(BaseModel):
    """The state of an upload."""

    upload: str = Field(description="Its id: the source of a session, or for further files.")
    files: int
    bytes: int


PRESETS = [
    Preset(name="soft tissue", low=-160, high=240),
    Preset(name="lung", low=-1350, high=150),
    Preset(name="bone", low=-450, high=1050),
    Preset(name="liver", low=-30, high=150),
]
KINDS = ("positive", "negative", "box", "scribble", "hint")


class Health(BaseModel):
    """The server answers."""

    status: str = "ok"
    version: str = voxsam.__version__


@router.get("/healthz", tags=["server"], summary="Whether the server is up; needs no key")
async def health() -> Health:
    return Health()


@router.get("/metrics", tags=["server"], summary="Prometheus metrics", response_class=Response, responses=failures())
async def metrics(service: TheService) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/api/info", tags=["server"], summary="Model, limits, and what may be opened", responses=failures())
async def info(service: TheService) -> Info:
    card, settings = service.worker.model.card, service.settings
    return Info(
        version=voxsam.__version__,
        model=ModelFacts(
            name=card.name,
            modality=card.preprocessing.modality,
            prompts={kind: kind in card.prompts for kind in KINDS},
            licence=card.description.get("licence", ""),
        ),
        presets=PRESETS,
        folders=service.folders.listed,
        demo=settings.demo,
        local=settings.web is not None,
        project=None if service.desk is None else service.desk.project.folder.name,
        saves=settings.state is not None,
        types=[ObjectType.of(code) for code in TYPES],
        limits={
            "upload_bytes": settings.upload_bytes,
            "voxels": settings.max_voxels,
            "sessions": settings.capacity,
            "idle_s": settings.idle_s,
            "alive_s": settings.alive_s,
            "prompts": MAX_PROMPTS,
            "scribble_voxels": MAX_STROKE_VOXELS,
        },
    )


@router.get("/api/files", tags=["scans"], summary="List a served folder", responses=failures(_404="no such folder"))
async def files(
    service: TheService,
    folder: Annotated[str, Query(max_length=16, description="The id of a folder in /api/info.", examples=["0"])],
    path: Annotated[str, Query(max_length=4096, description="A folder in it, as listed; empty: itself.")] = "",
) -> Listing:
    return Listing(entries=await asyncio.to_thread(service.folders.entries, folder, path))


@router.post(
    "/api/uploads",
    tags=["scans"],
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

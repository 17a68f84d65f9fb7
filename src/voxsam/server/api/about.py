"""What the server is: /healthz, /metrics, /api/info."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel, Field

import voxsam
from voxsam.server.api.common import TheService, failures
from voxsam.server.folders import Folder
from voxsam.server.steps import MAX_PROMPTS, MAX_STROKE_VOXELS

router = APIRouter(tags=["server"])


class Preset(BaseModel):
    """A window of intensities (HU) under which a kind of tissue is looked at."""

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
    saves: bool = Field(description="Whether the work outlives the server.")
    limits: dict[str, int | float]


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


@router.get("/healthz", summary="Whether the server is up; needs no key")
async def health() -> Health:
    return Health()


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=failures())
async def metrics(service: TheService) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/api/info", summary="Model, limits, and what may be opened", responses=failures())
async def info(service: TheService) -> Info:
    card, settings = service.device.model.card, service.settings
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
        saves=settings.state is not None,
        limits={
            "upload_bytes": settings.upload_bytes,
            "voxels": settings.most_voxels,
            "sessions": settings.capacity,
            "idle_s": settings.idle_s,
            "alive_s": settings.alive_s,
            "prompts": MAX_PROMPTS,
            "scribble_voxels": MAX_STROKE_VOXELS,
        },
    )

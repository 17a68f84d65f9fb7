"""Sessions: open a scan, prompt, undo, look, leave; and the events that tell how far a step is."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from voxsam.server.answers import Answer, State
from voxsam.server.api.common import OF_SESSIONS, Id, TheService, TheSlot
from voxsam.server.events import events
from voxsam.server.sources import Source
from voxsam.server.steps import Prompts

router = APIRouter(prefix="/api/sessions", tags=["sessions"], responses=OF_SESSIONS)


class Opening(BaseModel):
    """Which scan to open."""

    model_config = ConfigDict(extra="forbid")

    source: Source = Field(examples=[{"demo": True}, {"folder": "0", "path": "patient1/ct.nii.gz"}])
    name: str | None = Field(
        default=None, min_length=1, max_length=200, description="What to call it; default: the file."
    )


class Lease(BaseModel):
    """How long the session lasts by itself."""

    lease_s: float


@router.post("", status_code=201, summary="Open a scan")
async def open_session(service: TheService, opening: Opening) -> State:
    slot = await service.desk.open(opening.source, opening.name)
    return await service.desk.state(slot)


@router.get("/{id}", summary="The session as it is; brought back if the server or the session ended")
async def state(service: TheService, slot: TheSlot) -> State:
    return await service.desk.state(slot)


@router.get("/{id}/labels", summary="All labels")
async def labels(
    service: TheService,
    slot: TheSlot,
    box: Annotated[
        Literal["none", "full"], Query(description="full: of the whole scan; none: of the box outside which all are 0.")
    ] = "none",
) -> Answer:
    return await service.desk.labels(slot, box == "full")


@router.post("/{id}/prompts", summary="Add prompts to the current object: one step")
async def prompt(service: TheService, slot: TheSlot, body: Prompts) -> Answer:
    return await service.desk.step(slot, "prompt", lambda script, session: script.take(session, "prompt", body.prompts))


@router.post("/{id}/undo", summary="Take back the last step, if there is one")
async def undo(service: TheService, slot: TheSlot) -> Answer:
    return await service.desk.step(slot, "undo", lambda script, session: script.undo(session))


@router.post("/{id}/redo", summary="Do again what was taken back, if there is anything")
async def redo(service: TheService, slot: TheSlot) -> Answer:
    return await service.desk.step(slot, "redo", lambda script, session: script.redo(session))


@router.post("/{id}/reset", summary="Begin anew with one empty object: one step")
async def reset(service: TheService, slot: TheSlot) -> Answer:
    return await service.desk.step(slot, "reset", lambda script, session: script.take(session, "reset"))


@router.post("/{id}/objects", summary="Begin another object: one step")
async def new_object(service: TheService, slot: TheSlot) -> Answer:
    return await service.desk.step(slot, "new_object", lambda script, session: script.take(session, "new_object"))


@router.post("/{id}/objects/{number}/select", summary="Make an object current")
async def select(service: TheService, slot: TheSlot, number: Annotated[int, InPath(ge=1, le=255)]) -> Answer:
    return await service.desk.step(slot, "select", lambda script, session: script.select(session, number))


@router.post("/{id}/heartbeat", summary="Say that the client is there")
async def heartbeat(service: TheService, slot: TheSlot) -> Lease:
    return Lease(lease_s=round(slot.lease_s, 1))


@router.get(
    "/{id}/events",
    summary="Server-Sent Events: progress, idle, closed",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def progress(service: TheService, id: Id) -> StreamingResponse:
    slot = await service.desk.find(id, wait=False)
    return StreamingResponse(events(service.store, slot), media_type="text/event-stream")


@router.delete("/{id}", status_code=204, summary="Close the session and forget its work and its upload")
async def leave(service: TheService, id: Id) -> Response:
    await service.desk.leave(id)
    return Response(status_code=204)

"""Sessions: open a scan, prompt, undo, look, leave; and the events that say how far a step is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from voxsam.server.api import OF_SESSIONS, Id, TheService, TheSession
from voxsam.server.messages import Prompts, SessionState, Source, StepState
from voxsam.server.saved import SavedSession
from voxsam.server.sessions import Busy
from voxsam.server.store import Event

BEAT_S = 10.0  # between two signs of life, less if leases are short
KEPT_EVENTS = 64  # that a slow listener may be behind; older ones are left out

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
async def open_session(service: TheService, opening: Opening) -> SessionState:
    session = await service.saved.open(opening.source, opening.name)
    return await session.state()


@router.get("/{id}", summary="The session as it is; brought back if the server or the session ended")
async def state(session: TheSession) -> SessionState:
    return await session.state()


@router.get("/{id}/labels", summary="All labels")
async def labels(
    service: TheService,
    session: TheSession,
    box: Annotated[
        Literal["none", "full"], Query(description="full: of the whole scan; none: of the box outside which all are 0.")
    ] = "none",
) -> StepState:
    return await session.labels(box == "full")


@router.post("/{id}/prompts", summary="Add prompts to the current object: one step")
async def prompt(service: TheService, session: TheSession, body: Prompts) -> StepState:
    return await session.step(Event(do="prompt", prompts=tuple(body.prompts)), service.metrics.step)


@router.post("/{id}/undo", summary="Take back the last step, if there is one")
async def undo(service: TheService, session: TheSession) -> StepState:
    return await session.step(Event(do="undo"), service.metrics.step)


@router.post("/{id}/redo", summary="Do again what was taken back, if there is anything")
async def redo(service: TheService, session: TheSession) -> StepState:
    return await session.step(Event(do="redo"), service.metrics.step)


@router.post("/{id}/reset", summary="Begin anew with one empty object: one step")
async def reset(service: TheService, session: TheSession) -> StepState:
    return await session.step(Event(do="reset"), service.metrics.step)


@router.post("/{id}/objects", summary="Begin another object: one step")
async def new_object(service: TheService, session: TheSession) -> StepState:
    return await session.step(Event(do="new_object"), service.metrics.step)


@router.post("/{id}/objects/{number}/select", summary="Make an object current")
async def select(service: TheService, session: TheSession, number: Annotated[int, InPath(ge=1, le=255)]) -> StepState:
    return await session.step(Event(do="select", object=number), service.metrics.step)


@router.post("/{id}/heartbeat", summary="Say that the client is there")
async def heartbeat(session: TheSession) -> Lease:
    return Lease(lease_s=round(session.lease_s, 1))


@router.get(
    "/{id}/events",
    summary="Server-Sent Events: progress, idle, closed",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def progress(service: TheService, id: Id) -> StreamingResponse:
    session = await service.saved.find(id, wait=False)
    return StreamingResponse(events(session), media_type="text/event-stream")


@router.delete("/{id}", status_code=204, summary="Close the session and forget its work and its upload")
async def leave(service: TheService, id: Id) -> Response:
    await service.saved.leave(id)
    return Response(status_code=204)


async def events(session: SavedSession) -> AsyncIterator[str]:
    """`progress` {stage, fraction} while something is done, `idle` {} when nothing is any more, `closed` {} at the end.

    A comment line every few seconds shows both sides that the other one is there.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Busy | None] = asyncio.Queue(KEPT_EVENTS)

    def put(busy: Busy | None) -> None:
        if news.full():
            news.get_nowait()
        news.put_nowait(busy)

    def hear(busy: Busy | None) -> None:
        with suppress(RuntimeError):  # the loop has ended: the server stops
            loop.call_soon_threadsafe(put, busy)

    stop = session.listen(hear)
    beat_s = min(BEAT_S, session.sessions.limits.alive_s / 4)
    try:
        yield _event(session.busy)
        while session.sessions.find(SavedSession, session.id) is session:
            try:
                yield _event(await asyncio.wait_for(news.get(), beat_s))
            except TimeoutError:
                yield ": here\n\n"
        yield "event: closed\ndata: {}\n\n"
    finally:
        stop()


def _event(busy: Busy | None) -> str:
    if busy is None:
        return "event: idle\ndata: {}\n\n"
    return f"event: progress\ndata: {json.dumps({'stage': busy.stage, 'fraction': round(busy.fraction, 3)})}\n\n"

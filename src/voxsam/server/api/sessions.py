"""Sessions: open a scan, prompt, undo, look, leave; and the events that report a step's progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from voxsam.server.api import OF_SESSIONS, Id, TheService, TheSession
from voxsam.server.edits import Description, Edits, Strict, Switches
from voxsam.server.errors import no_project
from voxsam.server.messages import AnySource, CaseSource, Prompts, SessionState, Source, StepState
from voxsam.server.saved import SavedSession
from voxsam.server.sessions import Busy
from voxsam.server.store import NAME, Event

BEAT_S = 10.0  # between two signs of life, less if leases are short
KEPT_EVENTS = 64  # that a slow listener may fall behind; older ones are dropped

Number = Annotated[int, InPath(ge=1, le=255, description="Of an object.")]

router = APIRouter(prefix="/api/sessions", tags=["sessions"], responses=OF_SESSIONS)


class Opening(Strict):
    """Which scan to open."""

    source: AnySource = Field(examples=[{"demo": True}, {"folder": "0", "path": "patient1/ct.nii.gz"}])
    name: str | None = Field(
        default=None, min_length=1, max_length=200, description="What to call it; default: the file."
    )
    id: str | None = Field(
        default=None,
        pattern=f"^{NAME.pattern}$",
        min_length=16,
        description="Its id: long, random, and yours, to hear of progress and to cancel while the scan is read.",
    )


class Loading(Strict):
    """Which mask to load."""

    source: Source = Field(examples=[{"folder": "0", "path": "patient1/mask.nii.gz"}])


async def _step(service: TheService, session: TheSession) -> Callable[[Event], Awaitable[StepState]]:
    return lambda event: session.step(event, service.metrics.step)


TheStep = Annotated[Callable[[Event], Awaitable[StepState]], Depends(_step)]  # carries out an event in the session


class Lease(BaseModel):
    """How long the session lasts without its client."""

    lease_s: float


@router.post("", status_code=201, summary="Open a scan")
async def open_session(service: TheService, opening: Opening) -> SessionState:
    if isinstance(opening.source, CaseSource):
        if service.desk is None:
            raise no_project()
        session = await service.desk.open(opening.source, opening.id)
    else:
        session = await service.saved.open(opening.source, opening.name, opening.id)
    return await session.state()


@router.post("/{id}/cancel", status_code=204, summary="Stop reading the scan; whoever opens it gets 410")
async def cancel(service: TheService, id: Id) -> Response:
    service.saved.cancel(id)
    return Response(status_code=204)


@router.get("/{id}", summary="The session as it is; brought back if the server or the session ended")
async def state(session: TheSession) -> SessionState:
    return await session.state()


@router.get("/{id}/labels", summary="All labels")
async def labels(
    session: TheSession,
    box: Annotated[
        Literal["none", "full"], Query(description="full: of the whole scan; none: of the box outside which all are 0.")
    ] = "none",
) -> StepState:
    return await session.labels(box == "full")


@router.post("/{id}/prompts", summary="Add prompts to the current object: one step")
async def prompt(step: TheStep, body: Prompts) -> StepState:
    return await step(Event(do="prompt", prompts=tuple(body.prompts)))


@router.post("/{id}/edits", summary="Edit the current object by hand: one step")
async def edit(step: TheStep, body: Edits) -> StepState:
    return await step(Event(do="edit", edits=tuple(body.edits)))


@router.post("/{id}/mask", summary="Load a mask as the current object, of several labels one object each: one step")
async def load_mask(service: TheService, session: TheSession, step: TheStep, body: Loading) -> StepState:
    masks = await service.saved.masks(body.source, session)
    return await step(Event(do="mask", masks=masks))


@router.post("/{id}/undo", summary="Take back the last step, if there is one")
async def undo(step: TheStep) -> StepState:
    return await step(Event(do="undo"))


@router.post("/{id}/redo", summary="Do again what was taken back, if there is anything")
async def redo(step: TheStep) -> StepState:
    return await step(Event(do="redo"))


@router.post("/{id}/reset", summary="Begin anew with one empty object: one step")
async def reset(step: TheStep) -> StepState:
    return await step(Event(do="reset"))


@router.post("/{id}/objects", summary="Begin another object: one step")
async def new_object(step: TheStep) -> StepState:
    return await step(Event(do="new_object"))


@router.post("/{id}/objects/{number}/select", summary="Make an object current")
async def select(step: TheStep, number: Number) -> StepState:
    return await step(Event(do="select", object=number))


@router.patch("/{id}/objects/{number}", summary="Name, colour, show, lock or code an object; to lock is a step")
async def describe(step: TheStep, number: Number, body: Description) -> StepState:
    event = Event(do="describe", number=number, description=body.model_copy(update={"locked": None}))
    answer = await step(event)
    if body.locked is not None:
        answer = await step(Event(do="lock", number=number, on=body.locked))
    return answer


@router.delete("/{id}/objects/{number}", summary="Delete an object: one step")
async def delete(step: TheStep, number: Number) -> StepState:
    return await step(Event(do="delete", number=number))


@router.delete("/{id}/objects/{number}/prompts/{index}", summary="Take a prompt away, the first is 0: one step")
async def remove_prompt(step: TheStep, number: Number, index: Annotated[int, InPath(ge=0)]) -> StepState:
    return await step(Event(do="remove_prompt", number=number, index=index))


@router.patch("/{id}", summary="Whether objects may overlap, and only clicked components are kept: a step each")
async def switch(session: TheSession, step: TheStep, body: Switches) -> StepState:
    answer = await session.labels(full=False)
    for name in ("overlap", "keep_clicked"):
        if (on := getattr(body, name)) is not None:
            answer = await step(Event(do=name, on=on))
    return answer


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
    """`progress` {stage, fraction} while something is done, `idle` {revision} when nothing is, `closed` {} at the end.

    A comment line every few seconds shows each side that the other is there.
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
        yield _event(session, session.busy)
        while session.sessions.find(SavedSession, session.id) is session:
            try:
                yield _event(session, await asyncio.wait_for(news.get(), beat_s))
            except TimeoutError:
                yield ": here\n\n"
        yield "event: closed\ndata: {}\n\n"
    finally:
        stop()


def _event(session: SavedSession, busy: Busy | None) -> str:
    if busy is None:
        return f"event: idle\ndata: {json.dumps({'revision': session.journal.work.revision})}\n\n"
    return f"event: progress\ndata: {json.dumps({'stage': busy.stage, 'fraction': round(busy.fraction, 3)})}\n\n"

"""What every route of the protocol is given: the service, the client's slot by its lease, what the slot keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from voxsam.interactive.session import Session
from voxsam.server.errors import Dropped, NotThere, Refused
from voxsam.server.guard import check_key
from voxsam.server.nninteractive.answers import META, WireRoute, answer_change
from voxsam.server.nninteractive.segment import Change, Segment
from voxsam.server.service import Service
from voxsam.server.store import Slot
from voxsam.volume import Volume

LEASE = "X-Lease-Token"
NOTE = "nninteractive"  # under which a slot keeps its Client


@dataclass(eq=False)
class Client:
    """What a slot keeps for this protocol: the client's choice, and the object it works on (on the device's thread)."""

    follow: bool = True
    segment: Segment | None = None

    def segment_of(self, session: Session) -> Segment:
        """The object of a session; a new one if another image was set."""
        if self.segment is None or self.segment.session is not session:
            self.segment = Segment(session)
        session.predictor.follow = self.follow
        return self.segment


def client_of(slot: Slot) -> Client:
    """What the slot keeps."""
    return slot.notes[NOTE]


def is_ours(slot: Slot) -> bool:
    """Whether a slot was claimed by this protocol."""
    return NOTE in slot.notes


def image_of(slot: Slot) -> Volume:
    """The slot's image. Raises Refused if none was sent."""
    session = slot.session
    if session is None:
        raise Refused("an interaction without an image", "an image first", "call set_image")
    return session.volume


async def change(slot: Slot, image: Volume, act: Callable[[Segment], Change]) -> Response:
    """Let the device do something with the client's object when it is its turn, and answer with what changed.

    Raises Refused if the slot's image is no longer the `image` that the interaction was made for.
    """

    def work(session: Session) -> Change:
        if session.volume is not image:
            raise Refused("an interaction with an image that was replaced", "the image of now", "make it again")
        return act(client_of(slot).segment_of(session))

    changed = await asyncio.wrap_future(slot.run(work))
    return await run_in_threadpool(answer_change, changed)


async def use(slot: Slot) -> None:
    """What the client does is a use of its slot, though the device need not do anything."""
    if slot.session is not None:
        await asyncio.wrap_future(slot.run(lambda session: None))


async def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]


async def _key(service: Served, authorization: Annotated[str, Header()] = "") -> None:
    """As everywhere on this server, but answered in the protocol's words."""
    check_key(authorization.removeprefix("Bearer "), service.settings)


async def _slot(service: Served, token: Annotated[str, Header(alias=LEASE)] = "") -> Slot:
    """The slot of the client's lease. Raises Dropped (410), which clients take for an expired session."""
    try:
        slot = service.store.get(token)
    except NotThere:
        slot = None
    if slot is None or not is_ours(slot):
        raise Dropped("a lease that is over or unknown", "a lease of this server", "connect and send the image again")
    return slot


Held = Annotated[Slot, Depends(_slot)]
Meta = Annotated[str, Header(alias=META, description="JSON")]
ARRAY = {"requestBody": {"content": {"application/octet-stream": {}}, "required": True}}


def make_router() -> APIRouter:
    """An empty router: every route wants the server's key, and fails as the protocol does."""
    return APIRouter(route_class=WireRoute, tags=["nnInteractive"], dependencies=[Depends(_key)])

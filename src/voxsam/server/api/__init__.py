"""The routes under /api, for the page and for programs (docs/server.md), and what they share.

server     what the server is, served folders, uploads
sessions   open, step, look, leave; events
downloads  the scan, masks, reports
project    the work list, what is done, models that learn
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Request
from pydantic import BaseModel

from voxsam.server.saved import SavedSession
from voxsam.server.service import Service
from voxsam.server.store import NAME


class FailureFacts(BaseModel):
    """What went wrong, in words."""

    message: str
    given: str
    expected: str
    remedy: str


class Failure(BaseModel):
    """Every response with a 4xx or 5xx status."""

    error: FailureFacts
    detail: str


def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]
Id = Annotated[str, Path(pattern=f"^{NAME.pattern}$", description="Of a session, as given when it was opened.")]


async def _session(service: TheService, id: Id) -> SavedSession:
    return await service.saved.find(id)


TheSession = Annotated[SavedSession, Depends(_session)]  # restored first if it is not open


def failures(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """Responses for OpenAPI, as in `failures(_404="no such session")`."""
    every = {"_401": "no key, or a wrong one", "_403": "another host, site or folder", **reasons}
    return {int(status[1:]): {"model": Failure, "description": text} for status, text in sorted(every.items())}


OF_SESSIONS = failures(
    _400="what was sent cannot be used, with the reason",
    _404="no such session",
    _409="where the session's scan was, another one is now",
    _413="a body that is too large",
    _422="a body of another form",
    _429="too many requests of this session wait",
    _503="all places are taken, or all memory: try again in a minute",
    _507="the server's disk is full",
)

"""What the routes share: the running service, the slot that an id names, the failures that are documented."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Request
from pydantic import BaseModel

from voxsam.server.archive import NAME
from voxsam.server.service import Service
from voxsam.server.store import Slot


class FailureFacts(BaseModel):
    """What went wrong, in words."""

    message: str
    given: str
    expected: str
    remedy: str


class Failure(BaseModel):
    """Every answer with a 4xx or 5xx status."""

    error: FailureFacts


def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]
Id = Annotated[str, Path(pattern=f"^{NAME.pattern}$", description="Of a session, as given when it was opened.")]


async def _slot(service: TheService, id: Id) -> Slot:
    return await service.desk.find(id)


TheSlot = Annotated[Slot, Depends(_slot)]  # brought back first if it is not open


def failures(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: `failures(_404="no such session")`."""
    every = {"_401": "no key, or a wrong one", "_403": "another host, site or folder", **reasons}
    return {int(status[1:]): {"model": Failure, "description": text} for status, text in sorted(every.items())}


OF_SESSIONS = failures(
    _400="what was sent cannot be used, with the reason",
    _404="no such session",
    _413="a body that is too large",
    _422="a body of another form",
    _429="too many requests of this session wait",
    _503="all places are taken, or all memory: try again in a minute",
)

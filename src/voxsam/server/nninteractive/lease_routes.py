"""Routes of the protocol: what the model takes, and the lease on a place."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header
from starlette.concurrency import run_in_threadpool

from voxsam.server.nninteractive.capabilities import capabilities
from voxsam.server.nninteractive.client import LEASE, NOTE, Client, Held, Served, is_ours, make_router
from voxsam.server.service import Service
from voxsam.server.store import Slot

router = make_router()


@router.get("/capabilities", summary="What the loaded model takes")
async def get_capabilities(service: Served) -> dict[str, Any]:
    """Supported interactions, licence, and VoxSAM's own entries: model, prompts, server."""
    return capabilities(service.device.model.card)


@router.post("/claim", summary="Take a place")
async def claim(service: Served) -> dict[str, Any]:
    """A lease token, for the header X-Lease-Token of all that follows. 503 if the server is full."""
    slot, limits = service.store.claim(), service.store.limits
    slot.notes[NOTE] = Client()
    times = {"idle_timeout_seconds": limits.idle_s, "liveness_timeout_seconds": limits.alive_s}
    return {"lease_token": slot.id, **times, "max_sessions": limits.capacity}


@router.post("/release", summary="Give a place back")
async def release(service: Served, token: Annotated[str, Header(alias=LEASE)] = "") -> dict[str, bool]:
    """Succeeds also for a lease that is over."""
    if any(slot.id == token and is_ours(slot) for slot in service.store.slots):
        await run_in_threadpool(service.store.release, token)
    return {"released": True}


@router.post("/heartbeat", summary="A sign of life")
async def heartbeat(service: Served, slot: Held) -> dict[str, float]:
    """Seconds until the session ends unless it is used; a heartbeat is no use."""
    return {"remaining_seconds": _remaining_s(service, slot)}


@router.get("/lease_status", summary="How long a lease lasts")
async def lease_status(service: Served, slot: Held) -> dict[str, float]:
    """As a heartbeat answers."""
    return {"remaining_seconds": _remaining_s(service, slot), "idle_timeout_seconds": service.store.limits.idle_s}


def _remaining_s(service: Service, slot: Slot) -> float:
    return max(0.0, slot.used + service.store.limits.idle_s - service.store.clock())

"""Server-Sent Events of one session: progress as it happens, and the lease kept as long as someone listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

from voxsam.server.store import Busy, Slot, Store

BEAT_S = 10.0  # between two signs of life, less if leases are short
KEPT_EVENTS = 64  # that a slow listener may be behind; older ones are left out


async def events(store: Store, slot: Slot) -> AsyncIterator[str]:
    """`progress` {stage, share} while something is done, `idle` {} when nothing is any more, `closed` {} at the end.

    A comment line every few seconds tells both sides that the other one is there.
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

    stop = slot.listen(hear)
    beat_s = min(BEAT_S, store.limits.alive_s / 4)
    try:
        yield _event(slot.busy)
        while store.find(slot.id) is slot:
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

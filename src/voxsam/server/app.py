"""make_app: the whole server as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

import voxsam
from voxsam.model.promptable import Promptable
from voxsam.server.failures import add_handlers
from voxsam.server.guard import JSON_BYTES, Guard
from voxsam.server.nninteractive.image_routes import IMAGE_PATH
from voxsam.server.nninteractive.router import router as nninteractive
from voxsam.server.service import Service
from voxsam.server.settings import Settings

SWEEP_S = 1.0  # how often leases are looked at; less if they are shorter


def make_app(settings: Settings | None = None, model: Promptable | None = None) -> FastAPI:
    """A server for `settings`, with `model` or the one that they name.

    `app.state.service` holds its parts. They are closed when the application shuts down. Raises InputError for a
    model, a folder or a state folder that cannot be used.
    """
    service = Service.start(settings or Settings(), model)
    app = FastAPI(title="VoxSAM", version=voxsam.__version__, lifespan=_lifespan, docs_url="/docs", redoc_url=None)
    app.state.service = service
    add_handlers(app)

    @app.get("/healthz", tags=["server"], summary="Whether the server is up")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": voxsam.__version__}

    app.include_router(nninteractive)
    app.add_middleware(Guard, settings=service.settings, body_limit=_body_limit(service.settings))
    return app


def _body_limit(settings: Settings):
    def limit(path: str) -> int:
        return settings.upload_bytes if path in ("/api/uploads", IMAGE_PATH) else JSON_BYTES

    return limit


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    sweeper = asyncio.create_task(_sweep(service))
    try:
        yield
    finally:
        sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await sweeper
        await asyncio.to_thread(service.close)


async def _sweep(service: Service) -> None:
    """End what is over, now and then."""
    pause = min(SWEEP_S, service.settings.alive_s / 4)
    while True:
        await asyncio.sleep(pause)
        await asyncio.to_thread(service.store.expire)

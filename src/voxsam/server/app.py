"""make_app: the whole server as one ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import voxsam
from voxsam.network.promptable import Promptable
from voxsam.server.api import about, downloads, files, sessions
from voxsam.server.failures import add_handlers
from voxsam.server.guard import JSON_BYTES, Guard
from voxsam.server.nninteractive.image_routes import IMAGE_PATH
from voxsam.server.nninteractive.router import router as nninteractive
from voxsam.server.observe import LOG, Observe
from voxsam.server.page import SecureHeaders, add_page
from voxsam.server.service import Service
from voxsam.server.settings import Settings

SWEEP_S = 1.0  # how often leases are looked at; more often if they are short
TIDY_S = 600.0  # how often the archive is


def make_app(settings: Settings | None = None, model: Promptable | None = None) -> FastAPI:
    """A server for `settings`, with `model` or the one that they name.

    `app.state.service` holds its parts. They are closed when the application shuts down. Raises InputError for a
    model, a folder or a state folder that cannot be used.
    """
    service = Service.start(settings or Settings(), model)
    app = FastAPI(
        title="VoxSAM",
        version=voxsam.__version__,
        summary="One click in a 3D scan, a tumour mask on the scan's own grid.",
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's page for it loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    add_handlers(app)
    for part in (about, files, sessions, downloads):
        app.include_router(part.router)
    app.include_router(nninteractive)
    add_page(app)
    _wrap(app, service)
    return app


def _wrap(app: FastAPI, service: Service) -> None:
    """Put the layers round the routes; the last one is the outermost."""
    settings = service.settings
    app.add_middleware(Guard, settings=settings, body_limit=_body_limit(settings))
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["*"],
            allow_headers=["Authorization", "*"],
            # X-Meta: where nnInteractive's clients read the changed box; the name of a download; when to try again
            expose_headers=["X-Meta", "Content-Disposition", "Retry-After"],
        )
    app.add_middleware(SecureHeaders)
    app.add_middleware(Observe, metrics=service.metrics)


def _body_limit(settings: Settings) -> Callable[[str], int]:
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
    """End the sessions whose time is over, and more rarely what is left over in the archive."""
    pause = min(SWEEP_S, service.settings.alive_s / 4)
    next_tidying = 0.0
    while True:
        try:
            await asyncio.to_thread(service.store.expire)
            if time.monotonic() >= next_tidying:
                next_tidying = time.monotonic() + TIDY_S
                await asyncio.to_thread(service.archive.tidy)
        except Exception as error:  # a disk that fails now and then must not keep all sessions open for ever
            LOG.error("sweeping failed", extra={"facts": {"error": type(error).__name__}})
        await asyncio.sleep(pause)

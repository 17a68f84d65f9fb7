"""make_app: the whole server as one ASGI application, with its page and the protocols of other programs' clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import voxsam
from voxsam.network.promptable import Promptable
from voxsam.server.api import downloads, project, server, sessions
from voxsam.server.errors import add_handlers
from voxsam.server.guard import Guard, route_path
from voxsam.server.observe import Observe
from voxsam.server.service import Service
from voxsam.server.settings import Settings

STATIC = Path(__file__).resolve().parent / "static"
NOT_BUILT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>VoxSAM</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em">
<h1>VoxSAM</h1>
<p>The server runs, but its page is not built. In the project's folder, with Node.js installed, run</p>
<pre>make viewer</pre>
<p>and load this page again. The API works without it: <a href="/openapi.json">/openapi.json</a> describes it.</p>
</body></html>
"""
# Nothing from other sites; WebAssembly, workers, blobs and data URLs are for what the viewer creates itself.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Protocol:
    """The protocol of other programs' clients. Bodies for paths that start with one of `arrays` are kept in memory as
    they arrive, those for `files` go to disk; `public` paths need no key.
    """

    router: APIRouter
    arrays: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    public: tuple[str, ...] = ()


def make_app(
    settings: Settings | None = None,
    model: Promptable | None = None,
    protocols: Sequence[Protocol] = (),
) -> FastAPI:
    """Make a server for `settings`, with `model` or the one that they name, and the page.

    `protocols` are served alongside its own API; `voxsam.protocols.PROTOCOLS` are all that VoxSAM supports.
    `app.state.service` holds its parts, which are closed when the application shuts down; if it is mounted in another
    one, call `app.state.service.close()`. Raises InputError for a model, folder or state folder that cannot be used.
    """
    service = Service(settings or Settings(), model)
    app = FastAPI(
        title="VoxSAM",
        version=voxsam.__version__,
        summary="One click in a 3D scan, a tumour mask on the scan's own grid.",
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's page for it loads scripts from other sites
        redoc_url=None,
    )
    app.state.service = service
    add_handlers(app)
    for part in (server, sessions, downloads, project, *protocols):
        app.include_router(part.router)
    pages = {"/": STATIC} | ({"/local/": service.settings.web} if service.settings.web else {})
    _add_pages(app, pages)
    _wrap(app, service, pages, protocols)
    return app


def _add_pages(app: FastAPI, pages: Mapping[str, Path]) -> None:
    """Serve the page at /, and others at their paths; anything that is not one of their files is not found."""
    for path in sorted(pages, reverse=True):  # the one at / last: it would match everything
        if (pages[path] / "index.html").is_file():
            app.mount(path, Page(directory=pages[path], html=True), name=f"page at {path}")
    if (pages["/"] / "index.html").is_file():
        return

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def not_built() -> str:
        return NOT_BUILT


class Page(StaticFiles):
    """The page's files. Any request but GET and HEAD, such as a POST to an unknown path, is answered as not found."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        return await super().get_response(path, scope)


def _wrap(app: FastAPI, service: Service, pages: Mapping[str, Path], protocols: Sequence[Protocol]) -> None:
    """Wrap the routes in middleware; the layer added last is the outermost."""
    settings = service.settings
    files = {
        path + file.relative_to(folder).as_posix()
        for path, folder in pages.items()
        for file in folder.rglob("*")
        if file.is_file()
    }
    public = {"/healthz"} | set(pages) | files  # these hold no data; everything else needs the key
    app.add_middleware(
        Guard,
        settings=settings,
        memory=service.sessions.memory,
        public=public.union(*(protocol.public for protocol in protocols)),
        arrays=tuple(path for protocol in protocols for path in protocol.arrays),
        files=("/api/uploads", *(path for protocol in protocols for path in protocol.files)),
    )
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


class SecureHeaders:
    """Wraps the application: every response gets HEADERS, and caches keep none but the page's assets."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not route_path(scope).startswith(("/assets/", "/local/assets/")):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, give if scope["type"] == "http" else send)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.to_thread(app.state.service.close)

"""The page: its built files if they are there, else a line that says how to build them; and its security headers."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
# Nothing from elsewhere; WebAssembly and workers, blobs and data: for what the viewer makes itself.
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


def add_page(app: FastAPI, static: Path = STATIC) -> None:
    """Serve the page at /; what is not a file of it is answered as not found."""
    if (static / "index.html").is_file():
        app.mount("/", StaticFiles(directory=static, html=True), name="page")
        return

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def not_built() -> str:
        return NOT_BUILT


class SecureHeaders:
    """Wraps the application: every answer gets HEADERS, and answers of the API are never kept by caches."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith("/assets/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, give if scope["type"] == "http" else send)

"""What a request must pass before anything reads it: the host it names, its origin, its key, its size, its pace.

Plain ASGI, so that bodies are counted as they come and are never kept.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voxsam.server.errors import Forbidden, KeyNeeded, Refused, TooLarge, TooSlow
from voxsam.server.failures import answer_failure
from voxsam.server.settings import LOCAL_HOSTS, Settings

GUARDED = ("/api/", "/metrics", "/openapi.json")  # need the key; /healthz and the page's files hold no data
JSON_BYTES = 16 << 20  # of any body but an upload: a scribble of a few 100,000 voxels


class Guard:
    """Wraps the application. `body_limit` says how many bytes the body for a path may have."""

    def __init__(self, app: ASGIApp, settings: Settings, body_limit: Callable[[str], int]) -> None:
        self.app, self.settings, self.body_limit = app, settings, body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = Body(receive, headers, self.body_limit(scope["path"]), self.settings.body_s)
        send = _closing(send, body)
        try:
            check_host(headers, self.settings)
            check_origin(headers, self.settings)
            if scope["path"].startswith(GUARDED) and scope["method"] != "OPTIONS":
                check_key(headers.get("authorization", "").removeprefix("Bearer "), self.settings)
            body.check()
        except Refused as error:
            await answer_failure(error)(scope, receive, send)
            return
        await self.app(scope, body, send)


class Body:
    """A request's body as it comes. Raises Refused (too large, too slow, cut off) into whoever reads it."""

    def __init__(self, receive: Receive, headers: Headers, limit: int, pause_s: float) -> None:
        self.receive, self.limit, self.pause_s = receive, limit, pause_s
        self.declared = headers.get("content-length", "0")
        self.count, self.is_over = 0, self.declared == "0" and "transfer-encoding" not in headers

    def check(self) -> None:
        """Raises TooLarge if the request says so itself."""
        if self.declared.isdecimal() and int(self.declared) > self.limit:
            raise _too_large(self.limit)

    async def __call__(self) -> Message:
        if self.is_over:  # what comes now may come late: the end of the connection
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), self.pause_s)
        except TimeoutError:
            given = f"a body that paused for {self.pause_s:g} s"
            raise TooSlow(given, "all of it", "send it again") from None
        if message["type"] == "http.disconnect":
            raise Refused("a body that was cut off", "all of it", "send it again")  # for the log: nobody listens
        if message["type"] == "http.request":
            self.count += len(message.get("body", b""))
            self.is_over = not message.get("more_body", False)
            if self.count > self.limit:
                raise _too_large(self.limit)
        return message


def _closing(send: Send, body: Body) -> Send:
    """Let an answer that comes before the end of the body close the connection: what still comes is not read."""

    async def give(message: Message) -> None:
        if message["type"] == "http.response.start" and not body.is_over:
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return give


def check_host(headers: Headers, settings: Settings) -> None:
    """On a server for this machine alone, refuse names that someone else's DNS made point here (DNS rebinding)."""
    if settings.is_local and _name(f"//{headers.get('host', '')}") not in LOCAL_HOSTS:
        raise Forbidden("a request for another host", "localhost", "use the address that the server printed")


def check_origin(headers: Headers, settings: Settings) -> None:
    """Refuse what another site's page sends, unless the server was told to take it."""
    origin = headers.get("origin")
    if origin is None or origin in settings.cors:
        return
    if origin == "null" or urlsplit(origin).netloc != headers.get("host"):
        raise Forbidden("a request from another site's page", "the server's own page", "start it with --cors ORIGIN")


def check_key(given: str, settings: Settings) -> None:
    """Compare in constant time. Raises KeyNeeded."""
    if settings.key is None:
        return
    if not hmac.compare_digest(given.encode(), settings.key.get_secret_value().encode()):
        what = "a wrong key" if given else "no key"
        raise KeyNeeded(what, "the server's key", "send the header Authorization: Bearer KEY")


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _too_large(limit: int) -> TooLarge:
    return TooLarge("a body that is too large", f"at most {limit:,} bytes", "send less, or raise --upload-limit")

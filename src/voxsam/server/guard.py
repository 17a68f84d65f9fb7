"""Checks on a connection and a request before anything reads them: pace, host, origin, key, size, memory.

Plain ASGI, inside the application itself, so that it applies however the application is mounted. Everything needs the
key except what is listed as public; bodies are counted as they arrive, and memory is reserved before they are kept.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Callable, Container
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from voxsam.server.errors import Forbidden, KeyNeeded, Refused, TooLarge, TooSlow, failure
from voxsam.server.sessions import Memory
from voxsam.server.settings import Settings

JSON_BYTES = 16 << 20  # of any body but an upload: a scribble of a few 100,000 voxels
SMALL_BYTES = 64 << 10  # of a body that no memory is reserved for: a click is answered however full the server is
JSON_MEMORY = 24  # bytes of memory per byte of JSON, read and parsed: numbers in nested lists
ARRAY_MEMORY = 2  # per byte of a packed array: its pieces, and the whole
UPLOAD_MEMORY = 4 << 20  # of an upload, however large: it goes to disk piece by piece
MIN_BYTES_S = 4096  # average rate that a body must keep, after the first pause
SEND_S = 60.0  # that a client may take for a piece of a response, some 50 kB
MAX_CONNECTIONS = 512
ENDING_S = 5  # that open requests get when the server is stopped


class Guard:
    """Wraps the application. `public` are the paths that hold no data. Bodies for paths that start with one of `arrays`
    are kept in memory as they arrive, those for `files` go to disk; all others are JSON.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        memory: Memory,
        public: Container[str],
        arrays: tuple[str, ...] = (),
        files: tuple[str, ...] = (),
    ) -> None:
        self.app, self.settings, self.memory = app, settings, memory
        self.public, self.arrays, self.files = public, arrays, files
        self.key = None if settings.key is None else settings.key.get_secret_value().encode()
        own = ("localhost",) if settings.is_local else ("localhost", socket.gethostname(), socket.getfqdn())
        names = (*own, settings.host, *settings.hosts)  # by which a server without a key may be addressed
        self.names = frozenset(name.lower().rstrip(".") for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers, path = Headers(scope=scope), route_path(scope)
        limit, factor, base = self._cost(path)
        body, answered = Body(receive, headers, limit, self.settings.body_s), False

        async def give(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                if not body.is_over:  # the rest is not read
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            self.check_host(headers)
            self.check_origin(headers)
            if path not in self.public:
                self.check_key(headers)
            body.check()
            with self.memory.take(base) as part:
                body.charge = lambda count: part.resize(base + factor * max(0, count - SMALL_BYTES))
                await self.app(scope, body, give)
        except Refused as error:
            if answered:
                raise
            await failure(error)(scope, receive, give)

    def _cost(self, path: str) -> tuple[int, int, int]:
        """For a body: the most bytes it may have, the memory per byte, and a fixed amount of memory."""
        if path.startswith(self.files):
            return self.settings.upload_bytes, 0, UPLOAD_MEMORY
        if path.startswith(self.arrays):
            return self.settings.upload_bytes, ARRAY_MEMORY, 0
        return JSON_BYTES, JSON_MEMORY, 0

    def check_host(self, headers: Headers) -> None:
        """Refuse names that someone else's DNS points here (DNS rebinding), unless a key is required anyway.

        A server for this machine alone always checks. An address itself cannot be rebound.
        """
        if self.key is not None and not self.settings.is_local:
            return
        try:
            name = (urlsplit(f"//{headers.get('host', '')}").hostname or "").rstrip(".")
        except ValueError:
            name = ""
        if name in self.names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        if address is None or (self.settings.is_local and not address.is_loopback):
            remedy = "use the address that the server printed, or start it with --allow-host NAME"
            raise Forbidden("a request for another host", "an address or a name of this machine", remedy)

    def check_origin(self, headers: Headers) -> None:
        """Refuse requests from another site's page, unless `cors` allows the site."""
        origin = headers.get("origin")
        if origin is None or origin in self.settings.cors:
            return
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            place = ""
        if not place or place.lower() != headers.get("host", "").lower():
            raise Forbidden(
                "a request from another site's page", "the server's own page", "start it with --cors ORIGIN"
            )

    def check_key(self, headers: Headers) -> None:
        """Compare the key in constant time. Raises KeyNeeded."""
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and not hmac.compare_digest(given.encode("latin-1", "replace"), self.key):
            what = "a wrong key" if given else "no key"
            raise KeyNeeded(what, "the server's key", "send the header Authorization: Bearer KEY")


def route_path(scope: Scope) -> str:
    """The path within the application, which may be mounted under a prefix."""
    path, root = scope["path"], scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


class Body:
    """A request's body as it arrives. Raises Refused (too large, too slow, cut off, no memory) in whoever reads it."""

    def __init__(self, receive: Receive, headers: Headers, limit: int, pause_s: float) -> None:
        self.receive, self.limit, self.pause_s = receive, limit, pause_s
        self.declared = headers.get("content-length", "0")
        self.count, self.is_over = 0, self.declared == "0" and "transfer-encoding" not in headers
        self.charge: Callable[[int], Any] = lambda count: None
        self.begin_s: float | None = None

    def check(self) -> None:
        """Raises TooLarge if the request's declared length is too large."""
        if self.declared.isdecimal() and int(self.declared) > self.limit:
            raise self._too_large()

    async def __call__(self) -> Message:
        if self.is_over:  # what comes now, the end of the connection, may come late
            return await self.receive()
        now_s = asyncio.get_running_loop().time()
        self.begin_s = self.begin_s or now_s
        left_s = self.begin_s + self.pause_s + self.count / MIN_BYTES_S - now_s
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, min(self.pause_s, left_s)))
        except TimeoutError:
            given = f"a body that paused for {self.pause_s:g} s, or came with less than {MIN_BYTES_S} bytes a second"
            raise TooSlow(given, "all of it", "send it again") from None
        if message["type"] == "http.disconnect":
            raise Refused("a body that was cut off", "all of it", "send it again")  # for the log: nobody listens
        if message["type"] == "http.request":
            self.count += len(message.get("body", b""))
            self.is_over = not message.get("more_body", False)
            if self.count > self.limit:
                raise self._too_large()
            self.charge(self.count)
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(
            "a body that is too large", f"at most {self.limit:,} bytes", "send less, or raise --upload-limit"
        )


# Connections


def make_server(app: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Server:
    """uvicorn for the application, with limits on what a client may hold before it has shown a key."""

    class Connection(Waiting):
        head_s, most, waiting, together = settings.head_s, max_connections(), {}, set()

    options = {"log_config": None, "access_log": False, "server_header": False, **options}
    return uvicorn.Server(uvicorn.Config(app, http=Connection, timeout_graceful_shutdown=ENDING_S, **options))


def max_connections() -> int:
    """At most half of the files that this process may open: the others are for the work."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if most == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, most // 2)


class Waiting(H11Protocol):
    """A connection that must send each head within `head_s`; if there are too many, the longest waiting is closed."""

    head_s: float
    most: int
    waiting: dict[Waiting, asyncio.TimerHandle]  # without a request in progress, oldest first
    together: set[Waiting]
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.together.add(self)
        self._wait()
        if len(self.together) > self.most:
            next(iter(self.waiting))._abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:
            self._wait()

    def pause_writing(self) -> None:
        """The client is not reading its response: abort if that lasts."""
        super().pause_writing()
        self.stalled = self.loop.call_later(SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._take_up()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait_no_more()
        self._take_up()
        self.together.discard(self)

    def _wait(self) -> None:
        self._wait_no_more()
        self.waiting[self] = self.loop.call_later(self.head_s, self._abort)

    def _abort(self) -> None:
        self._wait_no_more()
        self.together.discard(self)
        self.transport.abort()

    def _wait_no_more(self) -> None:
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _take_up(self) -> None:
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None

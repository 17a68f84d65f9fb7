"""What the operator sees of each request: Prometheus metrics, and one JSON line in the log.

Neither holds patient data: the route's template instead of the path, no query, no names, no headers, no messages.
prometheus_client does the counting: it is the format's own library, has no dependencies, and gets escaping and
histograms right.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voxsam.server.errors import LOG
from voxsam.server.sessions import Sessions

BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
UNKNOWN = "unmatched"


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, sessions: Sessions) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("voxsam_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "voxsam_request_seconds", "From request to answer.", ("route",), registry=self.registry, buckets=BUCKETS_S
        )
        self.bytes = Counter("voxsam_bytes", "Bytes of bodies.", ("direction",), registry=self.registry)
        self.steps = Histogram(
            "voxsam_step_seconds", "Of a step on the worker.", ("step",), registry=self.registry, buckets=BUCKETS_S
        )
        self.registry.register(_Gauges(sessions))

    def step(self, name: str, seconds: float) -> None:
        """Record a step that the worker did."""
        self.steps.labels(name).observe(seconds)


class _Gauges(Collector):
    """Numbers that are read from the sessions when they are collected."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def collect(self) -> Iterator[Metric]:
        sessions = self.sessions
        numbers = (
            ("voxsam_sessions", "Open sessions.", len(sessions.open)),
            ("voxsam_sessions_most", "Sessions that may be open.", sessions.limits.capacity),
            ("voxsam_memory_bytes", "Of requests, open scans, masks, steps and features.", sessions.nbytes),
            ("voxsam_memory_bytes_most", "That they may take.", sessions.memory.limit),
            ("voxsam_waiting", "Requests that wait for the worker.", sessions.worker.waiting),
            ("voxsam_expired_total", "Sessions that ended by a time-out.", sessions.expired),
            ("voxsam_features_forgotten_total", "Times that a session's features made room.", sessions.forgotten),
        )
        for name, text, value in numbers:
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, text, value)


class Observe:
    """Wraps the application: counts, times and logs every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, came, went = time.perf_counter(), 500, 0, 0
        number = secrets.token_hex(8)

        async def take() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            return message

        async def give(message: Message) -> None:
            nonlocal status, went
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            went += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, take, give)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", UNKNOWN)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            self.metrics.bytes.labels("in").inc(came)
            self.metrics.bytes.labels("out").inc(went)
            facts = {"request": number, "method": scope["method"], "route": route, "status": status}
            LOG.info("request", extra={"facts": {**facts, "seconds": round(seconds, 4), "in": came, "out": went}})


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, what happened, and its facts."""

    def format(self, record: logging.LogRecord) -> str:
        time_utc = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts, event = getattr(record, "facts", {}), str(record.msg)
        if record.name == "voxsam.weights":
            event = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                facts = {"why": f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"}
        return json.dumps({"time": time_utc, "level": record.levelname.lower(), "event": event.strip(), **facts})


def log_to_stderr() -> None:
    """Log to stderr as JSON lines: the server's log, what the warm-up chose on a GPU, and uvicorn's warnings.

    uvicorn's arguments and tracebacks are left out, as they may contain what a client sent.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    others = {"voxsam.weights": "INFO", "uvicorn.error": "WARNING"}
    for log, least in ((LOG, "INFO"), *((logging.getLogger(name), least) for name, least in others.items())):
        log.handlers[:], log.propagate = [handler], False
        log.setLevel(least)

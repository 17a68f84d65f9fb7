"""A server in a thread, and how a client handles its answers."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from voxsam.protocols import PROTOCOLS
from voxsam.server.app import make_app
from voxsam.server.guard import make_server
from voxsam.server.settings import Settings

WAIT_S = 20.0


@contextmanager
def running(settings: Settings, model, headers: dict[str, str] | None = None) -> Iterator[httpx.Client]:
    """A client of a server that runs as long as the block; `client.service` is the server's internal state."""
    app = make_app(settings, model, protocols=PROTOCOLS)
    server = make_server(app, settings, port=0)
    server.config.timeout_graceful_shutdown = 2
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as client:
        client.service = app.state.service  # type: ignore[attr-defined]
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the server did not end"


@contextmanager
def served(place: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `voxsam serve` with `place`/scans and the model `place`/stub.safetensors in a process; yields its address."""
    known = ["--port", "0", "--model", str(place / "stub.safetensors"), "--state", str(place / "state")]
    command = [sys.executable, "-m", "voxsam.cli", "serve", str(place / "scans"), *known, "--threads", "1", *options]
    environment = {**os.environ, "TMPDIR": str(place / "tmp")}
    with (
        (place / "server.log").open("a") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout
            address = re.search(r"http://\S+/", process.stdout.readline())
            assert address, (place / "server.log").read_text()[-2000:]
            yield process, address[0]
        finally:
            process.kill()


def wait_until(condition, limit_s: float = WAIT_S) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def opened(client: httpx.Client, source: dict | None = None) -> str:
    """Open the phantom, and return the session's id."""
    answer = client.post("/api/sessions", json={"source": source or {"folder": "0", "path": "ct.nii.gz"}})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def point(index, positive: bool = True) -> dict:
    return {"prompts": [{"kind": "point", "index": list(map(int, index)), "positive": positive}]}


def post(client: httpx.Client, session: str, action: str, body: dict | None = None) -> dict:
    answer = client.post(f"/api/sessions/{session}/{action}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def box_of(answer: dict) -> tuple[slice, ...]:
    return tuple(map(slice, answer["changed"]["low"], answer["changed"]["high"]))


def labels_of(answer: dict) -> np.ndarray:
    """The labels of the answer's box."""
    shape = [s.stop - s.start for s in box_of(answer)]
    return np.frombuffer(zlib.decompress(base64.b64decode(answer["labels"])), np.uint8).reshape(shape, order="F")


def paste(mask: np.ndarray, answer: dict) -> None:
    """Put the labels of an answer's box where they belong, as a client does."""
    mask[box_of(answer)] = labels_of(answer)


def error_of(answer: httpx.Response) -> dict:
    """The error of a refusal, checked for its form: one line, three parts, no internals."""
    error = answer.json()["error"]
    assert set(error) == {"message", "given", "expected", "remedy"}, error
    assert answer.json()["detail"] == error["message"]
    assert all(isinstance(text, str) and text for text in error.values()), error
    assert "\n" not in error["message"] and "Traceback" not in answer.text
    return error

"""Three hundred malformed requests and files are each refused with a reason: no traceback, hang, or file outside."""

from __future__ import annotations

import logging
import socket
import time
from itertools import islice
from urllib.parse import quote

import httpx
import pytest
from malformed import COUNT, KEY, MAKERS, Bad, three_hundred
from serving import error_of, opened, running

from voxsam.server.settings import Settings

SECRET = b"SECRET-OF-ANOTHER-PATIENT"
PATIENCE_S = 1.0
LONGEST_S = 60.0  # that any of them may take, on a busy machine: some are read in a process that is started for them


@pytest.fixture
def place(tmp_path, scans):
    """A served folder with links that lead out of it, and the files outside."""
    outside, inside = tmp_path / "outside", tmp_path / "in"
    for folder in (outside, inside):
        folder.mkdir()
    (outside / "secret.nii.gz").write_bytes(SECRET)
    (inside / "ct.nii.gz").write_bytes((scans / "ct.nii.gz").read_bytes())
    (inside / "link.nii.gz").symlink_to(outside / "secret.nii.gz")
    (inside / "linked").symlink_to(outside)
    return tmp_path


def send(client: httpx.Client, bad: Bad) -> tuple[int, bytes]:
    """Status and body of the answer; 0 if the server hung up, which it may only for what is not HTTP."""
    if bad.raw is not None:
        return send_raw(client.base_url.port, bad.raw)
    if bad.file is not None:
        name, content = bad.file
        sent = client.post(f"/api/uploads?name={quote(name)}", content=content)
        if sent.status_code != 201:
            return check(bad, sent)
        return check(bad, client.post("/api/sessions", json={"source": {"upload": sent.json()["upload"]}}))
    headers = {"content-type": "application/json", **bad.headers}
    return check(bad, client.request(bad.method, bad.path, content=bad.body, headers=headers))


def send_raw(port: int, data: bytes) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S) as connection:
        connection.sendall(data)
        connection.settimeout(PATIENCE_S)
        try:
            answer = connection.recv(65536)
        except TimeoutError:  # half a head: the server may wait for the rest
            answer = b""
        connection.settimeout(LONGEST_S)
        connection.shutdown(socket.SHUT_WR)
        answer += b"".join(iter(lambda: connection.recv(65536), b""))
    assert not answer or b"Invalid HTTP request" in answer or b'{"error":{"message":' in answer
    return (int(answer.split()[1]) if answer else 0), answer


def check(bad: Bad, answer: httpx.Response) -> tuple[int, bytes]:
    assert answer.headers.get("content-type") == "application/json", f"{bad.what}: {answer.text[:200]}"
    error_of(answer)
    return answer.status_code, answer.content


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("count", [2 * len(MAKERS), pytest.param(COUNT, marks=pytest.mark.slow)])
def test_three_hundred_malformed_requests_are_refused_with_a_reason(count, place, network, caplog):
    caplog.set_level(logging.ERROR)
    settings = Settings(
        key=KEY, folders=(place / "in",), state=place / "state", max_voxels=1 << 22, upload_bytes=1 << 24, body_s=0.2
    )
    outside, seen = tree(place / "outside"), []
    with running(settings, network, headers={"authorization": f"Bearer {KEY}"}) as client:
        session = opened(client, {"folder": "0", "path": "ct.nii.gz"})
        for bad in islice(three_hundred(7, session), count):
            start = time.monotonic()
            status, body = send(client, bad)
            assert time.monotonic() - start < LONGEST_S, f"{bad.what} took too long"
            assert 400 <= status < 500 or (status == 0 and bad.raw is not None), f"{bad.what}: {status} {body[:300]}"
            assert SECRET not in body and b"Traceback" not in body and b"root:" not in body, bad.what
            seen.append((bad.what, status))
        assert len(seen) == count
        assert len(client.service.sessions.open) == 1  # none of them took a place
        state = client.get(f"/api/sessions/{session}").json()
        assert state["revision"] == 0  # and none of them did a step
    assert tree(place / "outside") == outside and {p.name for p in place.iterdir()} == {"in", "outside", "state"}
    assert not caplog.records, caplog.text
    assert sum(status == 0 for _, status in seen) < 5, "what is no HTTP is answered so"
    wanted = {400, 401, 403, 404, 422} | ({408, 413} if count == COUNT else set())
    assert wanted <= {status for _, status in seen}

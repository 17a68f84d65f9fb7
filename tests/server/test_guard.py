"""Who gets in: hosts, origins, keys, sizes, paces; each refusal in words and with its status."""

from __future__ import annotations

import socket

import pytest
from serving import error_of, running

from voxsam.server.guard import JSON_BYTES
from voxsam.server.app import POLICY
from voxsam.server.settings import Settings

KEY = "s3cret-key"


@pytest.fixture(scope="module")
def guarded(network, tmp_path_factory):
    """A server with a key that lets one other site in and takes small uploads, slowly sent ones not at all."""
    state = tmp_path_factory.mktemp("state")
    settings = Settings(key=KEY, cors=("https://pacs.example",), upload_bytes=1000, body_s=0.5, state=state)
    with running(settings, network) as client:
        yield client


def authorised(**headers):
    return {"authorization": f"Bearer {KEY}", **headers}


@pytest.mark.parametrize("path", ["/api/info", "/metrics", "/openapi.json", "/api/sessions/abcdefgh", "/api/nothing"])
@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer wrong", f"Bearer {KEY}x", "Bearer \xff\xfe", f"Basic {KEY}"]
)
def test_without_the_key_nothing_is_told(guarded, path, key):
    answer = guarded.get(path, headers=None if key is None else {"authorization": key.encode("latin-1")})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text and "Authorization: Bearer KEY" in error_of(answer)["remedy"]


def test_with_the_key_and_where_none_is_needed(guarded):
    assert guarded.get("/api/info", headers=authorised()).status_code == 200
    assert guarded.get("/healthz").json()["status"] == "ok"
    page = guarded.get("/")
    assert page.status_code == 200 and page.headers["content-security-policy"] == POLICY
    assert page.headers["x-content-type-options"] == "nosniff" and "unsafe-eval'" in POLICY
    assert guarded.get("/api/info", headers=authorised()).headers["cache-control"] == "no-store"


def test_the_key_is_never_shown():
    assert KEY not in repr(Settings(key=KEY)) and KEY not in Settings(key=KEY).model_dump_json()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "169.254.1.1"]
)
def test_foreign_names_that_point_here_are_refused(guarded, host):
    answer = guarded.get("/healthz", headers={"host": host})
    assert answer.status_code == 403 and error_of(answer)["given"] == "a request for another host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000"])
def test_names_of_this_machine_are_taken(guarded, host):
    assert guarded.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil"])
def test_pages_of_other_sites_are_refused_even_with_the_key(guarded, origin):
    answer = guarded.post("/api/sessions", headers=authorised(origin=origin), json={"source": {"demo": True}})
    assert answer.status_code == 403 and "another site's page" in error_of(answer)["given"]
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_and_a_named_site_are_taken(guarded):
    own = f"http://127.0.0.1:{guarded.base_url.port}"
    assert guarded.get("/api/info", headers=authorised(origin=own)).status_code == 200
    answer = guarded.get("/api/info", headers=authorised(origin="https://pacs.example"))
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://pacs.example"
    exposed = answer.headers["access-control-expose-headers"]
    assert {name.strip() for name in exposed.split(",")} == {"X-Meta", "Content-Disposition", "Retry-After"}
    asked = {"origin": "https://pacs.example", "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization, content-type"
    assert guarded.options("/api/sessions", headers=asked).status_code == 200


def test_uploads_end_at_the_limit_whether_they_declare_their_size_or_not(guarded):
    def pieces():
        for _ in range(50):
            yield bytes(100)

    for content in (bytes(1001), pieces()):
        answer = guarded.post("/api/uploads?name=a.nii", content=content, headers=authorised())
        assert answer.status_code == 413 and "--upload-limit" in error_of(answer)["remedy"]
    assert not list(guarded.service.store.uploads.iterdir())
    first = guarded.post("/api/uploads?name=a.nii", content=bytes(600), headers=authorised()).json()
    again = f"/api/uploads?name=b.nii&upload={first['upload']}"
    assert guarded.post(again, content=bytes(401), headers=authorised()).status_code == 413
    second = guarded.post(again, content=bytes(400), headers=authorised()).json()
    assert (second["files"], second["bytes"]) == (2, 1000)
    assert guarded.post(again, content=b"1", headers=authorised()).status_code == 413


def test_other_bodies_are_limited_too(guarded):
    answer = guarded.post("/api/sessions", content=b" " * (JSON_BYTES + 1), headers=authorised())
    assert answer.status_code == 413 and f"{JSON_BYTES:,}" in error_of(answer)["expected"]


@pytest.mark.parametrize("path", ["/api/sessions", "/api/uploads?name=a.nii"])
def test_a_body_that_stops_coming_is_not_waited_for(guarded, path):
    with socket.create_connection(("127.0.0.1", guarded.base_url.port), timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-length: 500\r\n"
        connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + b'{"source"')
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()  # until the server closes it
    assert answer.startswith("HTTP/1.1 408") and "a body that paused" in answer

"""Who is let in: hosts, origins, keys, sizes, rates; each refusal has its message and status."""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from serving import error_of, running, wait_until
from starlette.testclient import TestClient

from voxsam.errors import InputError
from voxsam.protocols import PROTOCOLS
from voxsam.server import guard
from voxsam.server.app import POLICY, make_app
from voxsam.server.guard import JSON_BYTES, Guard
from voxsam.server.sessions import Memory
from voxsam.server.settings import Settings

KEY = "s3cret-key"


@pytest.fixture(scope="module")
def guarded(network, tmp_path_factory):
    """A server with a key, which allows one other origin and small uploads, but none that are sent slowly."""
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
def test_without_the_key_nothing_is_said(guarded, path, key):
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


# Whichever way the application is mounted


@pytest.fixture(scope="module")
def app(network, tmp_path_factory):
    settings = Settings(key=KEY, host="0.0.0.0", state=tmp_path_factory.mktemp("app"))
    app = make_app(settings, network, protocols=PROTOCOLS)
    yield app
    app.state.service.close()


def mounted(app, how: str) -> TestClient:
    """The application at /voxsam, mounted in another one or by root_path."""
    if how == "root_path":
        return TestClient(app, root_path="/voxsam")
    outer = FastAPI()
    outer.mount("/voxsam", app)
    return TestClient(outer)


def paths_of(app) -> list[tuple[str, str]]:
    """Every route: its method, and a path that it takes."""
    described = app.openapi()["paths"]
    return [(method, re.sub(r"{\w+}", "a" * 24, path)) for path, of in described.items() for method in of]


@pytest.mark.parametrize("how", ["sub-application", "root_path"])
def test_every_route_wants_the_key_under_a_prefix(app, how):
    client = mounted(app, how)
    routes = [*paths_of(app), ("get", "/openapi.json"), ("get", "/nothing"), ("get", "/assets/../api/info")]
    assert len(routes) > 30
    for method, path in routes:
        answer = client.request(
            method, f"/voxsam{path}", content=b'{"x":', headers={"content-type": "application/json"}
        )
        assert answer.status_code == (200 if path in ("/healthz", "/auth/") else 401), f"{method} {path}: {answer.text}"
    assert client.get("/voxsam/api/info", headers=authorised()).status_code == 200


@pytest.mark.parametrize("how", ["sub-application", "root_path"])
def test_bodies_have_the_limits_of_their_routes_under_a_prefix(app, how):
    client = mounted(app, how)
    large = b" " * (JSON_BYTES + 1)
    assert client.post("/voxsam/api/sessions", content=large, headers=authorised()).status_code == 413
    assert client.post("/voxsam/set_image", content=large, headers=authorised()).status_code == 410  # read, no lease


def test_a_body_is_not_waited_for_without_the_key(guarded):
    for path in ("/claim", "/add_point_interaction", "/api/sessions", "/set_image"):
        with socket.create_connection(("127.0.0.1", guarded.base_url.port), timeout=10) as connection:
            head = (
                f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 900\r\n"
            )
            connection.sendall(f"{head}\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401"), path


@pytest.mark.parametrize("key", ["", "  ", "schlüssel", "ends ", "tab\t", "new\nline"])
def test_a_key_that_no_header_can_show_is_refused_at_the_start(key):
    with pytest.raises(InputError, match="make one with: openssl rand -hex 16"):
        Settings(key=key)


# Hosts: by address, not by spelling


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("127.1", True), ("localhost", True), ("::1", True)]
    + [("0.0.0.0", False), ("::", False), ("192.0.2.7", False), ("name.invalid", False), ("\udcff", False)],
)
def test_whether_only_this_machine_reaches_it_follows_from_the_address(host, local):
    assert Settings(host=host).is_local is local


def answer_to(settings: Settings, **headers: str) -> int:
    """The status of an answer to a request with these headers, from the guard alone."""
    app = Guard(PlainTextResponse("in"), settings, Memory(1 << 30), {"/"})
    return TestClient(app).get("/", headers=headers).status_code


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.2", "127.1", "::", "192.0.2.7"])
def test_without_a_key_foreign_names_are_refused_for_every_address(host):
    settings = Settings(host=host)
    assert answer_to(settings, host="attacker.example") == 403
    assert answer_to(settings, host="attacker.example", origin="http://attacker.example") == 403
    for name in ("localhost", "LOCALHOST.:8000", "127.0.0.1:8000", "[::1]"):
        assert answer_to(settings, host=name) == 200
    assert answer_to(Settings(host=host, hosts=("scans.example",)), host="Scans.example:80") == 200


def test_a_name_or_another_address_of_this_machine_is_taken_where_others_reach_it():
    everywhere = Settings(host="0.0.0.0")
    assert answer_to(everywhere, host=socket.gethostname()) == 200
    assert answer_to(everywhere, host="192.0.2.7:8000") == 200  # an address cannot be rebound
    assert answer_to(Settings(), host="192.0.2.7") == 403  # but nobody reaches a local server by it
    assert answer_to(Settings(host="0.0.0.0", key=KEY), host="behind.proxy.example") == 200  # the key decides


@pytest.mark.parametrize("origin", ["http://[::1", "https://", "null", "file://", "http://attacker.example"])
def test_an_origin_that_is_no_address_is_refused_too(origin):
    assert answer_to(Settings(host="0.0.0.0"), host="localhost", origin=origin) == 403
    assert answer_to(Settings(host="0.0.0.0", key=KEY), host="localhost", origin=origin) == 403


# What a client may hold


def test_a_body_that_trickles_is_not_waited_for(guarded):
    with socket.create_connection(("127.0.0.1", guarded.base_url.port), timeout=10) as connection:
        head = (
            f"POST /api/sessions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-length: 500\r\n"
        )
        connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode())
        for _ in range(60):  # each pause is short enough
            time.sleep(0.1)
            try:
                connection.sendall(b" ")
            except OSError:
                break
        else:
            pytest.fail("it went on for 6 s")


def test_bodies_take_memory_as_they_come_and_give_it_back(network, tmp_path):
    settings = Settings(state=tmp_path, memory_bytes=4 << 20)
    with running(settings, network) as client:
        memory = client.service.sessions.memory
        answer = client.post("/api/sessions", content=b" " * (1 << 20))
        assert answer.status_code == 503 and "MiB together" in error_of(answer)["expected"]
        assert client.post("/api/sessions", content=b" " * (1 << 16)).status_code == 422  # a small one: for nothing
        wait_until(lambda: memory.taken == 0)


def test_silent_connections_do_not_shut_others_out(network, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MAX_CONNECTIONS", 20)
    with running(Settings(state=tmp_path, head_s=60), network) as client:
        held = []
        for n in range(60):
            held.append(socket.create_connection(("127.0.0.1", client.base_url.port), timeout=5))
            if n % 2:
                held[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ")  # half a head
        for _ in range(3):
            assert httpx.get(client.base_url.join("/healthz"), timeout=5).status_code == 200
        assert client.get("/api/info").status_code == 200
        assert sum(is_closed(connection) for connection in held) >= 40
        for connection in held:
            connection.close()


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"GET"])
def test_a_head_that_does_not_come_is_not_waited_for(network, tmp_path, sent):
    with running(Settings(state=tmp_path, head_s=0.5), network) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=10) as connection:
            connection.sendall(sent)
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
        # also between two requests of one connection
        with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /h")
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""


def test_half_of_the_files_are_left_for_the_work(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 1024))
    assert guard.max_connections() == 128
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert guard.max_connections() == guard.MAX_CONNECTIONS


# The page with its engine in the browser


def test_the_page_without_a_server_is_served_beside_the_other_without_a_key(network, tmp_path):
    (tmp_path / "assets").mkdir()
    for name in ("index.html", "service-worker.js", "assets/a.js"):
        (tmp_path / name).write_text(f"here is {name}")
    with running(Settings(key="secret", web=tmp_path), network) as client:
        assert client.get("/local/").text == "here is index.html"
        assert client.get("/local/assets/a.js").headers.get("cache-control") != "no-store"
        assert client.get("/local/service-worker.js").headers["cache-control"] == "no-store"
        assert client.get("/local/../pyproject.toml").status_code in (401, 404)
        assert client.get("/api/info").status_code == 401
        assert client.get("/api/info", headers={"Authorization": "Bearer secret"}).json()["local"] is True


def test_a_folder_without_that_page_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder that `make web` builds"):
        Settings(web=tmp_path)

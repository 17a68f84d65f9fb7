"""The protocol's leases with its real client: places, keys, heartbeats, time-outs; bodies that are not arrays."""

from __future__ import annotations

import threading
import time

import httpx
import numpy as np
import pytest
from nnInteractive.inference.remote import ServerAtCapacityError, SessionExpiredError, remote_session
from nnInteractive.inference.remote.serialization import pack_array
from nninteractive_server import RemoteSession, running

from voxsam.server.saved import SavedSession

IMAGE = np.random.default_rng(0).normal(0, 100, (20, 21, 22)).astype(np.float32)


@pytest.fixture
def server(network):
    with running(network, capacity=2, idle_s=600, alive_s=60, upload_bytes=1 << 20) as server:
        yield server


def test_a_full_server_says_so_and_a_closed_client_makes_room(server):
    full = pytest.raises(ServerAtCapacityError, match="2 open sessions; expected a free place")
    with server.client(), server.client(), full:
        RemoteSession(server.url)
    with server.client() as client:
        assert client.ping() and len(server.sessions.open) == 1
    assert not server.sessions.open


def test_the_answer_of_a_full_server_says_when_to_come_back(server):
    with server.client(), server.client():
        answer = httpx.post(f"{server.url}/claim")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "10"


def test_a_client_learns_its_times(server):
    with server.client() as client:
        assert (client.idle_timeout_seconds, client.liveness_timeout_seconds) == (600, 60)
        server.ahead_s = 50
        assert 549 < client.lease_status()["remaining_seconds"] < 551
        assert 549 < client.heartbeat() < 551


def test_heartbeats_keep_a_client_alive_until_it_is_idle(server):
    with server.client(IMAGE) as client:
        for server.ahead_s in range(50, 600, 50):
            client.heartbeat()
        assert 0 < client.heartbeat() < 51
        client.reset_interactions()  # a use
        assert client.heartbeat() > 599
        for server.ahead_s in range(600, 1150, 50):
            client.heartbeat()
        server.ahead_s = 1151
        with pytest.raises(SessionExpiredError, match="a lease that is over"):
            client.heartbeat()
        with pytest.raises(SessionExpiredError, match="connect and send the image again"):
            client.add_point_interaction((1, 2, 3), True)


def test_a_client_that_died_gives_its_place_back(server):
    dead = RemoteSession(server.url)
    dead.set_image(IMAGE[None])
    dead._stop_heartbeat.set()
    assert len(server.sessions.open) == 1
    server.ahead_s = 61
    deadline = time.monotonic() + 10
    while server.sessions.open and time.monotonic() < deadline:
        time.sleep(0.05)  # the server looks every second
    assert not server.sessions.open and server.sessions.expired == 1


def test_the_clients_own_heartbeats_reach_the_server(server, monkeypatch):
    monkeypatch.setattr(remote_session, "max", lambda floor, half: 0.05, raising=False)  # not every 5 s at most
    with server.client():
        (place,) = server.sessions.open
        before, deadline = place.seen, time.monotonic() + 5
        while place.seen == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert place.seen > before and place.used < place.seen


def test_leases_are_of_this_protocol_only(server):
    place = server.sessions.claim(SavedSession)
    answer = httpx.post(f"{server.url}/heartbeat", headers={"X-Lease-Token": place.id})
    assert answer.status_code == 410
    assert httpx.post(f"{server.url}/release", headers={"X-Lease-Token": place.id}).json() == {"released": True}
    assert server.sessions.open == (place,)


def test_release_can_be_repeated_and_other_calls_need_a_lease(server):
    assert httpx.post(f"{server.url}/release").json() == {"released": True}
    assert httpx.post(f"{server.url}/undo", json={}).status_code == 410
    assert httpx.post(f"{server.url}/set_image", content=b"x").status_code == 410


def test_a_server_with_a_key_wants_it(network):
    with running(network, key="a long secret") as server:
        for key in (None, "another"):
            with pytest.raises(httpx.HTTPStatusError, match="401"):
                RemoteSession(server.url, api_key=key)
        answer = httpx.get(f"{server.url}/capabilities", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401 and answer.json()["detail"].startswith(
            "a wrong key; expected the server's key"
        )
        assert not server.sessions.open
        with server.client(IMAGE, key="a long secret") as client:
            assert client.add_point_interaction((10, 11, 12), True) is not None


def test_a_scan_beyond_the_servers_memory_is_refused_like_a_full_server(network):
    full = pytest.raises(ServerAtCapacityError, match="start the server with more --memory")
    with running(network, memory_bytes=20_000) as server, server.client() as client, full:
        client.set_image(IMAGE[None])


# Bodies that are not arrays


def post(client, path: str, body: bytes, meta: str = "{}") -> httpx.Response:
    kind = {"X-Meta": meta} if meta else {"Content-Type": "application/json"}
    return client._http.post(path, content=body, headers=kind)


GOOD = pack_array(IMAGE[None])
STROKE = pack_array(np.ones((1, 2, 3), np.uint8))
PLACED = '{"include_interaction": true, "interaction_bbox": [[0, 1], [0, 2], [0, 3]]}'


@pytest.mark.parametrize(
    ("path", "body", "meta", "status", "words"),
    [
        ("/set_image", b"", "{}", 400, "too short for its header"),
        ("/set_image", b"PK\3\4" * 100, "{}", 400, "begins with"),
        ("/set_image", GOOD[:-7], "{}", 400, "ends within a chunk"),
        ("/set_image", GOOD + b"x", "{}", 400, "its header claims"),
        ("/set_image", GOOD[:15] + b"\xff\xff\xff\x7f" + GOOD[19:], "{}", 400, "one channel"),
        ("/set_image", GOOD[:23] + b"\xff\xff\xff\x7f" + GOOD[27:], "{}", 413, "at most 536,870,912"),
        ("/set_image", pack_array(np.zeros((1, 600, 600, 600), np.int8)), "{}", 413, "at most 1,048,576 bytes"),
        ("/set_image", GOOD * 40, "{}", 413, "a body that is too large"),
        ("/set_image", GOOD, "{'not': 'JSON'}", 400, "the header X-Meta"),
        ("/set_image", GOOD, "[]", 400, "the header X-Meta"),
        ("/set_image", GOOD, '{"image_properties": {"affine": [[1]]}}', 400, "affine"),
        ("/add_scribble_interaction", STROKE[:-3], PLACED, 400, "ends within a chunk"),
        ("/add_scribble_interaction", STROKE, "{}", 400, "include_interaction: Field required"),
        ("/add_scribble_interaction", GOOD, PLACED, 400, r"of shape (1, 20, 21, 22); expected shape (1, 2, 3)"),
        ("/add_lasso_interaction", b"NNIA", PLACED, 400, "too short"),
        ("/add_lasso_interaction", STROKE, PLACED.replace("3]", '"x"]'), 400, "interaction_bbox"),
        ("/add_initial_seg_interaction", STROKE, "{}", 400, "an initial mask of shape (1, 2, 3)"),
        ("/add_point_interaction", b"{", "", 422, "JSON"),
        ("/add_point_interaction", b'{"coordinates": [1, 2, 3]}', "", 422, "include_interaction"),
        ("/add_bbox_interaction", b'{"bbox_coords": [[1, 2]], "include_interaction": true}', "", 422, "bbox_coords"),
        ("/set_target_buffer", b'{"shape": [1, 2, -3], "dtype": "uint8"}', "", 422, "shape.2"),
        ("/set_target_buffer", b'{"shape": [1, 2, 3], "dtype": "O"}', "", 400, "bool or an integer type"),
        ("/set_target_buffer", b'{"shape": [1, 2, 3], "dtype": "({"}', "", 400, "bool or an integer type"),
        ("/set_target_buffer", b'{"shape": [1, 2, 3], "dtype": ","}', "", 400, "bool or an integer type"),
    ],
)
def test_malformed_requests_are_answered_in_one_line_and_the_work_goes_on(
    server_with_scan, path, body, meta, status, words
):
    client = server_with_scan
    answer = post(client, path, body, meta)
    assert answer.status_code == status, answer.text
    assert (
        words in answer.text
        and answer.json()["detail"] == answer.json()["error"]["message"]
        and "\n" not in answer.text
    )
    assert client.add_point_interaction((10, 11, 12), True) is not None


@pytest.fixture(scope="module")
def server_with_scan(network):
    with running(network, upload_bytes=1 << 20) as server, server.client(IMAGE) as client:
        yield client


def test_steps_of_many_clients_at_once_are_answered_right(network):
    """Eight clients at once, each with its own point: each gets what it would get alone."""
    points = [(4 + n, 5 + n, 18 - n) for n in range(8)]
    with running(network) as server:
        alone = [shown(server, [point]) for point in points]
        together: dict[int, list] = {}
        threads = [
            threading.Thread(target=lambda n=n: together.update({n: shown(server, [points[n]] * 3)})) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(together) == 8
        for n in range(8):
            for mask in together[n]:
                np.testing.assert_array_equal(mask, alone[n][0])


def shown(server, points: list) -> list[np.ndarray]:
    """A client's buffer after each of its points, each of which is for an object of its own."""
    masks = []
    with server.client(IMAGE) as client:
        for point in points:
            client.reset_interactions()
            client.add_point_interaction(point, True)
            masks.append(client.target_buffer.copy())
    return masks

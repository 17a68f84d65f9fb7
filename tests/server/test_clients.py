"""Eight clients at once: each gets what it would get alone; one that is killed gives its place back."""

from __future__ import annotations

import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest
from serving import opened, paste, point, post, running, wait_until

from voxsam.interactive.session import Session
from voxsam.io import read_volume, write_volume
from voxsam.server.settings import Settings
from voxsam.testing import stub_scan
from voxsam.volume import Volume

CLIENTS, CLICKS = 8, 4

# A client in a process of its own: it reports its first click, then listens and clicks until it is killed.
CLIENT = """
import sys, httpx
with httpx.Client(base_url=sys.argv[1], timeout=60) as client:
    sid = client.post("/api/sessions", json={"source": {"folder": "0", "path": "0.nii.gz"}}).json()["id"]
    click = {"prompts": [{"kind": "point", "index": [12, 10, 7]}]}
    with client.stream("GET", f"/api/sessions/{sid}/events"):
        while True:
            client.post(f"/api/sessions/{sid}/prompts", json=click).raise_for_status()
            print("clicked", flush=True)
"""


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A folder with a scan for every client, and the scans as they are read from there."""
    folder, scans = tmp_path_factory.mktemp("eight"), []
    for number in range(CLIENTS):
        scan = stub_scan(number).scan
        part = Volume(scan.array[10:34, 8:28, 4:18], scan.grid.crop((10, 8, 4), (24, 20, 14)))  # one crop holds it
        write_volume(part, folder / f"{number}.nii.gz")
        scans.append(read_volume(folder / f"{number}.nii.gz"))
    return folder, scans


def places(number: int) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(number)
    return [tuple(rng.integers((6, 5, 4), (18, 15, 10)).tolist()) for _ in range(CLICKS)]


def test_eight_clients_at_once_get_what_each_would_get_alone(eight, network, tmp_path):
    """With so little memory that they evict each other's features, and with undo in between."""
    folder, scans = eight
    settings = Settings(
        folders=(folder,), state=tmp_path, memory_bytes=CLIENTS * (scans[0].array.nbytes + 100_000) + 400_000
    )
    got: dict[int, list[np.ndarray]] = {}
    start = threading.Barrier(CLIENTS)

    def work(number: int, address: httpx.URL) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            sid = opened(client, {"folder": "0", "path": f"{number}.nii.gz"})
            mask, seen = np.zeros(scans[number].grid.shape, np.uint8), []
            start.wait(60)
            for place in places(number):
                paste(mask, post(client, sid, "prompts", point(place)))
                seen.append(mask.copy())
            paste(mask, post(client, sid, "undo"))
            got[number] = [*seen, mask]

    with running(settings, network) as client:
        threads = [threading.Thread(target=work, args=(n, client.base_url)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert client.service.sessions.forgotten > 0
        assert client.service.sessions.nbytes <= settings.memory_bytes + network_features(client)
    assert sorted(got) == list(range(CLIENTS))
    for number, masks in got.items():
        alone = Session(network, scans[number])
        wanted = [alone.click(place).array for place in places(number)]
        for mask, want in zip(masks, [*wanted, alone.undo().array], strict=True):
            np.testing.assert_array_equal(mask, want, err_msg=f"client {number}")
    assert len({masks[0].tobytes() for masks in got.values()}) == CLIENTS  # no two have the same mask to mix up


def network_features(client) -> int:
    """The session used last keeps its features, however little memory there is."""
    return max(slot.features_bytes for slot in client.service.sessions.open)


def test_a_killed_client_leaves_its_place_within_the_time_out(eight, network, tmp_path):
    settings = Settings(folders=(eight[0],), state=tmp_path, alive_s=0.5)
    with running(settings, network) as client:
        command = [sys.executable, "-c", CLIENT, str(client.base_url)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stdout.readline() == "clicked\n"
            assert len(client.service.sessions.open) == 1
            process.kill()
        wait_until(lambda: not client.service.sessions.open, 10)
        assert client.service.sessions.expired == 1 and client.service.sessions.nbytes == 0

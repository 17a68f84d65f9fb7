"""Attacks on the memory of a real server: it keeps to --memory, and an honest client is served all the time.

VOXSAM_MEMORY_MIB=1024 pytest tests/server/test_server_memory.py -m slow gives the figures of docs/reliability.md: the
amount of data sent grows with it.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import blosc2
import httpx
import nibabel as nib
import numpy as np
import psutil
import pytest
from serving import opened, point, served

from voxsam.io import write_volume
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

pytestmark = pytest.mark.slow
MEMORY_MIB = int(os.environ.get("VOXSAM_MEMORY_MIB", "128"))
SCALE = max(1, MEMORY_MIB // 128)
# Half as much again for the work at hand, as allocators keep some of what is freed; at least a reader's libraries.
ALLOWED_MIB = max(MEMORY_MIB * 3 // 2, MEMORY_MIB + 256)
PATIENCE_S = 300.0  # of every client for one answer, on a busy machine


class Peak(threading.Thread):
    """The peak memory of a process and its children together, in MiB."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.mib, self.over = psutil.Process(process), 0, threading.Event()
        self.start()

    def now(self) -> int:
        found = self.process.memory_info().rss
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found += child.memory_info().rss
        return found >> 20

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.mib = max(self.mib, self.now())


class Honest(threading.Thread):
    """A client that clicks and undoes, again and again, and notes what went wrong."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.over = address, threading.Event()
        self.answered, self.wrong = 0, []
        self.begun = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=PATIENCE_S) as client:
            session = opened(client, {"folder": "0", "path": "small.nii.gz"})
            while not self.over.is_set():
                for action, body in (("prompts", point((20, 18, 11))), ("undo", None)):
                    answer = client.post(f"/api/sessions/{session}/{action}", json=body)
                    if answer.status_code == 200:
                        self.answered += 1
                    else:
                        self.wrong.append(answer.text)
                self.begun.set()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("attacked")
    for folder in ("scans", "tmp"):
        (place / folder).mkdir()
    write_volume(stub_scan().scan, place / "scans" / "small.nii.gz")
    write_packed(place / "scans" / "wide.nii.gz", np.int64, 384 * SCALE)
    write_packed(place / "scans" / "readable.nii.gz", np.int16, 128 * SCALE)
    far = np.full((300, 300, 300), -100, np.int16)
    for at in (30, 250):
        far[at : at + 16, at : at + 16, at : at + 16] = 100
    nib.save(nib.Nifti1Image(far, np.eye(4)), place / "scans" / "far.nii")
    save_model(stub_network(), place / "stub.safetensors")
    return place


def write_packed(path: Path, kind: type, slices: int) -> None:
    """Write a gzipped scan with slices of 384 x 384 voxels: the header, then one slice repeated, each a gzip member."""
    header = nib.Nifti1Image(np.broadcast_to(np.zeros((), kind), (384, 384, slices)), np.eye(4), dtype=kind).header
    piece = np.full((384, 384), -100, kind)
    piece[::7] = 50
    with path.open("wb") as file:
        file.write(gzip.compress(header.binaryblock + bytes(4)))
        file.write(gzip.compress(piece.tobytes(order="F"), 1) * slices)


@pytest.fixture(scope="module")
def attacked(place) -> Iterator[tuple[httpx.Client, Peak, Honest]]:
    with (
        served(place, "--memory", str(MEMORY_MIB / 1024)) as (process, address),
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        honest = Honest(address)
        honest.start()
        assert honest.begun.wait(PATIENCE_S)
        peak = Peak(process.pid)
        yield client, peak, honest
        honest.over.set()
        honest.join(PATIENCE_S)
        peak.over.set()
        peak.join()


def lease_of(client: httpx.Client) -> dict[str, str]:
    return {"X-Lease-Token": client.post("/claim").json()["lease_token"]}


def bombs(client: httpx.Client) -> list[int]:
    """A small image that unpacks to all of the memory, four times at once with one lease."""
    array = np.zeros((256, 256, 256), "float64")
    array[:, :, ::100] = -900
    packing = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "typesize": 8, "filters": [blosc2.Filter.NOFILTER]}
    chunk = blosc2.compress2(array.reshape(-1).view(np.uint8).data, cparams=packing)
    assert isinstance(chunk, bytes)
    shape = struct.pack("<4qI", 1, 256 * SCALE, 256, 256, SCALE)
    head = struct.pack("<4sBBBB7s", b"NNIA", 1, 1, 4, 7, b"float64") + shape
    body = head + (struct.pack("<QQ", array.nbytes, len(chunk)) + chunk) * SCALE
    lease = lease_of(client)
    return at_once(lambda: client.post("/set_image", content=body, headers=lease))


def endless(client: httpx.Client) -> list[int]:
    """Bodies larger than the memory, four at once with leases of their own."""

    def send() -> httpx.Response:
        return client.post(
            "/set_image", content=(bytes(1 << 20) for _ in range(MEMORY_MIB * 6 // 5)), headers=lease_of(client)
        )

    return at_once(send)


def unpacked(client: httpx.Client) -> list[int]:
    """A .nii.gz that unpacks to more than three times the memory."""
    source = {"source": {"folder": "0", "path": "wide.nii.gz"}}
    return at_once(lambda: client.post("/api/sessions", json=source))


def readers(client: httpx.Client) -> list[int]:
    """Scans that take more than a quarter of the memory each: as many as fit are opened."""

    def send() -> httpx.Response:
        answer = client.post("/api/sessions", json={"source": {"folder": "0", "path": "readable.nii.gz"}})
        if answer.status_code == 201:
            sessions.append(answer.json()["id"])
        return answer

    sessions: list[str] = []
    found = at_once(send)
    for session in sessions:
        client.delete(f"/api/sessions/{session}").raise_for_status()
    assert sessions, found
    return found


def scribbles(client: httpx.Client) -> list[int]:
    """Four million voxels of scribbles, each time."""
    session = opened(client, {"folder": "0", "path": "small.nii.gz"})
    voxels = np.indices((44, 36, 22)).reshape(3, -1).T.tolist()
    body = json.dumps({"prompts": [{"kind": "scribble", "voxels": voxels}] * 20}, separators=(",", ":"))
    kind = {"Content-Type": "application/json"}
    found = at_once(lambda: client.post(f"/api/sessions/{session}/prompts", content=body, headers=kind))
    client.delete(f"/api/sessions/{session}").raise_for_status()
    return found


def sparse(client: httpx.Client) -> list[int]:
    """Scribbles of two voxels, in opposite corners of a scan of 52 MiB."""
    session = opened(client, {"folder": "0", "path": "far.nii"})
    body = {"prompts": [{"kind": "scribble", "voxels": [[0, 0, 0], [299, 299, 299]]}] * 50}
    found = at_once(lambda: client.post(f"/api/sessions/{session}/prompts", json=body))
    client.delete(f"/api/sessions/{session}").raise_for_status()
    return found


def far_clicks(client: httpx.Client) -> list[int]:
    """Two clicks far apart, and all labels of the scan."""
    session = opened(client, {"folder": "0", "path": "far.nii"})
    clicks = {"prompts": [*point((38, 38, 38))["prompts"], *point((258, 258, 258))["prompts"]]}
    found = [client.post(f"/api/sessions/{session}/prompts", json=clicks).status_code]
    found += at_once(lambda: client.get(f"/api/sessions/{session}/labels?box=full"))
    client.delete(f"/api/sessions/{session}").raise_for_status()
    return found


def at_once(send: Callable[[], httpx.Response], times: int = 4) -> list[int]:
    """The statuses; 0: the server hung up before it had received everything."""

    def status(_: int) -> int:
        try:
            return send().status_code
        except httpx.TransportError:
            return 0

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(status, range(times)))


@pytest.mark.parametrize("attack", [bombs, endless, unpacked, readers, scribbles, sparse, far_clicks])
def test_an_attack_on_the_memory_is_refused_and_others_are_answered(attacked, attack):
    client, peak, honest = attacked
    start, answered = peak.now(), honest.answered
    peak.mib = 0
    statuses = attack(client)
    taken = peak.mib - start
    print(f"{attack.__name__}: +{taken} MiB, {statuses}, {honest.answered - answered} honest answers meanwhile")
    assert taken < ALLOWED_MIB, f"{attack.__name__}: {taken} MiB more, {statuses}"
    assert set(statuses) <= {0, 200, 201, 400, 413, 429, 503}, statuses
    if attack in (bombs, endless, unpacked, sparse):
        assert not {200, 201} & set(statuses), statuses
    end = time.monotonic() + PATIENCE_S
    while honest.answered == answered and time.monotonic() < end:
        time.sleep(0.1)
    assert honest.answered > answered and not honest.wrong, honest.wrong[:1]

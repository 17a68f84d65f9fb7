"""The server, killed at random again and again: what it confirmed is kept, nothing is half written or left behind.

VOXSAM_KILLS=200 pytest tests/server/test_server_killed.py is the long run of docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import stat
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from serving import point, served, wait_until

from voxsam.io import write_volume
from voxsam.server.store import Store
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="SIGKILL")]
START_S = 120.0
KILLS = int(os.environ.get("VOXSAM_KILLS", "6"))


class Work(threading.Thread):
    """A client that opens, clicks, undoes, uploads and downloads until the server is gone; it notes each answer."""

    def __init__(self, address: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.address, self.random = address, random.Random(seed)
        self.sessions: dict[str, dict] = {}  # the last answer of each
        self.maybe: set[str] = set()  # a step was sent, and perhaps done
        self.answers = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=60) as client:
            try:
                while True:
                    self.act(client)
                    self.answers += 1
            except httpx.HTTPError:
                pass

    def wait(self, answers: int) -> None:
        """Wait until there are this many."""
        wait_until(lambda: self.answers >= answers, START_S)

    def act(self, client: httpx.Client) -> None:
        chance = self.random.random()
        if not self.sessions or chance < 0.1:
            name = self.random.choice(["ct.nii.gz", "ct.nrrd"])  # the second one is read in a process of its own
            source = {"folder": "0", "path": name}
            if chance < 0.05:
                content = client.get("/openapi.json").content * self.random.randrange(1, 40)
                client.post("/api/uploads?name=x.bin", content=content).raise_for_status()
            answer = client.post("/api/sessions", json={"source": source})
            if answer.status_code == 503:
                client.delete(f"/api/sessions/{self.leave()}").raise_for_status()
                return
            self.sessions[answer.raise_for_status().json()["id"]] = answer.json()
            return
        session = self.random.choice(list(self.sessions))
        if chance < 0.2:
            client.get(f"/api/sessions/{session}/download/mask.nii.gz").raise_for_status()
            return
        action, body = self.random.choice(
            [("prompts", point(self.random.choice([(20, 18, 11), (15, 20, 9), (25, 14, 12)])))] * 3
            + [("undo", None), ("redo", None), ("objects", None), ("reset", None)]
        )
        self.maybe.add(session)
        answer = client.post(f"/api/sessions/{session}/{action}", json=body).raise_for_status()
        self.maybe.discard(session)
        self.sessions[session] = answer.json()

    def leave(self) -> str:
        session = self.random.choice(list(self.sessions))
        del self.sessions[session]
        self.maybe.discard(session)
        return session


def test_what_was_answered_is_there_after_each_kill_and_nothing_else_is(tmp_path):
    for folder in ("scans", "tmp"):
        (tmp_path / folder).mkdir()
    for name in ("ct.nii.gz", "ct.nrrd"):
        write_volume(stub_scan().scan, tmp_path / "scans" / name)
    save_model(stub_network(), tmp_path / "stub.safetensors")
    chance, steps = random.Random(5), 0
    for kill in range(KILLS):
        with served(tmp_path) as (process, address):
            work = Work(address, kill)
            work.start()
            work.wait(chance.randrange(2, 12))
            time.sleep(chance.uniform(0, 0.5))
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        work.join(60)
        assert not psutil.wait_procs(children, timeout=20)[1], "a reader outlived its server"
        assert not list((tmp_path / "tmp").iterdir())
        check_files(tmp_path / "state")
        with served(tmp_path) as (_, address), httpx.Client(base_url=address, timeout=120) as client:
            for session, last in chance.sample(list(work.sessions.items()), min(3, len(work.sessions))):
                steps += last["revision"]
                found = client.get(f"/api/sessions/{session}").raise_for_status().json()
                if session in work.maybe:  # the step that was cut off is there or not
                    assert found["revision"] in (last["revision"], last["revision"] + 1)
                    continue
                for key in ("revision", "objects", "current", "can_undo", "can_redo", "name"):
                    assert found[key] == last[key], (kill, key)
            for session in work.sessions:
                client.delete(f"/api/sessions/{session}").raise_for_status()
    assert steps > 0


def check_files(state: Path) -> None:
    """Check that every work can be read, that only the owner can, and that the next server removes unfinished files."""
    store = Store(state)
    try:
        for file in store.works.glob("*.jsonl"):
            if not file.name.startswith("."):
                store.load(file.stem)
        assert not list(store.scratch.iterdir())
        for path in (*store.works.iterdir(), *store.uploads.glob("*/*")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    finally:
        store.close()

"""A project's server and its learning process, killed at random: nothing is lost, no broken model is offered.

VOXSAM_KILLS=20 pytest tests/server/test_project_killed.py is the long run of docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import threading
import time

import httpx
import psutil
import pytest
from serving import point, wait_until

from tests.lab.learning.small import CENTRE, start_model, write_scans
from tests.page.running import ProjectServer
from tests.page.test_page_project import LEARNS
from voxsam.io import read_volume
from voxsam.project import Project
from voxsam.weights.checkpoint import load_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="SIGKILL")]
KILLS = int(os.environ.get("VOXSAM_KILLS", "4"))
ACT_S = 600.0  # of some requests, on a machine that is busy
SCANS = 7


class Reader(threading.Thread):
    """Works through the project, learns, accepts and reverts offers until the server is gone; notes each answer."""

    def __init__(self, address: str, seed: int, kept: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.address, self.random = address, random.Random(seed)
        self.kept = kept  # clicks of the cases that are done
        self.maybe: set[str] = set()  # scans on which a request was sent, and perhaps done
        self.answers = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=120) as client:
            try:
                while True:
                    self.act(client)
                    self.answers += 1
            except httpx.TransportError:
                pass

    def wait(self, answers: int) -> None:
        """Wait until there are this many."""
        wait_until(lambda: self.answers >= answers, ACT_S)

    def act(self, client: httpx.Client) -> None:
        chance = self.random.random()
        if chance < 0.15 and len(self.kept) >= 5:
            client.post("/api/project/learning").raise_for_status()
            return
        if chance < 0.3:
            found = client.get("/api/project").raise_for_status().json()
            if found["offered"]:
                client.post("/api/project/model", json={"model": found["offered"]}).raise_for_status()
            elif found["can_go_back"]:
                client.post("/api/project/model/back").raise_for_status()
            return
        answer = client.post("/api/project/next", json={"reader": "anna"}).raise_for_status()
        case = answer.json()["case"] or f"s{self.random.randrange(SCANS)}"
        self.maybe.add(case)
        opened = client.post("/api/sessions", json={"source": {"case": case, "reader": "anna"}})
        session = opened.raise_for_status().json()["id"]
        for _ in range(self.random.randrange(1, 3)):
            client.post(f"/api/sessions/{session}/prompts", json=point(CENTRE)).raise_for_status()
        if self.random.random() < 0.7:
            done = client.post("/api/project/done", json={"session": session, "seconds": 1}).raise_for_status()
            self.kept[case] = done.json()["clicks"]
        self.maybe.discard(case)


def test_what_was_answered_is_there_after_each_kill_and_no_broken_model_is_offered(tmp_path):
    write_scans(tmp_path / "scans", SCANS)
    project = Project.new(tmp_path / "project", tmp_path / "scans", str(start_model(tmp_path / "first.safetensors")))
    chance, kept, learnings = random.Random(5), {}, []
    for kill in range(KILLS):
        server = ProjectServer(tmp_path / "state", project.folder, LEARNS)
        server.start()
        try:
            reader = Reader(server.address, kill, kept)
            reader.start()
            reader.wait(chance.randrange(2, 12))
            time.sleep(chance.uniform(0, 1))
            learnings += psutil.Process(server.pid).children(recursive=True)
            for process in chance.sample([*learnings, None], chance.randrange(len(learnings) + 2)):
                if process is None:
                    server.stop()
                elif process.is_running():
                    process.kill()
            time.sleep(chance.uniform(0, 0.5))
        finally:
            server.close()
        reader.join(ACT_S)
        check(project, kept, reader.maybe)
    for process in learnings:
        if process.is_running():
            process.kill()
    psutil.wait_procs(learnings, timeout=20)
    assert kept and project.learning_now() is None


def check(project: Project, kept: dict[str, int], maybe: set[str]) -> None:
    """Check that cases and models are as the answers said."""
    with project.locked():
        pass
    assert not (project.folder / ".pending").exists()
    for case, clicks in kept.items():
        reading = project.readings(case)["anna"]
        assert len(reading.clicks) == clicks or case in maybe
        scan = project.read(case)
        mask = read_volume(project.mask_path(case, "anna"), labels=True, scan=scan)
        assert mask.array.any() and mask.grid.close_to(scan.grid)
    for model in project.models():
        assert model.state == "offered"
        load_model(project.model_source(model.name), "cpu")
    load_model(project.model_source(), "cpu")
    lines = (project.folder / "history.jsonl").read_text().splitlines()
    assert len(project.history()) >= len(lines) - 1
    for case in maybe:  # what was cut off may have been done: from now on it counts as it is
        readings = project.readings(case)
        kept.update({case: len(readings["anna"].clicks)} if readings else {})

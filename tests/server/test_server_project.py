"""A project over HTTP: each scan goes to one reader, work is kept, the next scan is preloaded, models are chosen."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from serving import error_of, labels_of, point, post, running, wait_until

from voxsam.io import read_volume, write_volume
from voxsam.project import Project
from voxsam.project.records import Gate, LearnedModel, now
from voxsam.server.errors import Full
from voxsam.server.settings import Settings
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

CLICK = (20, 18, 11)
START_S = 120.0  # of a process, on a machine that is busy
# Stands in for the learning process: it reports progress, holds the lock, and keeps a model.
LEARNS = """
import json, sys, time
from pathlib import Path
from filelock import FileLock
folder = Path(sys.argv[1])
with FileLock(folder / ".learning.lock"):
    (folder / ".learning").mkdir(exist_ok=True)
    (folder / ".learning" / "plan.json").write_text("{}")
    facts = {"stage": "part-0", "said": "part 1", "minutes": 7, "step": 1, "steps": 4, "fraction": 0.25}
    (folder / ".learning" / "progress.json").write_text(json.dumps(facts))
    while (folder / ".learning" / "plan.json").exists() and not (folder / "go").exists():
        time.sleep(0.02)
print("voxsam: ended", file=sys.stderr)
sys.exit(0 if (folder / "go").exists() else 2)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans s0 to s5, and the start model."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "scans").mkdir()
    for seed in range(6):
        write_volume(stub_scan(seed).scan, folder / "scans" / f"s{seed}.nii.gz")
    save_model(stub_network(name="first"), folder / "first.safetensors")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Project:
    return Project.new(tmp_path / "patients", made / "scans", str(made / "first.safetensors"))


@pytest.fixture
def settings(project: Project, tmp_path: Path) -> Settings:
    command = (sys.executable, "-c", LEARNS)
    return Settings(state=tmp_path / "state", project=project.folder, learn_command=command)


@pytest.fixture
def server(settings: Settings):
    with running(settings, None) as client:
        yield client


def take(client: httpx.Client, reader: str, after: str | None = None) -> str | None:
    return client.post("/api/project/next", json={"reader": reader, "after": after}).raise_for_status().json()["case"]


def begin(client: httpx.Client, case: str, reader: str) -> dict:
    answer = client.post("/api/sessions", json={"source": {"case": case, "reader": reader}})
    return answer.raise_for_status().json()


def work(client: httpx.Client, case: str, reader: str, clicks: int = 1, seconds: float = 5.0) -> dict:
    session = begin(client, case, reader)["id"]
    for n in range(clicks):
        post(client, session, "prompts", point(np.add(CLICK, (n, 0, 0))))
    answer = client.post("/api/project/done", json={"session": session, "seconds": seconds})
    return answer.raise_for_status().json()


def state(client: httpx.Client) -> dict:
    return client.get("/api/project").raise_for_status().json()


def test_scans_are_worked_through_and_kept_at_once(server, project):
    assert server.get("/api/info").json()["project"] == "patients"
    assert server.get("/api/info").json()["model"]["name"] == "first"
    assert take(server, "anna") == "s0"
    found = begin(server, "s0", "anna")
    assert (found["case"], found["name"], found["earlier"]) == ("s0", "s0", [])
    drawn = labels_of(post(server, found["id"], "prompts", point(CLICK)))
    edit = {"edits": [{"kind": "brush", "stroke": [[20, 18, 11]], "radius_mm": 20, "add": True, "axis": None}]}
    post(server, found["id"], "edits", edit)
    kept = server.post("/api/project/done", json={"session": found["id"], "seconds": 12.5}).raise_for_status().json()
    assert drawn.any() and kept["clicks"] == 1
    reading = project.readings("s0")["anna"]
    assert (reading.seconds, reading.model) == (12.5, "first")
    mask = read_volume(project.mask_path("s0", "anna"), labels=True)
    assert mask.array[20, 18, 11] and mask.volume_ml == pytest.approx(kept["volume_ml"], abs=0.001)
    assert not server.service.sessions.open, "its place is free"
    assert take(server, "anna", "s0") == "s1"
    now_ = state(server)
    assert [row["state"] for row in now_["rows"]] == ["done", "in work", *["to do"] * 4]
    assert now_["rows"][1]["reader"] == "anna" and now_["curve"] == [["s0", 1]]
    picture = server.get("/api/project/cases/s0/thumbnail")
    assert picture.content.startswith(b"\x89PNG") and picture.headers["content-type"] == "image/png"


def test_two_readers_never_get_the_same_scan(server):
    given = [take(server, reader, after) for after in (None, "s1") for reader in ("anna", "ben")]
    assert given[:2] == ["s0", "s1"] and given[2:] == ["s0", "s2"], "what was begun first, then the next free one"
    answer = server.post("/api/sessions", json={"source": {"case": "s1", "reader": "anna"}})
    assert answer.status_code == 400 and "s1, on which ben works" in error_of(answer)["given"]
    answer = server.post("/api/project/cases/s1/skip", json={"reader": "anna"})
    assert "on which ben works" in error_of(answer)["given"]
    assert not server.service.sessions.open


def test_the_next_scan_is_read_beforehand_and_its_memory_is_given_back(server):
    reader = server.service.saved.reader
    assert take(server, "anna") == "s0"
    begin(server, "s0", "anna")
    wait_until(lambda: list(reader._ahead) == ["s1"])
    read, real = [], reader._read
    reader._read = lambda path, name, *more: (read.append(name), real(path, name, *more))[1]
    assert take(server, "anna", "s0") == "s1"
    begin(server, "s1", "anna")
    wait_until(lambda: list(reader._ahead) == ["s0"])
    assert read == ["s0"], "what this reader has begun, and not what was read already"
    memory = server.service.sessions.memory
    with memory.take(memory.limit - memory.taken + 1):
        assert not reader._ahead, "what nobody has opened made room"


def test_what_was_begun_comes_back_and_what_was_done_can_be_corrected(server, project):
    first = begin(server, "s0", "anna")["id"]
    post(server, first, "prompts", point(CLICK))
    server.service.sessions.release(first)
    again = begin(server, "s0", "anna")
    assert again["id"] == first and len(again["objects"][0]["prompts"]) == 1
    server.post("/api/project/done", json={"session": first, "seconds": 3}).raise_for_status()
    before = read_volume(project.mask_path("s0", "anna"), labels=True).array
    assert server.get("/api/project/previous", params={"reader": "anna", "before": "s1"}).json() == {"case": "s0"}
    corrected = begin(server, "s0", "anna")
    answer = server.get(f"/api/sessions/{corrected['id']}/labels?box=full").json()
    np.testing.assert_array_equal(labels_of(answer), before)
    post(server, corrected["id"], "prompts", point((15, 20, 9), positive=False))
    kept = server.post("/api/project/done", json={"session": corrected["id"], "seconds": 2}).json()
    assert kept["clicks"] == 2 and project.readings("s0")["anna"].seconds == 5


def test_done_twice_is_done_once(server, project):
    """As when the answer was lost, or the server was killed before it closed the session."""
    session = begin(server, "s0", "anna")["id"]
    post(server, session, "prompts", point(CLICK))
    leave, server.service.saved.leave = server.service.saved.leave, _fail
    assert server.post("/api/project/done", json={"session": session}).status_code == 503
    server.service.saved.leave = leave
    server.service.sessions.release(session)
    first = project.readings("s0")["anna"]
    assert server.post("/api/project/done", json={"session": session}).json()["clicks"] == 1
    assert project.readings("s0")["anna"] == first
    assert begin(server, "s0", "anna")["id"] != session


async def _fail(*_: object) -> None:
    raise Full("no room", "room", "wait")


def test_an_empty_mask_is_not_done_and_can_be_skipped(server, project):
    session = begin(server, "s0", "anna")["id"]
    answer = server.post("/api/project/done", json={"session": session})
    assert "an empty mask of s0" in error_of(answer)["given"] and not project.readings("s0")
    server.post("/api/project/cases/s0/skip", json={"reader": "anna"}).raise_for_status()
    assert state(server)["rows"][0]["state"] == "skipped" and not server.service.sessions.open
    assert take(server, "anna") == "s1"
    server.post("/api/project/cases/s0/release").raise_for_status()
    assert state(server)["rows"][0]["state"] == "to do"


def test_what_cannot_be_opened_is_said_without_a_path(server, project, made):
    scans = project.scans
    (project.folder / "scans.json").write_text(
        (project.folder / "scans.json").read_text().replace(str(made), "/nowhere/secret")
    )
    answer = server.post("/api/sessions", json={"source": {"case": "s0", "reader": "anna"}})
    assert answer.status_code == 404 and "whose file is not where it was" in error_of(answer)["given"]
    assert "secret" not in answer.text and len(scans) == 6
    assert state(server)["rows"][0]["state"] == "to do", "nobody is stuck with it"
    assert take(server, "anna", "s0") == "s1"
    for source in ({"case": "s9", "reader": "anna"}, {"case": "s0", "reader": "../x"}):
        answer = server.post("/api/sessions", json={"source": source})
        assert answer.status_code == 400 and error_of(answer)
    assert server.get("/api/project/cases/..%2f..%2fproject.json/thumbnail").status_code in (400, 404)
    assert server.post("/api/project/model", json={"model": "../first"}).status_code == 400


def test_another_scan_in_its_place_is_refused(server, project, tmp_path):
    path = tmp_path / "other.nii.gz"
    write_volume(stub_scan(9).scan, path)
    name = str(project.path_of(project.scan("s1")))
    kept = project.folder / "scans.json"
    kept.write_text(kept.read_text().replace(name, str(path)))
    answer = server.post("/api/sessions", json={"source": {"case": "s1", "reader": "anna"}})
    assert answer.status_code == 409 and "other voxels than when it was added" in error_of(answer)["given"]


def learned(project: Project, made: Path, name: str, cases: tuple[str, ...]) -> None:
    """A model on offer, with other weights than the start."""
    save_model(stub_network(3, name=name), made / f"{name}.safetensors")
    contents = {scan.name: scan.content for scan in project.scans if scan.name in cases}
    counts = {"before": dict.fromkeys(cases, 5), "after": dict.fromkeys(cases, 3)}
    gate = Gate(dice=0.85, limit=10, **counts)
    model = LearnedModel(
        **{"name": name, "made": now(), "start": "first", "cases": contents, "seen": len(cases), "steps": 1},
        **{"minutes": 1, "gate": gate, "state": "offered"},
    )
    project.keep_model(model, made / f"{name}.safetensors")


def test_an_offer_is_taken_gone_back_from_and_forgotten(server, project, made):
    for case in ("s0", "s1"):
        work(server, case, "anna")
    learned(project, made, "learned-2", ("s0", "s1"))
    found = state(server)
    assert (found["offered"], found["in_use"], found["can_go_back"]) == ("learned-2", "first", False)
    assert found["models"][0]["gate"] == "5.0 -> 3.0 clicks to the same mask on 2 scans, fewer on 2 (p = 0.25)"
    found = server.post("/api/project/model", json={"model": "learned-2"}).raise_for_status().json()
    assert (found["offered"], found["in_use"], found["can_go_back"]) == (None, "learned-2", True)
    assert server.get("/api/info").json()["model"]["name"] == "learned-2"
    work(server, "s2", "anna")
    assert project.readings("s2")["anna"].model == "learned-2"
    assert server.post("/api/project/model/back").json()["in_use"] == "first"
    assert server.get("/api/info").json()["model"]["name"] == "first"
    project.use("learned-2")  # by the command line
    begin(server, "s3", "anna")
    assert server.get("/api/info").json()["model"]["name"] == "learned-2"

    assert server.delete("/api/project/cases/s0").json() == {"retired": ["learned-2"]}
    found = state(server)
    assert found["in_use"] == "first" and [row["name"] for row in found["rows"]] == ["s1", "s2", "s3", "s4", "s5"]
    assert server.get("/api/info").json()["model"]["name"] == "first"
    assert server.get("/api/project/cases/s0/thumbnail").status_code == 400
    answer = server.post("/api/project/model", json={"model": "learned-2"})
    assert "trained on a case that was forgotten" in error_of(answer)["given"]


def test_forgetting_takes_the_sessions_on_the_case_along(server, project):
    session = begin(server, "s0", "anna")["id"]
    post(server, session, "prompts", point(CLICK))
    other = begin(server, "s1", "ben")["id"]
    server.delete("/api/project/cases/s0").raise_for_status()
    assert server.get(f"/api/sessions/{session}").status_code == 404
    assert server.get(f"/api/sessions/{other}").status_code == 200
    assert not list(server.service.store.works.glob(f"{session}*"))


def test_sessions_of_another_project_or_of_a_forgotten_case_are_not_come_back_to(settings, project, made, tmp_path):
    with running(settings, None) as client:
        for case in ("s0", "s1"):
            post(client, begin(client, case, "anna")["id"], "prompts", point(CLICK))
    other = Project.new(tmp_path / "other", made / "scans", str(made / "first.safetensors"))
    with running(settings.model_copy(update={"project": other.folder}), None) as client:
        assert not begin(client, "s0", "anna")["can_undo"]
    project.forget("s0")
    with running(settings, None) as client:
        store = client.service.store  # type: ignore[attr-defined]
        cases = [source.case for _, source in store.on_cases(str(project.folder))]
        assert cases == ["s1"] and begin(client, "s1", "anna")["can_undo"]


def test_readers_are_compared(server):
    for reader, clicks in (("anna", 1), ("ben", 3)):
        work(server, "s0", reader, clicks)
    found = server.get("/api/project/agreement", params={"first": "anna", "second": "ben"}).json()
    assert [one["case"] for one in found] == ["s0"] and 0 <= found[0]["dice"] <= 1
    answer = server.get("/api/project/agreement", params={"first": "anna", "second": "carl"})
    assert "no scan that both anna and carl have done" in error_of(answer)["given"]


def test_it_learns_when_it_is_time_waits_and_is_stopped(server, project):
    assert state(server)["learning"]["impossible"] == "5 more scans must be done first"
    assert server.post("/api/project/learning").status_code == 400
    server.patch("/api/project", json={"learn_every": 5}).raise_for_status()
    for case in ("s0", "s1", "s2", "s3", "s4"):
        assert state(server)["learning"]["stage"] == "idle"
        work(server, case, "anna")
    wait_until(lambda: state(server)["learning"]["fraction"] == 0.25, START_S)
    project.touch_busy()
    found = state(server)["learning"]
    assert found["minutes"] == 7 and found["said"] == "part 1" and found["new"] == 5
    assert found["stage"] == "paused"
    busy = project.folder / ".busy"
    busy.unlink()
    assert state(server)["learning"]["stage"] == "running"
    session = begin(server, "s5", "anna")["id"]
    busy.unlink(missing_ok=True)
    server.service.desk._touched = 0.0
    post(server, session, "prompts", point(CLICK))
    assert busy.exists(), "a learning that runs waits"
    server.delete("/api/project/learning").raise_for_status()
    wait_until(lambda: project.learning_now() is None)
    assert not project.learning.exists() and state(server)["learning"]["stage"] == "idle"
    work(server, "s5", "anna")
    assert state(server)["learning"]["stage"] == "idle", "five more scans first"
    server.post("/api/project/learning").raise_for_status()
    wait_until(lambda: project.learning_now(), START_S)
    (project.learning / "plan.json").unlink()
    wait_until(lambda: state(server)["learning"]["failed"])
    assert state(server)["learning"]["said"] == "ended"


def test_what_was_cut_off_goes_on_with_the_next_server(settings, project):
    for case in ("s0", "s1", "s2", "s3", "s4"):
        project.done(case, stub_scan(int(case[1])).truth)
    with running(settings, None) as client:
        client.post("/api/project/learning").raise_for_status()
        wait_until(lambda: project.learning_now(), START_S)
    assert project.learning_now() is None and (project.learning / "plan.json").exists()
    with running(settings, None) as client:
        wait_until(lambda: project.learning_now(), START_S)
        (project.folder / "go").touch()
        wait_until(lambda: project.learning_now() is None)
        (project.learning / "plan.json").unlink()
        found = state(client)["learning"]
        assert (found["stage"], found["failed"], found["said"]) == ("idle", False, "")


def test_a_key_is_asked_for_and_without_a_project_there_is_none(settings, tmp_path, network):
    with running(settings.model_copy(update={"key": SecretStr("secret")}), None) as client:
        for method, path in (("GET", ""), ("POST", "/next"), ("DELETE", "/cases/s0"), ("GET", "/cases/s0/thumbnail")):
            assert client.request(method, f"/api/project{path}").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert client.get("/api/project", headers=headers).status_code == 200
        evil = {**headers, "Origin": "http://evil.example"}
        assert client.delete("/api/project/cases/s0", headers=evil).status_code == 403
    with running(Settings(state=tmp_path / "other"), network) as client:
        answer = client.get("/api/project")
        assert answer.status_code == 404 and "voxsam serve --project" in error_of(answer)["remedy"]
        answer = client.post("/api/sessions", json={"source": {"case": "s0", "reader": "anna"}})
        assert answer.status_code == 404 and client.get("/api/info").json()["project"] is None


def test_the_work_on_a_scan_is_shown_to_its_reader_alone(server, project):
    mine = begin(server, "s0", "anna")["id"]
    post(server, mine, "prompts", point(CLICK))
    server.post("/api/project/done", json={"session": mine}).raise_for_status()
    theirs = begin(server, "s0", "ben")
    assert theirs["id"] != mine and theirs["earlier"] == [] and not theirs["objects"][0]["prompts"]
    assert theirs["objects"][0]["volume_ml"] == 0
    assert json.loads((project.folder / "scans.json").read_text())["scans"][0]["reader"] == "ben"
    assert time.time() - (project.folder / ".busy").stat().st_mtime < 60
